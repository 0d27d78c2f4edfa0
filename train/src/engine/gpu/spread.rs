//! Zeros between pixels.

use mdm::Result;
use mdm::engine::gpu::call::{Builder, Call, word, words};
use mdm::engine::gpu::conv::stored;
use mdm::plan::TensorId;

use super::shaders::SPREAD;

pub(super) fn spread(builder: &mut Builder<'_>, input: TensorId, output: TensorId) -> Result<()> {
    let (from, to) = (&builder.plan.tensors[input], &builder.plan.tensors[output]);
    let rows = builder.batch() * to.height * to.width;
    let values = rows * to.channels;
    builder.calls.push(Call {
        permutation: builder.plain(SPREAD),
        params: words([rows, to.height, to.width, to.channels, from.height, from.width])?,
        bindings: vec![(1, stored(builder, input)?), (2, stored(builder, output)?)],
        workgroups: word(values.div_ceil(256))?,
        work: values as f64,
    });
    Ok(())
}
