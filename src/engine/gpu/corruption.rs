//! What is done to windows before the network sees them: patches are hidden or noise is added.

use super::call::{Binding, Builder, Call, word, words};
use super::shader::{Permutation, Shader, ValueType};
use crate::Result;
use crate::plan::Op;

pub(super) fn mask(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::Mask { image, patch, hidden, timestep, output } = op else { return Ok(()) };
    let tensor = &builder.plan.tensors[*image];
    let (height, width, channels) = (tensor.height, tensor.width, tensor.channels);
    let samples = builder.batch();
    let patches = height.div_ceil(*patch) * width.div_ceil(*patch);
    let noise = builder.scratch(samples * patches, ValueType::F32)?;
    let chosen = builder.scratch(samples * patches, ValueType::F32)?;
    builder.calls.push(Call {
        permutation: Permutation::plain(Shader::PatchNoise, ValueType::F32),
        params: [words([samples, patches])?, vec![*timestep]].concat(),
        bindings: vec![(1, Binding::Keys), (2, noise.clone())],
        workgroups: word((samples * patches.div_ceil(4)).div_ceil(64))?,
        work: 64.0 * (samples * patches) as f64,
    });
    builder.calls.push(Call {
        permutation: Permutation::plain(Shader::HidePatches, ValueType::F32),
        params: words([samples, patches, *hidden])?,
        bindings: vec![(1, noise), (2, chosen.clone())],
        workgroups: word((samples * patches).div_ceil(64))?,
        work: (samples * patches) as f64 * patches as f64,
    });
    let rows = samples * height * width;
    builder.calls.push(Call {
        permutation: builder.plain(Shader::Mask),
        params: words([rows, height, width, channels, *patch])?,
        bindings: vec![(1, builder.map(*image)?.0), (2, chosen), (3, builder.map(*output)?.0)],
        workgroups: word((rows * channels).div_ceil(256))?,
        work: 8.0 * (rows * channels) as f64,
    });
    Ok(())
}

pub(super) fn add_noise(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::AddNoise { image, signal, spread, timestep, output } = op else { return Ok(()) };
    let samples = builder.batch();
    let values = builder.plan.tensors[*image].sample_len();
    let mut params = words([samples, values])?;
    params.extend([*timestep, signal.to_bits(), spread.to_bits()]);
    builder.calls.push(Call {
        permutation: builder.plain(Shader::AddNoise),
        params,
        bindings: vec![(1, Binding::Keys), (2, builder.map(*image)?.0), (3, builder.map(*output)?.0)],
        workgroups: word((samples * values.div_ceil(4)).div_ceil(64))?,
        work: 64.0 * (samples * values) as f64,
    });
    Ok(())
}
