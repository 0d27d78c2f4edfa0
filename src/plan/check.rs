//! Whether a plan is one that engines can execute.

use super::{Op, Plan, Resample, Source, TensorId};
use crate::{Error, Result};

impl Plan {
    /// Checks that all indices exist, that shapes fit together and that no operation overwrites what it reads. Engines
    /// rely on it for memory safety, whoever made the plan.
    pub fn check(&self) -> Result<()> {
        let given = self.images.iter().chain(&self.timesteps);
        if let Some(id) = given.chain(&self.outputs).find(|&&id| id >= self.tensors.len()) {
            return Err(wrong(format!("there is no tensor {id}")));
        }
        for (id, tensor) in self.tensors.iter().enumerate() {
            let len = tensor.sample_len().checked_mul(self.options.batch);
            if tensor.sample_len() == 0
                || len != Some(tensor.range.len())
                || tensor.range.end > self.arena_len
            {
                return Err(wrong(format!("tensor {id} is empty or does not fit its place")));
            }
        }
        for (index, op) in self.ops.iter().enumerate() {
            let tensors = op.inputs().into_iter().chain([op.output()]);
            if let Some(id) = tensors.clone().find(|&id| id >= self.tensors.len()) {
                return Err(wrong(format!("operation {index} has no tensor {id}")));
            }
            let output = &self.tensors[op.output()].range;
            if op.inputs().iter().any(|&id| {
                let range = &self.tensors[id].range;
                range.start < output.end && output.start < range.end
            }) {
                return Err(wrong(format!("operation {index} overwrites what it reads")));
            }
            if !self.fits(op) {
                return Err(wrong(format!("shapes do not fit in operation {index}: {op:?}")));
            }
        }
        Ok(())
    }

    fn shape(&self, id: TensorId) -> (usize, usize, usize) {
        let tensor = &self.tensors[id];
        (tensor.height, tensor.width, tensor.channels)
    }

    fn is_vector(&self, id: TensorId, channels: usize) -> bool {
        self.shape(id) == (1, 1, channels)
    }

    fn param_is(&self, id: usize, shape: &[usize]) -> bool {
        self.params.get(id).is_some_and(|param| {
            let (known, rest) = param.shape.split_at(shape.len().min(param.shape.len()));
            known == shape && rest.iter().all(|&size| size == 1)
        })
    }

    /// Rows, columns and channels that are read, if the source makes sense.
    fn source(&self, source: &Source) -> Option<(usize, usize, usize)> {
        let (height, width, _) = self.shape(*source.parts.first()?);
        let mut channels = 0;
        for &part in &source.parts {
            let (h, w, c) = self.shape(part);
            if (h, w) != (height, width) {
                return None;
            }
            channels += c;
        }
        if source.norm.is_some_and(|norm| !self.is_vector(norm.coefficients, 2 * channels)) {
            return None;
        }
        match source.resample {
            Resample::None => Some((height, width, channels)),
            Resample::NearestUp => Some((2 * height, 2 * width, channels)),
            Resample::AverageDown => (height.is_multiple_of(2) && width.is_multiple_of(2)).then_some((
                height / 2,
                width / 2,
                channels,
            )),
        }
    }

    fn fits(&self, op: &Op) -> bool {
        match op {
            Op::Mask { image, patch, hidden, output, .. } => {
                let (height, width, _) = self.shape(*output);
                *patch > 0
                    && self.shape(*image) == self.shape(*output)
                    && height
                        .div_ceil(*patch)
                        .checked_mul(width.div_ceil(*patch))
                        .is_some_and(|patches| *hidden <= patches && u32::try_from(patches).is_ok())
            }
            Op::AddNoise { image, output, .. } => self.shape(*image) == self.shape(*output),
            Op::Sinusoid { timesteps, output } => {
                self.is_vector(*timesteps, 1) && self.is_vector(*output, self.shape(*output).2 / 2 * 2)
            }
            Op::Linear { input, weight, bias, label_embedding, output, .. } => {
                let (inputs, outputs) = (self.shape(*input).2, self.shape(*output).2);
                self.is_vector(*input, inputs)
                    && self.is_vector(*output, outputs)
                    && self.param_is(*weight, &[outputs, inputs])
                    && self.param_is(*bias, &[outputs])
                    && label_embedding.is_none_or(|id| {
                        self.config.num_classes.is_some_and(|classes| self.param_is(id, &[classes, outputs]))
                    })
            }
            Op::Moments { input, output } => self.is_vector(*output, 2 * self.shape(*input).2),
            Op::NormCoefficients { moments, weight, bias, scale_shift, output } => {
                let doubled: usize = moments.iter().map(|&id| self.shape(id).2).sum();
                moments.iter().all(|&id| self.is_vector(id, self.shape(id).2 / 2 * 2))
                    && (doubled / 2).is_multiple_of(32)
                    && self.param_is(*weight, &[doubled / 2])
                    && self.param_is(*bias, &[doubled / 2])
                    && scale_shift.is_none_or(|id| self.is_vector(id, doubled))
                    && self.is_vector(*output, doubled)
            }
            Op::Conv(conv) => {
                let Some((height, width, inputs)) = self.source(&conv.source) else { return false };
                let (h, w, outputs) = self.shape(conv.output);
                let size = match (conv.kernel, conv.stride) {
                    (1 | 3, 1) => (height, width),
                    (3, 2) => (height.div_ceil(2), width.div_ceil(2)),
                    _ => return false,
                };
                let kernel = [outputs, inputs, conv.kernel, conv.kernel];
                (h, w) == size
                    && self.param_is(conv.weight, if conv.kernel == 1 { &kernel[..2] } else { &kernel })
                    && conv.bias.is_none_or(|id| self.param_is(id, &[outputs]))
                    && conv.sample_bias.is_none_or(|id| self.is_vector(id, outputs))
                    && conv.residual.as_ref().is_none_or(|residual| {
                        residual.norm.is_none() && self.source(residual) == Some((h, w, outputs))
                    })
            }
            Op::Attention { qkv, heads, output, .. } => {
                let (height, width, channels) = self.shape(*output);
                *heads > 0
                    && channels.is_multiple_of(*heads)
                    && self.shape(*qkv) == (height, width, 3 * channels)
            }
            Op::FeatureNorm { output, .. } => self.is_vector(*output, 1),
            Op::Head { partial_sums, feature_norm, shape, params, output } => {
                let (height, width, channels) = self.shape(*output);
                let hidden = shape.heads * shape.hidden.0;
                !partial_sums.is_empty()
                    && height * width > 0
                    && partial_sums.iter().all(|&id| self.shape(id).2 == hidden)
                    && feature_norm.is_none_or(|id| self.is_vector(id, 1))
                    && channels == shape.classes + usize::from(shape.uncertainty)
                    && self.param_is(params[0], &[hidden])
                    && self.param_is(params[1], &[shape.heads, shape.hidden.1, shape.hidden.0])
                    && self.param_is(params[2], &[shape.heads * shape.hidden.1])
                    && self.param_is(params[3], &[shape.heads, shape.classes, shape.hidden.1])
                    && self.param_is(params[4], &[shape.heads * shape.classes])
            }
        }
    }
}

fn wrong(reason: String) -> Error {
    Error::invalid("plan", reason)
}
