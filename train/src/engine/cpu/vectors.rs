//! Gradients of what is computed from vectors: group norm's coefficients, and linear layers.

#![allow(unsafe_code)]

use mdm::engine::cpu::reader::Map;
use mdm::engine::cpu::step::Context;
use mdm::plan::{ParamId, TensorId};

use super::outer::{Outer, Rows};
use crate::engine::parameters::Gradients;

/// Groups of every norm.
const GROUPS: usize = 32;
const EPSILON: f64 = 1e-5;

/// What [`Gradient::NormCoefficients`](crate::differentiate::Gradient::NormCoefficients) names.
pub(super) struct NormCoefficients<'a> {
    pub moments: &'a [TensorId],
    pub pixels: usize,
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub weight_id: ParamId,
    pub bias_id: ParamId,
    pub scale_shift: Option<TensorId>,
    pub gradient: TensorId,
    pub outputs: &'a [TensorId],
    pub scale_shift_output: Option<TensorId>,
}

/// # Safety
/// The map has a row of its channels for each sample.
unsafe fn row<'a>(map: Map, sample: usize) -> &'a [f32] {
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(map.at(sample * map.channels), map.channels) }
}

impl NormCoefficients<'_> {
    pub(super) fn run(&self, context: &Context<'_>, gradients: &Gradients<'_>) {
        let channels = self.weight.len();
        let width = channels / GROUPS;
        let parts: Vec<Map> = self.moments.iter().map(|&id| context.map(id)).collect();
        let (mut weight_sums, mut bias_sums) = (vec![0.0f64; channels], vec![0.0f64; channels]);
        let mut affine = vec![(0.0f64, 0.0f64); channels];
        for sample in 0..context.batch() {
            // SAFETY: all of these have two values a channel and sample.
            let (moments, modulation, gradient) = unsafe {
                let moments: Vec<(f64, f64)> = parts
                    .iter()
                    .flat_map(|&part| {
                        let (means, variances) = row(part, sample).split_at(part.channels / 2);
                        means.iter().zip(variances).map(|(&m, &v)| (f64::from(m), f64::from(v)))
                    })
                    .collect();
                let modulation = self.scale_shift.map(|id| row(context.map(id), sample));
                (moments, modulation, row(context.map(self.gradient), sample))
            };
            let modulation_out = self.scale_shift_output.map(|id| {
                // SAFETY: as above; nothing else refers to it.
                unsafe {
                    let start = context.output(id).get().add(sample * 2 * channels);
                    std::slice::from_raw_parts_mut(start, 2 * channels)
                }
            });
            let mut modulated = modulation_out;
            for (group, members) in moments.chunks_exact(width).enumerate() {
                let mean = members.iter().map(|(mean, _)| mean).sum::<f64>() / width as f64;
                let variance =
                    members.iter().map(|(m, v)| v + (m - mean) * (m - mean)).sum::<f64>() / width as f64;
                let inverse = 1.0 / (variance + EPSILON).sqrt();
                let (mut mean_gradient, mut inverse_gradient) = (0.0, 0.0);
                for c in group * width..(group + 1) * width {
                    // scale = weight inverse factor; shift = (bias - mean weight inverse) factor + offset.
                    let (d_scale, d_shift) = (f64::from(gradient[c]), f64::from(gradient[channels + c]));
                    let (weight, bias) = (f64::from(self.weight[c]), f64::from(self.bias[c]));
                    let factor = modulation.map_or(1.0, |values| 1.0 + f64::from(values[c]));
                    weight_sums[c] += factor * inverse * (d_scale - mean * d_shift);
                    bias_sums[c] += factor * d_shift;
                    mean_gradient -= weight * inverse * factor * d_shift;
                    inverse_gradient += weight * factor * (d_scale - mean * d_shift);
                    if let Some(out) = &mut modulated {
                        let d_factor =
                            weight * inverse * d_scale + (bias - mean * weight * inverse) * d_shift;
                        out[c] = d_factor as f32;
                        out[channels + c] = d_shift as f32;
                    }
                }
                let variance_gradient = -0.5 * inverse * inverse * inverse * inverse_gradient;
                let count = (width * self.pixels) as f64;
                let q = 2.0 * variance_gradient / count;
                let p = mean_gradient / count - q * mean;
                affine[group * width..(group + 1) * width].fill((p, q));
            }
            let mut first = 0;
            for &id in self.outputs {
                let own = context.plan.tensors[id].channels / 2;
                // SAFETY: two values a channel and sample.
                let out = unsafe {
                    let start = context.output(id).get().add(sample * 2 * own);
                    std::slice::from_raw_parts_mut(start, 2 * own)
                };
                for (c, &(p, q)) in affine[first..first + own].iter().enumerate() {
                    out[c] = p as f32;
                    out[own + c] = q as f32;
                }
                first += own;
            }
        }
        for (id, sums) in [(self.weight_id, weight_sums), (self.bias_id, bias_sums)] {
            gradients.add(id, &sums);
        }
    }
}

