//! Group norms of small maps in one call: where nothing but one convolution reads a norm, its moments and coefficients are computed
//! by the call that writes the convolution's normalised input.

use std::collections::{HashMap, HashSet};

use super::call::{Binding, Builder, Call, word, words};
use super::conv::stored;
use super::shader::Shader;
use super::weights::Layout;
use crate::Result;
use crate::plan::{Conv, Op, ParamId, Plan, Resample, Source, TensorId};

/// Pixels up to which a workgroup has all of a sample's. Larger maps would leave most of a large device idle.
const MOST_PIXELS: usize = 1024;

/// Groups of a norm.
const GROUPS: usize = 32;

/// Threads of a workgroup.
const THREADS: usize = 256;

/// A norm without operations of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupNorm {
    weight: ParamId,
    bias: ParamId,
    scale_shift: Option<TensorId>,
}

/// The norms of a plan that take no operations of their own.
#[derive(Debug, Default)]
pub(super) struct GroupNorms {
    /// By their coefficients.
    norms: HashMap<TensorId, GroupNorm>,
    /// Moments and coefficients that nothing reads any more.
    unread: HashSet<TensorId>,
}

impl GroupNorms {
    /// Those of the builder's plan.
    pub(super) fn of(builder: &Builder<'_>) -> Self {
        let plan = builder.plan;
        let uses = Uses::of(plan);
        let norms: HashMap<TensorId, GroupNorm> = plan
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::NormCoefficients { moments, weight, bias, scale_shift, output } => {
                    let Op::Conv(conv) = uses.only_reader(*output)? else { return None };
                    let norm = GroupNorm { weight: *weight, bias: *bias, scale_shift: *scale_shift };
                    (uses.are_of(moments, &conv.source) && fits(builder, conv, *output))
                        .then_some((*output, norm))
                }
                _ => None,
            })
            .collect();
        let is_unread = |op: &&Op| match op {
            Op::Moments { output, .. } => {
                !plan.outputs.contains(output)
                    && uses.readers[*output].iter().all(|reader| norms.contains_key(&reader.output()))
            }
            _ => norms.contains_key(&op.output()),
        };
        let unread = plan.ops.iter().filter(is_unread).map(Op::output).collect();
        Self { norms, unread }
    }

    pub(super) fn get(&self, coefficients: TensorId) -> Option<GroupNorm> {
        self.norms.get(&coefficients).copied()
    }

    /// Whether an operation is left out.
    pub(super) fn replace(&self, op: &Op) -> bool {
        self.unread.contains(&op.output())
    }
}

/// What operations do with each tensor.
struct Uses<'a> {
    plan: &'a Plan,
    readers: Vec<Vec<&'a Op>>,
    writers: Vec<Vec<&'a Op>>,
}

impl<'a> Uses<'a> {
    fn of(plan: &'a Plan) -> Self {
        let (mut readers, mut writers) =
            (vec![Vec::new(); plan.tensors.len()], vec![Vec::new(); plan.tensors.len()]);
        for op in &plan.ops {
            op.inputs().into_iter().for_each(|id| readers[id].push(op));
            writers[op.output()].push(op);
        }
        Self { plan, readers, writers }
    }

    /// The operation that a tensor is computed for, where there is one only.
    fn only_reader(&self, id: TensorId) -> Option<&'a Op> {
        match (self.readers[id].as_slice(), self.writers[id].len()) {
            ([reader], 1) if !self.plan.outputs.contains(&id) => Some(reader),
            _ => None,
        }
    }

    /// Whether `moments` are those of what `source` reads, whenever they are computed.
    fn are_of(&self, moments: &[TensorId], source: &Source) -> bool {
        let is_of = |(&moments, &part): (&TensorId, &TensorId)| match self.writers[moments].as_slice() {
            [Op::Moments { input, .. }] => *input == part && self.writers[part].len() <= 1,
            _ => false,
        };
        moments.len() == source.parts.len() && moments.iter().zip(&source.parts).all(is_of)
    }
}

/// Whether the convolution reads a normalised copy that the shader can write.
fn fits(builder: &Builder<'_>, conv: &Conv, coefficients: TensorId) -> bool {
    let tensors = &builder.plan.tensors;
    let parts = &conv.source.parts;
    let (pixels, channels) = size(builder, &conv.source);
    conv.source.norm.is_some_and(|norm| norm.coefficients == coefficients)
        && parts.len() <= 2
        && parts.iter().all(|&part| tensors[part].channels.is_multiple_of(4))
        && channels.is_multiple_of(GROUPS)
        && columns(channels) <= THREADS
        && pixels <= MOST_PIXELS
        && !super::winograd::fits(builder, conv)
}

/// Pixels and channels before resampling.
fn size(builder: &Builder<'_>, source: &Source) -> (usize, usize) {
    let tensors = &builder.plan.tensors;
    let first = &tensors[source.parts[0]];
    (first.height * first.width, source.parts.iter().map(|&part| tensors[part].channels).sum())
}

/// Fours of channels that are whole groups, the fewest.
fn columns(channels: usize) -> usize {
    let own = channels / GROUPS;
    (1..=4).map(|groups| groups * own).find(|own| own.is_multiple_of(4)).unwrap_or(own) / 4
}

/// Writes what `source` stands for, before it is upsampled, to `copy`, `out_pixels` a sample in rows of `width`.
pub(super) fn group_norm(
    builder: &mut Builder<'_>,
    source: &Source,
    norm: GroupNorm,
    (out_pixels, width): (usize, usize),
    copy: &Binding,
) -> Result<()> {
    let samples = builder.batch();
    let (pixels, channels) = size(builder, source);
    let columns = columns(channels);
    let packs =
        |index: usize| source.parts.get(index).map_or(0, |&part| builder.plan.tensors[part].channels / 4);
    let mut params = words([pixels, out_pixels, width, packs(0), packs(1), columns, channels / GROUPS])?;
    // Vectors start at multiples of four values.
    params.push(norm.scale_shift.map_or(Ok(0), |id| builder.vector(id).map(|at| at / 4 + 1))?);
    params.push(u32::from(source.norm.is_some_and(|norm| norm.silu)));
    params.push(u32::from(source.resample == Resample::AverageDown));
    let mut bindings = vec![(2, Binding::Vectors), (3, copy.clone())];
    for (number, &part) in [1, 4].into_iter().zip(&source.parts) {
        bindings.push((number, stored(builder, part)?));
    }
    bindings.push((5, builder.weight(norm.weight, Layout::Exact)?));
    bindings.push((6, builder.weight(norm.bias, Layout::Exact)?));
    builder.calls.push(Call {
        permutation: builder.plain(Shader::GroupNorm),
        params,
        bindings,
        workgroups: word(samples * (channels / 4 / columns))?,
        work: 12.0 * (samples * pixels * channels) as f64,
    });
    Ok(())
}
