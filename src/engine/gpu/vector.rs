//! Operations on vectors: the time embedding and what is derived from it.

use super::call::{Binding, Builder, Call, word, words};
use super::shader::Shader;
use super::weights::Layout;
use crate::Result;
use crate::plan::Op;

/// Cosines, then sines, of `t * exp(-ln(10000) k / half)`, on the host: shading languages promise no accuracy for angles
/// of many turns, and there are only a few hundred of them.
pub fn sinusoid(timestep: f32, half: usize) -> impl Iterator<Item = f32> {
    let angle = move |k: usize| f64::from(timestep) * (-(10_000f64.ln()) * k as f64 / half as f64).exp();
    (0..half).map(move |k| angle(k).cos() as f32).chain((0..half).map(move |k| angle(k).sin() as f32))
}

pub(super) fn linear(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::Linear { input, silu, weight, bias, label_embedding, output } = op else { return Ok(()) };
    let (inputs, outputs) = (builder.plan.tensors[*input].channels, builder.plan.tensors[*output].channels);
    let mut params = words([inputs, outputs, usize::from(*silu)])?;
    params.extend([builder.vector(*input)?, builder.vector(*output)?, u32::from(label_embedding.is_some())]);
    params.push(word(builder.classes)?);
    let mut bindings = vec![
        (1, builder.weight(*weight, Layout::Plain)?),
        (2, builder.weight(*bias, Layout::Exact)?),
        (4, Binding::Vectors),
    ];
    if let Some(id) = label_embedding {
        bindings.push((3, builder.weight(*id, Layout::Exact)?));
    }
    let samples = builder.batch();
    builder.calls.push(Call {
        permutation: builder.plain(Shader::Linear),
        params,
        bindings,
        workgroups: word(samples * outputs)?,
        work: (samples * inputs * outputs) as f64,
    });
    Ok(())
}