/// What [`Gradient::Linear`](crate::differentiate::Gradient::Linear) names.
pub(super) struct Linear<'a> {
    pub input: TensorId,
    pub silu: bool,
    pub weight: &'a [f32],
    pub weight_id: ParamId,
    pub bias_id: ParamId,
    pub gradient: TensorId,
    pub output: Option<TensorId>,
}

/// Outputs of a task.
const SHARE: usize = 64;

impl Linear<'_> {
    /// Shared scratch memory.
    pub(super) fn scratch(batch: usize, inputs: usize) -> usize {
        batch * inputs
    }

    pub(super) fn run(&self, context: &Context<'_>, gradients: &Gradients<'_>) {
        let input = context.map(self.input);
        let gradient = context.map(self.gradient);
        let (batch, inputs, outputs) = (context.batch(), input.channels, gradient.channels);
        let activated = context.shared;
        for i in 0..batch * inputs {
            // SAFETY: the input and the scratch memory have that many values.
            unsafe {
                let x = *input.data.add(i);
                *activated.get().add(i) = if self.silu { x / (1.0 + (-x).exp()) } else { x };
            }
        }
        let weight_gradient = gradients.of(self.weight_id);
        context.parallel(outputs.div_ceil(SHARE), |task| {
            let first = task * SHARE;
            let height = SHARE.min(outputs - first);
            // SAFETY: each task writes the rows of its own outputs.
            unsafe {
                context.dispatch(Outer {
                    rows: &[Rows {
                        left: gradient.at(first),
                        left_stride: outputs,
                        right: activated.get(),
                        right_stride: inputs,
                        count: batch,
                    }],
                    height,
                    width: inputs,
                    accumulate: true,
                    out: weight_gradient.add(first * inputs).get(),
                    out_stride: inputs,
                });
            }
        });
        let mut sums = vec![0.0f64; outputs];
        for sample in 0..batch {
            // SAFETY: the gradient has `outputs` values a sample.
            for (sum, &value) in sums.iter_mut().zip(unsafe { row(gradient, sample) }) {
                *sum += f64::from(value);
            }
        }
        gradients.add(self.bias_id, &sums);

        let Some(output) = self.output else { return };
        let out = context.output(output);
        context.parallel(inputs.div_ceil(SHARE), |task| {
            let columns = task * SHARE..inputs.min((task + 1) * SHARE);
            for sample in 0..batch {
                // SAFETY: each task writes its own inputs.
                let (to, x, gradient) = unsafe {
                    let start = out.get().add(sample * inputs + columns.start);
                    let to = std::slice::from_raw_parts_mut(start, columns.len());
                    (to, &row(input, sample)[columns.clone()], row(gradient, sample))
                };
                to.fill(0.0);
                for (weights, &g) in self.weight.chunks_exact(inputs).zip(gradient) {
                    to.iter_mut().zip(&weights[columns.clone()]).for_each(|(to, weight)| *to += g * weight);
                }
                if self.silu {
                    for (to, &x) in to.iter_mut().zip(x) {
                        let sigmoid = 1.0 / (1.0 + (-x).exp());
                        *to *= sigmoid * (1.0 + x * (1.0 - sigmoid));
                    }
                }
            }
        });
    }
}
