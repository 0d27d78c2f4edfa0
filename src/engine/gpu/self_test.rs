//! Whether matrix units do what their shaders say: each is compared with the same operation without matrix units when a device is
//! opened. Drivers for them are young, and a wrong one must not make wrong masks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::calibrate::{self, Rates, UNMEASURED};
use super::context::{Context, Memory};
use super::conv::TERM_PACK;
use super::shader::{BindingKind, Cooperative, Fragments, Permutation, Shader, Tile, ValueType};
use super::submit::{Bound, Dispatch, Encoder, map};
use super::weights::{decode, upload};
use crate::control::Control;
use crate::{Error, Result};

/// What both roundings to f16 may differ by, relative to all values.
const TOLERANCE: f64 = 1e-2;

/// An operation of small size: what its shaders are given, whatever they are made of.
struct Problem {
    words: Vec<u32>,
    /// What is read, by the shaders' numbers.
    inputs: Vec<(u32, Memory)>,
    /// Where the result goes, and how many values it has.
    output: u32,
    values: usize,
}

/// What was found out about a device's matrix units.
#[derive(Clone)]
pub(super) enum Found {
    /// They are right, and so fast.
    Right(Rates),
    /// Why they cannot be used.
    Fault(String),
}

/// What this process found, by driver and shaders. A device that is opened again computes with the same tiles, so that its results are
/// the same bits, and one whose matrix units lost it is opened without them.
static FOUND: Mutex<BTreeMap<String, Found>> = Mutex::new(BTreeMap::new());

/// Tries the device's matrix units, once a process; and once a driver where compiled shaders are kept.
pub(super) fn examine(context: &Context, unit: Cooperative, driver: &str) -> Found {
    let mut hash = blake3::Hasher::new();
    hash.update(driver.as_bytes());
    for (own, _) in pairs(unit, &context.limits) {
        hash.update(own.source().as_bytes());
    }
    let tested = hash.finalize().to_hex().to_string();
    // One device after another: a poisoned lock means that a driver panicked, and what was found before is whole.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = found.get(&tested) {
        return found.clone();
    }
    let known = context.pipelines.known();
    let rates = known.as_deref().and_then(|known| {
        let rates = known.strip_prefix(tested.as_str())?.strip_prefix(' ')?;
        calibrate::read(rates)
    });
    let own = match rates {
        Some(rates) => Found::Right(rates),
        None => match try_out(context, unit) {
            Ok((own, measured)) => {
                if let (Found::Right(rates), true) = (&own, measured) {
                    context.pipelines.note_known(&format!("{tested} {}", calibrate::written(rates)));
                }
                own
            }
            // Says nothing of the device: the next one may have the memory.
            Err(Error::OutOfMemory(reason)) => return fault(&reason),
            Err(error) => fault(&error.to_string()),
        },
    };
    found.insert(tested, own.clone());
    own
}

fn fault(reason: &str) -> Found {
    Found::Fault(format!("its matrix units are not used, which is slower: {reason}"))
}

/// Tests and then measures; also whether it was measured.
fn try_out(context: &Context, unit: Cooperative) -> Result<(Found, bool)> {
    let right = match context.checked(|| compare(context, unit))? {
        Compared::Wrong(reason) => return Ok((fault(&reason), false)),
        Compared::Right(fragments) => fragments,
    };
    if unit == Cooperative::METAL {
        return Ok((Found::Right(UNMEASURED), true));
    }
    // That there was no memory to measure does not make them wrong.
    let rates = context.checked(|| calibrate::rates(context, unit, &right));
    let unmeasured = || (Found::Right(calibrate::unmeasured(&right)), false);
    Ok(rates.map_or_else(|_| unmeasured(), |rates| (Found::Right(rates), true)))
}

