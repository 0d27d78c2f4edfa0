//! Convolutions: products over gathered rows.

use super::call::{Binding, Builder, Call, too_large, word, words};
use super::shader::{Permutation, Shader, Tile, ValueType};
use super::weights::Layout;
use crate::plan::{Conv, Resample, Source};
use crate::{Error, Result};

/// Workgroups that fill a device. Where a product has fewer tiles, its terms are divided.
const ENOUGH_WORKGROUPS: usize = 256;

/// Steps through the terms below which dividing them does not pay.
const LEAST_STEPS: usize = 16;

/// What a convolution reads.
struct Input {
    parts: Vec<(Binding, usize)>,
    height: usize,
    width: usize,
    upsampled: bool,
}

pub(super) fn conv(builder: &mut Builder<'_>, conv: &Conv) -> Result<()> {
    let plan = builder.plan;
    let output = &plan.tensors[conv.output];
    let input = input(builder, &conv.source)?;
    let weight = builder.weight(conv.weight, Layout::Taps)?;
    let (target, result) = builder.map(conv.output)?;
    let rows = builder.batch() * output.height * output.width;
    let columns = output.channels;
    let channels: usize = input.parts.iter().map(|(_, channels)| channels).sum();
    let terms = channels * conv.kernel * conv.kernel;
    let work = rows as f64 * columns as f64 * terms as f64;

    let count =
        |tile: Tile| rows.div_ceil(8 * tile.rows as usize) * columns.div_ceil(8 * tile.columns as usize);
    let storage = builder.context.limits.max_compute_workgroup_storage_size;
    let fits = |tile: Tile| 4 * 8 * (tile.rows + tile.columns) * tile.terms + 16 * 8 * tile.rows <= storage;
    let tile =
        if count(Tile::LARGE) >= ENOUGH_WORKGROUPS && fits(Tile::LARGE) { Tile::LARGE } else { Tile::SMALL };
    let tiles = count(tile);
    let steps = conv.kernel
        * conv.kernel
        * input.parts.iter().map(|(_, channels)| channels.div_ceil(tile.terms as usize)).sum::<usize>();
    let splits = (ENOUGH_WORKGROUPS / tiles).min(steps / LEAST_STEPS).max(1);

    let (epilogue, added) = epilogue(builder, conv)?;
    let mut params = epilogue.clone();
    let part = |index: usize| input.parts.get(index).map_or(0, |(_, channels)| *channels);
    params.extend(words([
        rows,
        input.height,
        input.width,
        part(0),
        part(1),
        conv.kernel,
        conv.stride,
        usize::from(input.upsampled),
        splits,
    ])?);
    let mut bindings = vec![(3, weight)];
    bindings.extend((1..).zip(input.parts.iter().map(|(binding, _)| binding.clone())));
    let permutation = Permutation { shader: Shader::Conv, value: builder.value(), result, tile };
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
        workgroups: word((rows * columns).div_ceil(256))?,
        work: all as f64,
    });
    Ok(())
}

/// The words of the shaders' `Epilogue`, and what it reads.
pub(super) fn epilogue(builder: &mut Builder<'_>, conv: &Conv) -> Result<(Vec<u32>, Vec<(u32, Binding)>)> {
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
fn stored(builder: &Builder<'_>, id: usize) -> Result<Binding> {
    match builder.map(id)? {
        (binding, format) if format == builder.value() => Ok(binding),
        _ => Err(Error::invalid("plan", format!("tensor {id} is kept in f32 and cannot be convolved"))),
    }
}

/// What `source` stands for: its tensors as they are where the shader can read them so, otherwise a normalised copy.
fn input(builder: &mut Builder<'_>, source: &Source) -> Result<Input> {
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
        return Ok(Input { parts, height, width, upsampled });
    }
    let channels: usize = source.parts.iter().map(|&part| plan.tensors[part].channels).sum();
    let rows = builder.batch() * height * width;
    let copy = builder.scratch(rows * channels, builder.value())?;
    let coefficients =
        source.norm.map_or(Ok(0), |norm| builder.vector(norm.coefficients).map(|at| at + 1))?;
    let silu = u32::from(source.norm.is_some_and(|norm| norm.silu));
    let mut start = 0;
    for &part in &source.parts {
        let own = plan.tensors[part].channels;
        let mut params = words([rows, height, width, own, channels, start])?;
        params.extend([coefficients, silu, u32::from(averaged)]);
        let call = Call {
            permutation: builder.plain(Shader::Normalise),
            params,
            bindings: vec![(1, stored(builder, part)?), (2, Binding::Vectors), (3, copy.clone())],
            workgroups: word((rows * own).div_ceil(256))?,
            work: 8.0 * (rows * own) as f64,
        };
        builder.calls.push(call);
        start += own;
    }
    Ok(Input { parts: vec![(copy, channels)], height, width, upsampled })
}
