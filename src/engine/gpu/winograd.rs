//! 3x3 convolutions by Winograd's minimal filtering with 4 x 4 outputs: a quarter of a direct product's multiplications.
//!
//! Only in f32: in f16 the transforms would lose more bits than there are to spare, and matrix units make direct products
//! cheap.

use super::call::{Binding, Builder, Call, word, words};
use super::conv::{epilogue, stored};
use super::shader::{Permutation, Shader, Tile, ValueType};
use super::weights::Layout;
use crate::Result;
use crate::plan::{Conv, Resample};

const POINTS: usize = 36;

/// Tiles of all samples from which the products fill their tiles.
const LEAST_TILES: usize = 48;

/// Channels from which the transforms cost less than they save.
const LEAST_CHANNELS: usize = 24;

/// Bytes of tiles in Winograd's domain that are kept at a time; more would fall out of the device's cache.
const MOST_BYTES: usize = 48 << 20;

/// Tiles along the rows and the columns of an output.
fn grid(height: usize, width: usize) -> (usize, usize) {
    (height.div_ceil(4), width.div_ceil(4))
}

/// Whether it pays.
pub(super) fn fits(builder: &Builder<'_>, conv: &Conv) -> bool {
    let output = &builder.plan.tensors[conv.output];
    let (rows, columns) = grid(output.height, output.width);
    let channels: usize = conv.source.parts.iter().map(|&part| builder.plan.tensors[part].channels).sum();
    // The product loads four values at a time.
    let packed = channels.is_multiple_of(4) && output.channels.is_multiple_of(4);
    conv.kernel == 3
        && packed
        && conv.stride == 1
        && conv.source.resample != Resample::AverageDown
        && builder.value() == ValueType::F32
        && builder.batch() * rows * columns >= LEAST_TILES
        && channels >= LEAST_CHANNELS
        && output.channels >= LEAST_CHANNELS
}

pub(super) fn conv(builder: &mut Builder<'_>, conv: &Conv) -> Result<()> {
    let plan = builder.plan;
    let output = &plan.tensors[conv.output];
    let first = &plan.tensors[conv.source.parts[0]];
    let (height, width) = (first.height, first.width);
    let channels: usize = conv.source.parts.iter().map(|&part| plan.tensors[part].channels).sum();
    let columns = output.channels;
    let (grid_rows, grid_columns) = grid(output.height, output.width);
    let sample_tiles = grid_rows * grid_columns;
    let all_tiles = builder.batch() * sample_tiles;
    let weight = builder.weight(conv.weight, Layout::Winograd)?;
    let (epilogue, added) = epilogue(builder, conv)?;
    let (target, result) = builder.map(conv.output)?;
    let coefficients =
        conv.source.norm.map_or(Ok(0), |norm| builder.vector(norm.coefficients).map(|at| at + 1))?;
    let silu = u32::from(conv.source.norm.is_some_and(|norm| norm.silu));
    let upsampled = u32::from(conv.source.resample == Resample::NearestUp);

    let bytes = 4 * POINTS * channels.max(columns);
    let most = (MOST_BYTES.min(builder.context.segment) / bytes).clamp(1, all_tiles);
    // Equal shares, so that the last one is not a crumb.
    let most = all_tiles.div_ceil(all_tiles.div_ceil(most));
    let transformed = builder.scratch(POINTS * most * channels, ValueType::F32)?;
    let products = builder.scratch(POINTS * most * columns, ValueType::F32)?;
    for first_tile in (0..all_tiles).step_by(most) {
        let tiles = most.min(all_tiles - first_tile);
        let place = words([grid_columns, sample_tiles, tiles, first_tile])?;
        let mut start = 0;
        for &part in &conv.source.parts {
            let own = plan.tensors[part].channels;
            let mut params = words([height, width, own, channels, start])?;
            params.extend([coefficients, silu, upsampled]);
            params.extend(&place);
            let call = Call {
                permutation: builder.plain(Shader::WinogradInput),
                params,
                bindings: vec![
                    (1, stored(builder, part)?),
                    (2, Binding::Vectors),
                    (3, part_of(&transformed, POINTS * tiles * channels)),
                ],
                workgroups: word((tiles * own).div_ceil(128))?,
                work: 200.0 * (tiles * own) as f64,
            };
            builder.calls.push(call);
            start += own;
        }
        let count = |tile: Tile| {
            POINTS * tiles.div_ceil(8 * tile.rows as usize) * columns.div_ceil(8 * tile.columns as usize)
        };
        let tile = builder.tile(count);
        builder.calls.push(Call {
            permutation: Permutation { tile, ..builder.plain(Shader::WinogradProduct) },
            params: words([tiles, columns, channels])?,
            bindings: vec![
                (1, part_of(&transformed, POINTS * tiles * channels)),
                (2, weight.clone()),
                (3, part_of(&products, POINTS * tiles * columns)),
            ],
            workgroups: word(count(tile))?,
            work: (POINTS * tiles * channels) as f64 * columns as f64,
        });
        let mut bindings = added.clone();
        bindings.extend([(1, part_of(&products, POINTS * tiles * columns)), (8, target.clone())]);
        builder.calls.push(Call {
            permutation: Permutation { result, ..builder.plain(Shader::WinogradOutput) },
            params: [epilogue.clone(), place].concat(),
            bindings,
            workgroups: word((tiles * columns).div_ceil(128))?,
            work: 200.0 * (tiles * columns) as f64,
        });
    }
    Ok(())
}

/// The first `values` f32 of scratch memory.
fn part_of(scratch: &Binding, values: usize) -> Binding {
    match scratch {
        Binding::Scratch { start, .. } => Binding::Scratch { start: *start, len: 4 * values },
        other => other.clone(),
    }
}