/// Shaders on matrix units that a device with these limits can run, each with one that does the same without.
fn pairs(unit: Cooperative, limits: &wgpu::Limits) -> Vec<(Permutation, Permutation)> {
    let plain = |shader| Permutation::plain(shader, ValueType::F16);
    let (shader, all): (_, &[Fragments]) = if unit == Cooperative::METAL {
        (Shader::ConvSimdgroup, &[Fragments::METAL])
    } else {
        (Shader::ConvCooperative, &Fragments::ALL)
    };
    let mut pairs = Vec::new();
    for &fragments in all.iter().filter(|fragments| fragments.fits(unit, limits)) {
        for result in ValueType::ALL {
            let own = Permutation { result, cooperative: Some(unit), fragments, ..plain(shader) };
            let twin = Permutation { result, ..plain(Shader::ConvPacked) };
            pairs.push((own.with_own_terms(), twin));
        }
    }
    for (shader, twin, own) in [
        (Shader::AttentionCooperative, Shader::Attention, Cooperative::ATTENTION),
        (Shader::AttentionCooperative, Shader::Attention, Cooperative::WIDE_ATTENTION),
        (Shader::HeadCooperative, Shader::HeadPatches, Cooperative::HEAD),
    ] {
        if own.is_for(Some(unit)) {
            pairs.push((Permutation { cooperative: Some(own), ..plain(shader) }, plain(twin)));
        }
    }
    pairs
}

/// What comes of comparing all shaders on matrix units with their twins.
enum Compared {
    /// Why the units cannot be used.
    Wrong(String),
    /// They can, with convolutions divided in these ways.
    Right(Vec<Fragments>),
}

/// Whether a device can do without a shader: there are other divisions of a convolution than the first.
fn is_optional(permutation: Permutation) -> bool {
    permutation.shader == Shader::ConvCooperative && permutation.fragments != Fragments::ALL[0]
}

/// Compares all shaders on matrix units with their twins. Divisions of convolutions beyond the first that do not compile, or are wrong,
/// are left out.
///
/// # Errors
/// Those of the device; also that of another shader which does not compile.
fn compare(context: &Context, unit: Cooperative) -> Result<Compared> {
    let mut pairs = pairs(unit, &context.limits);
    let (optional, needed): (Vec<_>, Vec<_>) = pairs.iter().partition(|(own, _)| is_optional(*own));
    let needed: Vec<Permutation> = needed.into_iter().flat_map(|(own, twin)| [own, twin]).collect();
    context.pipelines.compile(&context.device, &needed)?;
    let optional: Vec<Permutation> = optional.into_iter().map(|(own, _)| own).collect();
    let mut left_out: Vec<Fragments> = Vec::new();
    // All side by side; one after the other where one of them fails.
    if context.pipelines.compile(&context.device, &optional).is_err() {
        for own in optional {
            if context.pipelines.compile(&context.device, &[own]).is_err() {
                left_out.push(own.fragments);
            }
        }
    }
    pairs.retain(|(own, _)| !(is_optional(*own) && left_out.contains(&own.fragments)));
    for &(own, twin) in &pairs {
        let (problem, counts) = match own.shader {
            Shader::AttentionCooperative => attention(context, own.cooperative)?,
            Shader::HeadCooperative => head(context)?,
            _ => convolution(context, own, twin.tile)?,
        };
        let [result, expected] =
            [(own, counts.0), (twin, counts.1)].map(|(shader, count)| run(context, &problem, shader, count));
        let error = difference(&result?, &expected?);
        // What is no number is wrong as well.
        if error < TOLERANCE {
            continue;
        }
        if !is_optional(own) {
            return Ok(Compared::Wrong(format!("{} is wrong by {error:.1e}", own.label())));
        }
        left_out.push(own.fragments);
    }
    let right = Fragments::ALL.into_iter().filter(|fragments| !left_out.contains(fragments));
    Ok(Compared::Right(right.collect()))
}

