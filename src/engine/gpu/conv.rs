//! Convolutions: products over gathered rows.

use super::calibrate::Rates;
use super::call::{Binding, Bindings, Builder, Call, ENOUGH_WORKGROUPS, too_large, word, words};
use super::shader::{Cooperative, Fragments, Permutation, Shader, Tile, ValueType};
use super::weights::Layout;
use crate::plan::{Conv, Resample, Source, TensorInfo};
use crate::{Error, Result};

/// Steps through the terms below which dividing them does not pay.
const LEAST_STEPS: usize = 16;

/// Subgroups that a large device works on at once, and those of a workgroup beyond which more of them share the same units.
const SUBGROUPS: usize = 1056;
const SUBGROUPS_TOGETHER: usize = 8;

/// What a tile's start and end cost, in steps.
const STEPS_AROUND: usize = 6;

/// What a second call costs that adds up parts, and moving one value of a part, in units of a matrix unit's value and step.
const SECOND_CALL: f64 = 18_000.0;
const PART: f64 = 13.0;

/// Terms are padded to a multiple of so many, which matrix units load together.
pub const TERM_PACK: usize = 8;

/// Channels up to which taps are unfolded: with more, they fill a product's terms by themselves.
const MOST_UNFOLDED: usize = 7;

/// What a convolution reads.
pub struct Input {
    /// Maps with their channels, concatenated in this order.
    pub parts: Vec<(Binding, usize)>,
    /// Rows, before it is upsampled.
    pub height: usize,
    /// Columns, before it is upsampled.
    pub width: usize,
    /// Whether each pixel stands for 2 x 2.
    pub upsampled: bool,
    /// 1 where what lies under the taps was unfolded.
    pub kernel: usize,
}

pub(super) fn conv(builder: &mut Builder<'_>, conv: &Conv) -> Result<()> {
    if super::winograd::fits(builder, conv) {
        return super::winograd::conv(builder, conv);
    }
    let plan = builder.plan;
    let output = &plan.tensors[conv.output];
    let input = match unfolded(builder, conv)? {
        Some(input) => input,
        None => Input { kernel: conv.kernel, ..input(builder, &conv.source)? },
    };
    let (target, result) = builder.map(conv.output)?;
    let rows = builder.batch() * output.height * output.width;
    let columns = output.channels;
    let channels: usize = input.parts.iter().map(|(_, channels)| channels).sum();
    let terms = channels * input.kernel * input.kernel;
    let work = rows as f64 * columns as f64 * terms as f64;

    let packed = |size: u32| {
        let fits = |channels: usize| channels.is_multiple_of(size as usize);
        fits(columns) && input.parts.iter().all(|(_, own)| fits(*own))
    };
    let steps = |terms: u32| {
        let chunks = input.parts.iter().map(|(_, channels)| channels.div_ceil(terms as usize));
        input.kernel * input.kernel * chunks.sum::<usize>()
    };
    let unit =
        builder.context.cooperative().filter(|unit| builder.value() == ValueType::F16 && packed(unit.pack));
    let (permutation, tiles, splits) = match unit {
        Some(unit) => {
            let (fragments, splits) = division(unit, rows, columns, &steps, builder.context.rates());
            let shader =
                if unit == Cooperative::METAL { Shader::ConvSimdgroup } else { Shader::ConvCooperative };
            let plain = builder.plain(shader);
            let (tile_rows, tile_columns) = fragments.tile(unit);
            let tiles = rows.div_ceil(tile_rows as usize) * columns.div_ceil(tile_columns as usize);
            let permutation = Permutation { result, cooperative: Some(unit), fragments, ..plain };
            (permutation.with_own_terms(), tiles, splits)
        }
        None => {
            let count = |tile: Tile| {
                rows.div_ceil(8 * tile.rows as usize) * columns.div_ceil(8 * tile.columns as usize)
            };
            let tile = builder.tile(count);
            let shader = if packed(4) { Shader::ConvPacked } else { Shader::Conv };
            let splits = (ENOUGH_WORKGROUPS / count(tile)).min(steps(tile.terms) / LEAST_STEPS).max(1);
            (Permutation { result, tile, ..builder.plain(shader) }, count(tile), splits)
        }
    };
    // Parts are added up four columns at a time.
    let splits = if packed(4) { splits } else { 1 };

    let weight = builder.weight(conv.weight, Layout::Taps)?;
    let (epilogue, added) = epilogue(builder, conv)?;
    let mut params = epilogue.clone();
    let part = |index: usize| input.parts.get(index).map_or(0, |(_, channels)| *channels);
    params.extend(words([
        rows,
        input.height,
        input.width,
        part(0),
        part(1),
        input.kernel,
        conv.stride,
        usize::from(input.upsampled),
        splits,
    ])?);
    let mut bindings = vec![(3, weight)];
    bindings.extend((1..).zip(input.parts.iter().map(|(binding, _)| binding.clone())));
    if splits == 1 {
        bindings.extend(added);
        bindings.push((8, target));
        let workgroups = word(tiles)?;
        builder.calls.push(Call { permutation, params, bindings, workgroups, work });
        return Ok(());
    }
    let all = splits.checked_mul(rows * columns).ok_or_else(|| too_large("a product"))?;
    let parts = builder.scratch(all, ValueType::F32)?;
    bindings.push((8, parts.clone()));
    builder.calls.push(Call {
        permutation: Permutation { result: ValueType::F32, ..permutation },
        params,
        bindings,
        workgroups: word(tiles * splits)?,
        work,
    });
    let mut params = epilogue;
    params.extend(words([rows, splits])?);
    let mut bindings = added;
    bindings.extend([(1, parts), (8, target)]);
    builder.calls.push(Call {
        permutation: Permutation { result, ..Permutation::plain(Shader::ConvSum, builder.value()) },
        params,
        bindings,
        workgroups: word((rows * columns / 4).div_ceil(64))?,
        work: all as f64,
    });
    Ok(())
}

