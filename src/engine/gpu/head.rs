//! The ensemble of heads after their first layer, and the Frobenius norm of the features.

use std::sync::Arc;

use super::call::{Binding, Builder, Call, word, words};
use super::shader::{Cooperative, Permutation, Shader, ValueType};
use super::weights::upload;
use crate::plan::{Combine, Op};
use crate::{Error, Result};

/// Maps that a shader can read.
const MOST_MAPS: usize = 5;

/// Pixels of a workgroup: in a row, or in a patch (rows and columns), as in the shaders.
const PIXELS: usize = 64;
const PATCH: (usize, usize) = (8, 16);

/// Bytes of logits that are kept at a time; with more, heads take turns.
const MOST_LOGITS: usize = 64 << 20;

pub(super) fn feature_norm(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::FeatureNorm { blocks, size, output } = op else { return Ok(()) };
    let samples = builder.batch();
    let (height, width) = *size;
    let rows = builder.scratch(blocks.len() * samples * height, ValueType::F32)?;
    for (index, &block) in blocks.iter().enumerate() {
        let tensor = &builder.plan.tensors[block];
        let start = index * samples * height;
        let call = Call {
            permutation: builder.plain(Shader::FeatureNorm),
            params: words([height, width, tensor.height, tensor.width, tensor.channels, start])?,
            bindings: vec![(1, builder.map(block)?.0), (2, rows.clone())],
            workgroups: word(samples * height)?,
            work: 16.0 * (samples * height * width * tensor.channels) as f64,
        };
        builder.calls.push(call);
    }
    let mut params = words([samples, height, blocks.len()])?;
    params.push(builder.vector(*output)?);
    builder.calls.push(Call {
        permutation: builder.plain(Shader::FeatureNormSum),
        params,
        bindings: vec![(1, rows), (2, Binding::Vectors)],
        workgroups: word(samples)?,
        work: (samples * height * blocks.len()) as f64,
    });
    Ok(())
}

pub(super) fn head(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::Head { partial_sums, feature_norm, shape, params, output } = op else { return Ok(()) };
    if partial_sums.len() > MOST_MAPS {
        return Err(Error::invalid(
            "blocks",
            format!(
                "of {} sizes; the GPU engine reads {MOST_MAPS}, the CPU engine any number",
                partial_sums.len()
            ),
        ));
    }
    let plan = builder.plan;
    let target = &plan.tensors[*output];
    let (height, width) = (target.height, target.width);
    let rows = builder.batch() * height * width;
    let classes = shape.classes;

    let mut weights = Vec::new();
    for &id in params {
        weights.extend(builder.values(id)?);
    }
    let weights = Arc::new(upload(builder.context, "heads", &weights, ValueType::F32)?);

    let here = (MOST_LOGITS / (4 * rows * classes)).clamp(1, shape.heads);
    let logits = here * rows * classes;
    let scratch = builder.scratch(logits + rows * (classes + 1), ValueType::F32)?;
    let Binding::Scratch { start, .. } = scratch else { return Ok(()) };
    let mut sizes = [[0; 8]; 2];
    let mut maps = Vec::new();
    for (index, &id) in partial_sums.iter().enumerate() {
        sizes[0][index] = plan.tensors[id].height;
        sizes[1][index] = plan.tensors[id].width;
        maps.push((3 + index as u32, builder.map(id)?.0));
    }
    let norm = feature_norm.map_or(Ok(0), |id| builder.vector(id).map(|at| at + 1))?;
    let hidden = shape.hidden.0 + shape.hidden.0 * shape.hidden.1 + shape.hidden.1 * classes;
    let patches = builder.batch() * height.div_ceil(PATCH.0) * width.div_ceil(PATCH.1);
    let unit = Cooperative::HEAD;
    let (permutation, blocks) = if !shape.hidden.0.is_multiple_of(4) {
        (builder.plain(Shader::HeadLogits), rows.div_ceil(PIXELS))
    } else if builder.value() == ValueType::F16 && unit.is_for(builder.context.cooperative()) {
        let permutation = builder.plain(Shader::HeadCooperative);
        (Permutation { cooperative: Some(unit), ..permutation }, patches)
    } else {
        (builder.plain(Shader::HeadPatches), patches)
    };
    for first in (0..shape.heads).step_by(here) {
        let count = here.min(shape.heads - first);
        let mut params = words([
            rows,
            height,
            width,
            shape.heads,
            shape.hidden.0,
            shape.hidden.1,
            classes,
            first,
            maps.len(),
        ])?;
        // Arrays of vectors start at multiples of 16 bytes.
        params.resize(12, 0);
        params.extend(words(sizes[0])?);
        params.extend(words(sizes[1])?);
        params.push(norm);
        let mut bindings = vec![
            (1, Binding::whole(weights.clone())),
            (2, Binding::Vectors),
            (8, Binding::Scratch { start, len: 4 * logits }),
        ];
        bindings.extend(maps.iter().cloned());
        builder.calls.push(Call {
            permutation,
            params,
            bindings,
            workgroups: word(count * blocks)?,
            work: (count * rows * (hidden + 8 * maps.len() * shape.hidden.0)) as f64,
        });
        let mut params = words([rows, classes, shape.heads, count])?;
        params.extend([u32::from(first == 0), u32::from(first + count == shape.heads)]);
        params.extend([u32::from(shape.combine == Combine::Vote), u32::from(shape.uncertainty)]);
        params.extend(words([logits, logits + rows * classes])?);
        let call = Call {
            permutation: builder.plain(Shader::HeadCombine),
            params,
            bindings: vec![(1, scratch.clone()), (2, builder.map(*output)?.0)],
            workgroups: word(rows.div_ceil(64))?,
            work: 16.0 * (count * rows * classes) as f64,
        };
        builder.calls.push(call);
    }
    Ok(())
}