/// A 3x3 convolution of two maps, neither of which fills a tile's terms, and the workgroups of both shaders.
fn convolution(context: &Context, own: Permutation, twin: Tile) -> Result<(Problem, (usize, usize))> {
    let (height, width, channels, columns) = (13, 11, [40, 24], 200);
    let rows = height * width;
    let terms = channels[0] + channels[1];
    let weights = (9usize * terms).next_multiple_of(TERM_PACK) * columns;
    let words = [height, width, columns, 0, 0, 0, 0, 0]
        .into_iter()
        .chain([rows, height, width, channels[0], channels[1], 3, 1, 0, 1])
        .map(|word| word as u32)
        .collect();
    let inputs = vec![
        (1, halves(context, rows * channels[0], 1)?),
        (2, halves(context, rows * channels[1], 2)?),
        (3, halves(context, weights, 3)?),
    ];
    let tiles = |(tile_rows, tile_columns): (u32, u32)| {
        rows.div_ceil(tile_rows as usize) * columns.div_ceil(tile_columns as usize)
    };
    let unit = own.cooperative.unwrap_or(Cooperative::VULKAN);
    let counts = (tiles(own.fragments.tile(unit)), tiles((8 * twin.rows, 8 * twin.columns)));
    Ok((Problem { words, inputs, output: 8, values: rows * columns }, counts))
}

/// Attention of heads as wide as the unit takes them.
fn attention(context: &Context, unit: Option<Cooperative>) -> Result<(Problem, (usize, usize))> {
    let width = unit.map_or(64, |unit| unit.terms as usize);
    let (samples, pixels, heads) = (1, 150, 2);
    let mut words: Vec<u32> =
        [samples, pixels, heads, width, width, heads * width].map(|word| word as u32).to_vec();
    words.push((1.0 / (width as f32).sqrt()).to_bits());
    let inputs = vec![(1, halves(context, 3 * samples * pixels * heads * width, 4)?)];
    let blocks = samples * heads * pixels.div_ceil(64);
    let problem = Problem { words, inputs, output: 2, values: samples * pixels * heads * width };
    Ok((problem, (blocks, width.div_ceil(64) * blocks)))
}

/// Two heads over two maps.
fn head(context: &Context) -> Result<(Problem, (usize, usize))> {
    let (height, width, heads, first, second, classes) = (13, 37, 2, 128, 32, 3);
    let (rows, sizes) = (height * width, [(13, 37), (7, 19)]);
    let mut words = vec![rows, height, width, heads, first, second, classes, 0, sizes.len()];
    words.resize(12, 0);
    // Two arrays of eight, and no norm.
    words.extend([13, 7, 0, 0, 0, 0, 0, 0, 37, 19, 0, 0, 0, 0, 0, 0, 0]);
    let weights = heads * (first + second * first + second + classes * second + classes);
    let exact = |count, seed| upload(context, "self test", &numbers(count, seed), ValueType::F32);
    let inputs = vec![
        (1, exact(weights, 5)?),
        (3, exact(sizes[0].0 * sizes[0].1 * heads * first, 6)?),
        (4, exact(sizes[1].0 * sizes[1].1 * heads * first, 7)?),
    ];
    let words = words.into_iter().map(|word| word as u32).collect();
    let count = heads * height.div_ceil(8) * width.div_ceil(16);
    Ok((Problem { words, inputs, output: 8, values: heads * rows * classes }, (count, count)))
}

