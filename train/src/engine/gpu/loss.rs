//! The loss and its gradient.

use std::sync::Arc;

use mdm::engine::gpu::call::{Binding, Builder, Call, word, words};
use mdm::engine::gpu::context::Memory;
use mdm::engine::gpu::conv::stored;
use mdm::engine::gpu::shader::{Permutation, ValueType};
use mdm::engine::gpu::weights::upload;
use mdm::plan::{TensorId, TensorInfo};
use mdm::{Error, Result};

use super::shaders::{DIFFERENCE, SSIM};
use crate::loss::evaluate::gaussian;
use crate::loss::{Loss, SsimForm};

/// Values of a workgroup.
const GROUP: usize = 256;

/// Rows and columns of the tile of a workgroup.
const SIDE: usize = 16;

/// Workgroups, each of which leaves a sum, for a loss of `answer`.
pub(super) fn workgroups(loss: &Loss, answer: &TensorInfo, batch: usize) -> usize {
    match loss {
        Loss::Ssim { .. } => {
            batch * answer.channels * answer.height.div_ceil(SIDE) * answer.width.div_ceil(SIDE)
        }
        _ => (batch * answer.sample_len()).div_ceil(GROUP),
    }
}

/// `share` holds what the gradient is multiplied by, `losses` takes a sum for each workgroup.
pub(super) fn loss(
    builder: &mut Builder<'_>,
    loss: &Loss,
    [answer, target, output]: [TensorId; 3],
    share: &Arc<Memory>,
    losses: &Arc<Memory>,
) -> Result<()> {
    let tensor = &builder.plan.tensors[answer];
    let values = builder.batch() * tensor.sample_len();
    let workgroups = word(workgroups(loss, tensor, builder.batch()))?;
    let ((answer, result), (target, other)) = (builder.map(answer)?, builder.map(target)?);
    if other != result {
        return Err(Error::invalid("program", "an answer and a target in different formats"));
    }
    let output = stored(builder, output)?;
    let permutation = |shader| Permutation { result, ..builder.plain(shader) };
    let (share, losses) = (Binding::whole(share.clone()), Binding::whole(losses.clone()));
    let Loss::Ssim { window, sigma, dynamic_range, form } = *loss else {
        builder.calls.push(Call {
            permutation: permutation(DIFFERENCE),
            params: vec![word(values)?, u32::from(*loss == Loss::MeanSquare)],
            bindings: vec![(1, answer), (2, target), (3, share), (4, output), (5, losses)],
            workgroups,
            work: 4.0 * values as f64,
        });
        return Ok(());
    };
    let bell: Vec<f32> = gaussian(window, sigma).into_iter().map(|value| value as f32).collect();
    let bell =
        Binding::whole(Arc::new(upload(builder.context, "window of the loss", &bell, ValueType::F32)?));
    let shape = words([builder.batch(), tensor.height, tensor.width, tensor.channels, window])?;
    let constants = [0.01, 0.03].map(|factor: f64| ((factor * dynamic_range).powi(2) as f32).to_bits());
    let form = u32::from(form == SsimForm::ClampedHalf);
    // Windows that reach into several tiles are computed in each.
    let again = ((SIDE + window - 1) as f64 / SIDE as f64).powi(2);
    builder.calls.push(Call {
        permutation: permutation(SSIM),
        params: [&shape[..], &constants, &[form]].concat(),
        bindings: vec![(1, answer), (2, target), (3, bell), (4, share), (5, output), (6, losses)],
        workgroups,
        work: 10.0 * (1.0 + again) * (window * window * values) as f64,
    });
    Ok(())
}