/// Which fragments a product on matrix units is made of, and into how many parts its `steps` through the terms are divided: the
/// least time by a model in which the device's subgroups finish waves of tiles.
fn division(
    unit: Cooperative,
    rows: usize,
    columns: usize,
    steps: &dyn Fn(u32) -> usize,
    rates: &Rates,
) -> (Fragments, usize) {
    if unit == Cooperative::METAL {
        let (tile_rows, tile_columns) = Fragments::METAL.tile(unit);
        let tiles = rows.div_ceil(tile_rows as usize) * columns.div_ceil(tile_columns as usize);
        return (Fragments::METAL, (ENOUGH_WORKGROUPS / tiles).min(steps(unit.terms) / LEAST_STEPS).max(1));
    }
    let mut best = (f64::INFINITY, (Fragments::ALL[0], 1));
    for (fragments, rate) in Fragments::ALL.into_iter().zip(*rates) {
        let (tile_rows, tile_columns) = fragments.tile(unit);
        let tiles = rows.div_ceil(tile_rows as usize) * columns.div_ceil(tile_columns as usize);
        let subgroups = ((fragments.threads(unit) / unit.subgroup) as usize).min(SUBGROUPS_TOGETHER);
        let at_once = SUBGROUPS / subgroups;
        let steps = steps(fragments.terms);
        let step = f64::from(tile_rows * tile_columns * fragments.terms) / 32.0 / subgroups as f64 / rate;
        for splits in (0..6).map(|power| 1 << power).take_while(|splits| splits * 4 <= steps.max(4)) {
            let waves = (tiles * splits).div_ceil(at_once);
            let mut time = waves as f64 * (steps.div_ceil(splits) + STEPS_AROUND) as f64 * step;
            if splits > 1 {
                let moved = (splits + 1) * rows * columns;
                time += SECOND_CALL + PART * moved as f64 / SUBGROUPS as f64;
            }
            if time < best.0 {
                best = (time, (fragments, splits));
            }
        }
    }
    best.1
}

/// The words of the shaders' `Epilogue`, and what it reads.
pub(super) fn epilogue(builder: &mut Builder<'_>, conv: &Conv) -> Result<(Vec<u32>, Bindings)> {
    let plan = builder.plan;
    let output = &plan.tensors[conv.output];
    let mut bindings = vec![(5, Binding::Vectors)];
    if let Some(id) = conv.bias {
        bindings.push((4, builder.weight(id, Layout::Exact)?));
    }
    let sample_bias = conv.sample_bias.map_or(Ok(0), |id| builder.vector(id).map(|at| at + 1))?;
    let mut widths = [0; 2];
    let mut kind = 0;
    if let Some(residual) = &conv.residual {
        kind = match residual.resample {
            Resample::None => 1,
            Resample::NearestUp => 2,
            Resample::AverageDown => 3,
        };
        if residual.parts.len() > widths.len() {
            return Err(Error::invalid("plan", "a residual of more than two tensors"));
        }
        for (index, &part) in residual.parts.iter().enumerate() {
            widths[index] = plan.tensors[part].channels;
            bindings.push((6 + index as u32, stored(builder, part)?));
        }
    }
    let mut words = words([output.height, output.width, output.channels, usize::from(conv.bias.is_some())])?;
    words.extend([sample_bias, kind]);
    words.extend(self::words(widths)?);
    Ok((words, bindings))
}

