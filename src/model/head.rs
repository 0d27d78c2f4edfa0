//! The MLP that turns features into classes.

use super::stored::all_finite;
use super::{Tensor, WeightSource};
use crate::{Error, Result};

/// A fitted head: linear, ReLU, batch norm, linear, ReLU, batch norm, linear, on each pixel.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// `channels -> hidden.0`, `hidden.0 -> hidden.1`, `hidden.1 -> classes`.
    pub linear: [Linear; 3],
    /// On `hidden.0` and `hidden.1` channels.
    pub norm: [BatchNorm; 2],
}

/// `weight * x + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// `[outputs, inputs]`, row-major.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// Batch norm in evaluation: `(x - running_mean) / sqrt(running_var + EPSILON) * weight + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Scale of each channel.
    pub weight: Vec<f32>,
    /// Shift of each channel.
    pub bias: Vec<f32>,
    /// Mean of each channel over the training.
    pub running_mean: Vec<f32>,
    /// Variance of each channel over the training, at least 0.
    pub running_var: Vec<f32>,
}

impl BatchNorm {
    /// Added to variances.
    pub const EPSILON: f32 = 1e-5;

    fn fields(&self) -> [(&'static str, &Vec<f32>); 4] {
        [
            ("weight", &self.weight),
            ("bias", &self.bias),
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ]
    }
}

/// Names of the linear layers and of the norms after the prefix; 1 and 4 are ReLU.
const LINEAR: [&str; 3] = ["layers.0", "layers.3", "layers.6"];
const NORM: [&str; 2] = ["layers.2", "layers.5"];

impl Head {
    /// Most channels of a layer.
    const LARGEST: usize = 1 << 20;

    /// Feature channels of a pixel.
    pub fn channels(&self) -> usize {
        self.linear[0].inputs
    }

    /// Widths of the two hidden layers.
    pub fn hidden(&self) -> (usize, usize) {
        (self.linear[0].outputs, self.linear[1].outputs)
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.linear[2].outputs
    }

    /// Checks that the layers fit together and that every value is finite.
    ///
    /// # Errors
    /// [`Error::Tensor`], naming the layer.
    pub fn validate(&self) -> Result<()> {
        let wrong = |name: String, reason: String| Err(Error::tensor(name, reason));
        for (layer, name) in self.linear.iter().zip(LINEAR) {
            if [layer.inputs, layer.outputs].iter().any(|&size| size == 0 || size > Self::LARGEST) {
                return wrong(
                    format!("{name}.weight"),
                    format!(
                        "{} to {} channels; a head's layers have 1 to {}",
                        layer.inputs,
                        layer.outputs,
                        Self::LARGEST
                    ),
                );
            }
            if layer.weight.len() != layer.inputs * layer.outputs || layer.bias.len() != layer.outputs {
                return wrong(
                    format!("{name}.weight"),
                    format!(
                        "{} weights and {} biases for {} to {} channels",
                        layer.weight.len(),
                        layer.bias.len(),
                        layer.inputs,
                        layer.outputs
                    ),
                );
            }
            for (part, values) in [("weight", &layer.weight), ("bias", &layer.bias)] {
                if !all_finite(values) {
                    return wrong(
                        format!("{name}.{part}"),
                        "holds values that are not finite; fit the head again".into(),
                    );
                }
            }
        }
        for (index, name) in NORM.iter().enumerate() {
            let channels = self.linear[index].outputs;
            if self.linear[index + 1].inputs != channels {
                return wrong(
                    format!("{}.weight", LINEAR[index + 1]),
                    format!("takes {} channels of the {channels} before it", self.linear[index + 1].inputs),
                );
            }
            for (part, values) in self.norm[index].fields() {
                if values.len() != channels {
                    return wrong(
                        format!("{name}.{part}"),
                        format!("{} values for {channels} channels", values.len()),
                    );
                }
                if !all_finite(values) {
                    return wrong(
                        format!("{name}.{part}"),
                        "holds values that are not finite; fit the head again".into(),
                    );
                }
            }
            if self.norm[index].running_var.iter().any(|&variance| variance < 0.0) {
                return wrong(format!("{name}.running_var"), "holds a negative variance".into());
            }
        }
        Ok(())
    }

    /// Reads and checks a head whose tensors are called `prefix` + `layers.0.weight` and so on: 0, 3 and 6 are linear
    /// layers, 2 and 5 batch norms.
    ///
    /// # Errors
    /// [`Error::Tensor`] where one is missing, has a shape that does not fit its neighbours, or is not finite.
    pub fn from_weights(source: &dyn WeightSource, prefix: &str) -> Result<Self> {
        let vector = |layer: &str, part: &str, length: usize| {
            let name = format!("{prefix}{layer}.{part}");
            let tensor = source.tensor(&name)?;
            if tensor.shape != [length] {
                return Err(Error::tensor(
                    name,
                    format!("shape {:?}; the layer's weights make it [{length}]", tensor.shape),
                ));
            }
            Ok(tensor.data.into_owned())
        };
        let linear = |layer: &str| {
            let name = format!("{prefix}{layer}.weight");
            let Tensor { shape, data } = source.tensor(&name)?;
            let &[outputs, inputs] = &shape[..] else {
                return Err(Error::tensor(name, format!("shape {shape:?}; a linear layer's is [out, in]")));
            };
            Ok(Linear { inputs, outputs, weight: data.into_owned(), bias: vector(layer, "bias", outputs)? })
        };
        let norm = |layer: &str, channels: usize| {
            Ok(BatchNorm {
                weight: vector(layer, "weight", channels)?,
                bias: vector(layer, "bias", channels)?,
                running_mean: vector(layer, "running_mean", channels)?,
                running_var: vector(layer, "running_var", channels)?,
            })
        };
        let linear = [linear(LINEAR[0])?, linear(LINEAR[1])?, linear(LINEAR[2])?];
        let norm = [norm(NORM[0], linear[0].outputs)?, norm(NORM[1], linear[1].outputs)?];
        let head = Self { linear, norm };
        head.validate().map_err(|error| match error {
            Error::Tensor { name, reason } => Error::Tensor { name: format!("{prefix}{name}"), reason },
            other => other,
        })?;
        Ok(head)
    }

    /// Its tensors: name, shape and values, as [`from_weights`](Self::from_weights) reads them.
    pub fn tensors(&self, prefix: &str) -> Vec<(String, Vec<usize>, &[f32])> {
        let mut tensors = Vec::with_capacity(14);
        for (layer, name) in self.linear.iter().zip(LINEAR) {
            tensors.push((
                format!("{prefix}{name}.weight"),
                vec![layer.outputs, layer.inputs],
                &layer.weight[..],
            ));
            tensors.push((format!("{prefix}{name}.bias"), vec![layer.outputs], &layer.bias[..]));
        }
        for (norm, name) in self.norm.iter().zip(NORM) {
            for (part, values) in norm.fields() {
                tensors.push((format!("{prefix}{name}.{part}"), vec![values.len()], &values[..]));
            }
        }
        tensors
    }
}
