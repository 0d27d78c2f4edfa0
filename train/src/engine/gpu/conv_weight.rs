//! The gradient of a convolution's weight.

use mdm::Result;
use mdm::engine::gpu::call::{Binding, Builder, Call, ENOUGH_WORKGROUPS, word, words};
use mdm::engine::gpu::conv::{input, stored};
use mdm::engine::gpu::shader::{Permutation, Tile, ValueType};
use mdm::plan::{Source, TensorId};

use super::shaders::{CONV_WEIGHT, CONV_WEIGHT_SUM, plain};

/// Pixels of a part at least.
const LEAST_PIXELS: usize = 512;

/// Bytes of sums at most: with more, adding them up would cost as much as what dividing the work gains.
const MOST_BYTES: usize = 64 << 20;

pub(super) fn conv_weight(
    builder: &mut Builder<'_>,
    source: &Source,
    gradient: TensorId,
    (kernel, stride): (usize, usize),
    target: Binding,
) -> Result<()> {
    let plan = builder.plan;
    let output = &plan.tensors[gradient];
    let pixels = builder.batch() * output.height * output.width;
    let columns = output.channels;
    let read = input(builder, source)?;
    let channels: usize = read.parts.iter().map(|(_, channels)| channels).sum();
    let rows = kernel * kernel * channels;

    let count =
        |tile: Tile| rows.div_ceil(8 * tile.rows as usize) * columns.div_ceil(8 * tile.columns as usize);
    let divided = |tiles: usize| {
        let most = (pixels / LEAST_PIXELS).min(MOST_BYTES / (4 * rows * columns)).max(1);
        ENOUGH_WORKGROUPS.div_ceil(tiles).min(most)
    };
    let tile = builder.tile(|tile| count(tile) * divided(count(tile)));
    let splits = divided(count(tile));

    let parts = builder.scratch(splits * rows * columns, ValueType::F32)?;
    let part = |index: usize| read.parts.get(index).map_or(0, |(_, channels)| *channels);
    let params = words([
        pixels,
        output.height,
        output.width,
        read.height,
        read.width,
        part(0),
        part(1),
        kernel,
        stride,
        usize::from(read.upsampled),
        columns,
        splits,
    ])?;
    let mut bindings: Vec<(u32, Binding)> =
        (1..).zip(read.parts.iter().map(|(binding, _)| binding.clone())).collect();
    bindings.extend([(3, stored(builder, gradient)?), (4, parts.clone())]);
    builder.calls.push(Call {
        permutation: Permutation { tile, ..builder.plain(CONV_WEIGHT) },
        params,
        bindings,
        workgroups: word(count(tile) * splits)?,
        work: (rows * columns) as f64 * pixels as f64,
    });
    builder.calls.push(Call {
        permutation: plain(CONV_WEIGHT_SUM),
        params: words([channels, columns, kernel * kernel, splits])?,
        bindings: vec![(1, parts), (2, target)],
        workgroups: word(channels.div_ceil(16) * columns.div_ceil(16))?,
        work: 4.0 * (splits * rows * columns) as f64,
    });
    Ok(())
}