/// A map in the device's value type.
pub fn stored(builder: &Builder<'_>, id: usize) -> Result<Binding> {
    match builder.map(id)? {
        (binding, format) if format == builder.value() => Ok(binding),
        _ => Err(Error::invalid("plan", format!("tensor {id} is kept in f32 and cannot be convolved"))),
    }
}

/// What lies under the taps of a 3x3 convolution of few channels, where that is worth a copy.
fn unfolded(builder: &mut Builder<'_>, conv: &Conv) -> Result<Option<Input>> {
    let plan = builder.plan;
    let &[part] = conv.source.parts.as_slice() else { return Ok(None) };
    let TensorInfo { height, width, channels, .. } = plan.tensors[part];
    let few = channels <= MOST_UNFOLDED && conv.source.resample == Resample::None;
    if conv.kernel != 3 || conv.stride != 1 || !few {
        return Ok(None);
    }
    let rows = builder.batch() * height * width;
    let terms = (9 * channels).next_multiple_of(TERM_PACK);
    let copy = builder.scratch(rows * terms, builder.value())?;
    let norm = conv.source.norm;
    let coefficients = norm.map_or(Ok(0), |norm| builder.vector(norm.coefficients).map(|at| at + 1))?;
    let mut params = words([rows, height, width, channels, terms])?;
    params.extend([coefficients, u32::from(norm.is_some_and(|norm| norm.silu))]);
    builder.calls.push(Call {
        permutation: builder.plain(Shader::Unfold),
        params,
        bindings: vec![(1, stored(builder, part)?), (2, Binding::Vectors), (3, copy.clone())],
        workgroups: word((rows * terms).div_ceil(256))?,
        work: 8.0 * (rows * terms) as f64,
    });
    Ok(Some(Input { parts: vec![(copy, terms)], height, width, upsampled: false, kernel: 1 }))
}

/// What `source` stands for: its tensors as they are where the shader can read them so, otherwise a normalised copy.
pub fn input(builder: &mut Builder<'_>, source: &Source) -> Result<Input> {
    let plan = builder.plan;
    let first = &plan.tensors[source.parts[0]];
    let averaged = source.resample == Resample::AverageDown;
    let (height, width) =
        if averaged { (first.height / 2, first.width / 2) } else { (first.height, first.width) };
    let upsampled = source.resample == Resample::NearestUp;
    if source.norm.is_none() && !averaged && source.parts.len() <= 2 {
        let mut parts = Vec::new();
        for &part in &source.parts {
            parts.push((stored(builder, part)?, plan.tensors[part].channels));
        }
        return Ok(Input { parts, height, width, upsampled, kernel: 1 });
    }
    let channels: usize = source.parts.iter().map(|&part| plan.tensors[part].channels).sum();
    let rows = builder.batch() * height * width;
    let copy = builder.scratch(rows * channels, builder.value())?;
    if let Some(norm) = source.norm.and_then(|norm| builder.norms.get(norm.coefficients)) {
        super::group_norm::group_norm(builder, source, norm, (height * width, width), &copy)?;
    } else {
        let coefficients =
            source.norm.map_or(Ok(0), |norm| builder.vector(norm.coefficients).map(|at| at + 1))?;
        let silu = u32::from(source.norm.is_some_and(|norm| norm.silu));
        super::normalise::normalise(builder, source, (height, width), (coefficients, silu), &copy)?;
    }
    Ok(Input { parts: vec![(copy, channels)], height, width, upsampled, kernel: 1 })
}

#[cfg(test)]
mod tests {
    use super::super::calibrate::UNMEASURED;
    use super::*;

    #[test]
    fn sixteen_subgroups_are_chosen_where_they_were_measured_to_be_faster() {
        let unit = Cooperative::VULKAN;
        let sixteen = Fragments::ALL.iter().position(|own| own.threads(unit) == 512);
        let sixteen = sixteen.map(|at| (at, Fragments::ALL[at]));
        let Some((at, sixteen)) = sixteen else { panic!("there are none") };
        let chosen = |side: usize, channels: usize, rate| {
            let mut rates = UNMEASURED;
            rates[at] = rate;
            let steps = |terms: u32| 9 * channels.div_ceil(terms as usize);
            division(unit, side * side, channels, &steps, &rates).0
        };
        for (side, channels) in [(8, 768), (16, 768), (64, 384), (256, 192), (512, 96), (1024, 32)] {
            assert_ne!(chosen(side, channels, UNMEASURED[at]), sixteen, "{side} {channels}");
            assert_ne!(chosen(side, channels, 0.9), sixteen, "{side} {channels}");
        }
        assert_eq!(chosen(256, 192, 1.1), sixteen);
    }
}
