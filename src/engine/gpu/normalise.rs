//! Sources that are written down before they are read: normalised, averaged, concatenated.

use super::call::{Binding, Builder, Call, word, words};
use super::conv::stored;
use super::shader::Shader;
use crate::Result;
use crate::plan::{Resample, Source};

/// Pixels of a thread where there are enough of them.
const STRIP: usize = 4;

/// Threads that fill a device.
const ENOUGH_THREADS: usize = 1 << 17;

/// Writes what `source` stands for, before it is upsampled, to `copy`: `height` x `width` pixels. `coefficients` is 0 or one
/// more than the place of the norm's, followed by whether SiLU is applied.
pub(super) fn normalise(
    builder: &mut Builder<'_>,
    source: &Source,
    (height, width): (usize, usize),
    (coefficients, silu): (u32, u32),
    copy: &Binding,
) -> Result<()> {
    let tensors = &builder.plan.tensors;
    let widths: Vec<usize> = source.parts.iter().map(|&part| tensors[part].channels).collect();
    let channels: usize = widths.iter().sum();
    let averaged = u32::from(source.resample == Resample::AverageDown);
    let (samples, pixels) = (builder.batch(), height * width);
    let maps = source.parts.iter().map(|&part| stored(builder, part)).collect::<Result<Vec<_>>>()?;
    // Vectors start at multiples of four values.
    let packed = widths.iter().all(|width| width.is_multiple_of(4));
    let at_once = if packed { 2 } else { 1 };
    let mut start = 0;
    for (maps, widths) in maps.chunks(at_once).zip(widths.chunks(at_once)) {
        let own: usize = widths.iter().sum();
        let mut bindings = vec![(1, maps[0].clone()), (2, Binding::Vectors), (3, copy.clone())];
        let (shader, params, threads) = if packed {
            bindings.extend(maps.get(1).map(|map| (4, map.clone())));
            let packs = samples * pixels * (own / 4);
            let strip = if packs >= STRIP * ENOUGH_THREADS { STRIP } else { 1 };
            let strips = pixels.div_ceil(strip);
            let second = widths.get(1).map_or(0, |width| width / 4);
            let mut params = words([pixels, width, samples * strips, strip, strips])?;
            params.extend(words([widths[0] / 4, second, channels / 4, start / 4])?);
            params.extend([if coefficients == 0 { 0 } else { (coefficients - 1) / 4 + 1 }, silu, averaged]);
            (Shader::Normalise, params, samples * strips * (own / 4))
        } else {
            let mut params = words([samples * pixels, height, width, own, channels, start])?;
            params.extend([coefficients, silu, averaged]);
            (Shader::NormaliseScalars, params, samples * pixels * own)
        };
        builder.calls.push(Call {
            permutation: builder.plain(shader),
            params,
            bindings,
            workgroups: word(threads.div_ceil(256))?,
            work: 8.0 * (samples * pixels * own) as f64,
        });
        start += own;
    }
    Ok(())
}