fn run(
    context: &Context,
    problem: &Problem,
    permutation: Permutation,
    workgroups: usize,
) -> Result<Vec<f32>> {
    use wgpu::BufferUsages as Usage;
    let mut words = problem.words.clone();
    words.resize(words.len().next_multiple_of(4), 0);
    let params = context.buffer("self test", 4 * words.len() as u64, Usage::UNIFORM | Usage::COPY_DST)?;
    context.queue.write_buffer(&params.buffer, 0, bytemuck::cast_slice(&words));
    let nothing =
        [context.buffer("nothing", 16, Usage::STORAGE)?, context.buffer("nothing", 16, Usage::STORAGE)?];
    let heads = [Shader::HeadCooperative, Shader::HeadPatches, Shader::HeadLogits];
    let format = if heads.contains(&permutation.shader) { ValueType::F32 } else { permutation.result };
    let size = (format.size() * problem.values) as u64;
    let output = context.buffer("self test", size, Usage::STORAGE | Usage::COPY_SRC)?;
    let staging = context.buffer("self test", size, Usage::COPY_DST | Usage::MAP_READ)?;
    let workgroups = super::call::word(workgroups)?;
    let dispatch = Dispatch::new(context, permutation, workgroups, 1.0, |number, kind| {
        let known = problem.inputs.iter().find(|(own, _)| *own == number).map(|(_, memory)| memory);
        match (kind, known) {
            (BindingKind::Uniform, _) => Bound::whole(&params),
            _ if number == problem.output => Bound::whole(&output),
            (_, Some(memory)) => Bound::whole(memory),
            (BindingKind::Read, None) => Bound::whole(&nothing[0]),
            (BindingKind::ReadWrite, None) => Bound::whole(&nothing[1]),
        }
    })?;
    let control = Control::none();
    let mut encoder = Encoder::new(context, &control, None);
    encoder.operation(std::iter::once(&dispatch), None)?;
    encoder.submit(|commands| {
        commands.copy_buffer_to_buffer(&output.buffer, 0, &staging.buffer, 0, Some(size.next_multiple_of(4)));
    })?;
    encoder.wait()?;
    let bytes = map(context, &staging.buffer)?;
    let values = decode(&bytes, problem.values, format);
    drop(bytes);
    staging.buffer.unmap();
    if values.len() == problem.values { Ok(values) } else { Err(Error::invalid("self test", "is short")) }
}

/// `|a - b| / |b|`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let differences = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b)));
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (differences.sum::<f64>() / norm).sqrt()
}

fn halves(context: &Context, count: usize, seed: u32) -> Result<Memory> {
    upload(context, "self test", &numbers(count, seed), ValueType::F16)
}

/// Numbers in [-1, 1) of a linear congruential generator (Numerical Recipes).
pub(super) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::{GpuEngine, adapters};
    use super::*;
    use crate::engine::{DeviceOptions, Precision};

    /// Two shaders without matrix units agree about each problem, on every device with f16.
    #[test]
    fn problems_are_what_shaders_expect() {
        let options = DeviceOptions { precision: Precision::F16, ..DeviceOptions::default() };
        for adapter in adapters().into_iter().filter(|adapter| adapter.info.supports.contains(&"f16")) {
            let context = GpuEngine::new(adapter, &options).and_then(|engine| engine.context()).unwrap();
            let plain = |shader| Permutation::plain(shader, ValueType::F16);
            let rows = 13 * 37;
            let convolution = convolution(&context, plain(Shader::ConvCooperative), Tile::SMALL).unwrap();
            let attention = attention(&context, Some(Cooperative::WIDE_ATTENTION)).unwrap();
            let head = head(&context).unwrap();
            let blocks = 2 * usize::div_ceil(rows, 64);
            for ((problem, (_, count)), first, second, other_count) in [
                (&convolution, Shader::ConvPacked, Shader::Conv, convolution.1.1),
                (&attention, Shader::Attention, Shader::Attention, attention.1.1),
                (&head, Shader::HeadPatches, Shader::HeadLogits, blocks),
            ] {
                let both = [(first, *count), (second, other_count)].map(|(shader, count)| {
                    context.pipelines.compile(&context.device, &[plain(shader)]).unwrap();
                    context.checked(|| run(&context, problem, plain(shader), count)).unwrap()
                });
                let error = difference(&both[0], &both[1]);
                assert!(error < TOLERANCE, "{}: {error}", first.name());
                assert!(both[0].iter().all(|value| *value != 0.0), "{}: something is missing", first.name());
            }
        }
    }

    #[test]
    fn wrong_and_missing_numbers_differ() {
        let right = numbers(100, 1);
        assert!(difference(&right, &right) == 0.0);
        let mut wrong = right.clone();
        wrong[7] += 1.0;
        assert!(difference(&wrong, &right) > TOLERANCE);
        wrong[7] = f32::NAN;
        assert!(difference(&wrong, &right).is_nan());
        assert!(difference(&[0.0; 4], &[0.0; 4]).is_nan(), "nothing was written");
    }
}
