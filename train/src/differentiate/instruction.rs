//! What a training step consists of.

use mdm::plan::memory::Access;
use mdm::plan::{Op, ParamId, Resample, Source, TensorId};

use crate::loss::Loss;

/// One step of the program.
#[derive(Clone, Debug, PartialEq)]
pub enum Instruction {
    /// An operation of the network.
    Network(Op),
    /// A gradient.
    Gradient(Gradient),
}

/// The gradient of the loss with respect to what an operation read, given that with respect to what it wrote. Gradients
/// of parameters are added to those that are there.
#[derive(Clone, Debug, PartialEq)]
pub enum Gradient {
    /// The loss itself and its gradient with respect to the answer.
    Loss {
        /// What is minimised.
        loss: Loss,
        /// `[batch, h, w, c]`.
        answer: TensorId,
        /// Shaped alike.
        target: TensorId,
        /// Shaped alike.
        output: TensorId,
    },
    /// The gradient of a convolution's weight: `sum over pixels of gradient[pixel, out] * source[pixel + tap, in]`.
    ConvWeight {
        /// What the convolution read.
        source: Source,
        /// That of its result.
        gradient: TensorId,
        /// `[out, in, taps...]`.
        weight: ParamId,
        /// 1 or 3.
        kernel: usize,
        /// 1 or 2.
        stride: usize,
    },
    /// Sums over pixels, for what was added to all of them.
    ChannelSums {
        /// `[batch, h, w, c]`.
        gradient: TensorId,
        /// `[c]`, to which the sums over samples are added.
        bias: Option<ParamId>,
        /// `[batch, 1, 1, c]`.
        output: Option<TensorId>,
    },
    /// Zeros between pixels: `output[2 y, 2 x] = input[y, x]`. A convolution of it is the transposed one of stride 2.
    Spread {
        /// `[batch, h, w, c]`.
        input: TensorId,
        /// `[batch, 2 h, 2 w, c]`, or one row or column less.
        output: TensorId,
    },
    /// For each channel of a normalised source, the sums over pixels of `g * x` and of `g`, where g is the gradient of
    /// `x * coefficients[0] + coefficients[1]`: that of the coefficients.
    NormSums {
        /// What was read; it has a norm.
        source: Source,
        /// That of what was read, at its resolution and with all its channels.
        gradient: TensorId,
        /// `[batch, 1, 1, 2 c]`.
        output: TensorId,
    },
    /// What follows from the gradient of a norm's coefficients.
    NormCoefficients {
        /// Moments of the tensors whose concatenation was normalised.
        moments: Vec<TensorId>,
        /// Pixels of these tensors.
        pixels: usize,
        /// `[c]`.
        weight: ParamId,
        /// `[c]`.
        bias: ParamId,
        /// What modulated the norm.
        scale_shift: Option<TensorId>,
        /// `[batch, 1, 1, 2 c]`: that of the coefficients.
        gradient: TensorId,
        /// For each of `moments`, `[batch, 1, 1, 2 c]`: p and q of [`Contribution::Affine`].
        outputs: Vec<TensorId>,
        /// That of `scale_shift`.
        scale_shift_output: Option<TensorId>,
    },
    /// Everything that flows back into a tensor.
    Sum {
        /// The tensor, `[batch, h, w, c]`.
        tensor: TensorId,
        /// What is added up.
        contributions: Vec<Contribution>,
        /// Shaped as the tensor.
        output: TensorId,
    },
    /// That of [`Op::Linear`].
    Linear {
        /// What it read.
        input: TensorId,
        /// Whether SiLU was applied to it.
        silu: bool,
        /// `[out, in]`.
        weight: ParamId,
        /// `[out]`.
        bias: ParamId,
        /// That of its result.
        gradient: TensorId,
        /// That of its input, where it is needed.
        output: Option<TensorId>,
    },
    /// That of [`Op::Attention`].
    Attention {
        /// What it read.
        qkv: TensorId,
        /// Number of heads.
        heads: usize,
        /// As there.
        qkv_first: bool,
        /// That of its result.
        gradient: TensorId,
        /// That of `qkv`.
        output: TensorId,
    },
}

/// What one reader sends back into a tensor x.
#[derive(Clone, Debug, PartialEq)]
pub enum Contribution {
    /// Channels of a gradient, as they are or through the reader's resampling and norm.
    Read {
        /// That of what was read.
        gradient: TensorId,
        /// Where the tensor's channels begin in it.
        first_channel: usize,
        /// How the tensor was read.
        resample: Resample,
        /// How it was normalised.
        norm: Option<NormUse>,
    },
    /// `coefficients[0] + coefficients[1] * x`, for what depends on x through its moments.
    Affine {
        /// `[batch, 1, 1, 2 c]`.
        coefficients: TensorId,
    },
}

/// A norm that a tensor was read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormUse {
    /// `[batch, 1, 1, 2 * channels of the concatenation]`.
    pub coefficients: TensorId,
    /// Whether SiLU followed.
    pub silu: bool,
}

impl Contribution {
    /// A gradient as it is.
    pub fn plain(gradient: TensorId) -> Self {
        Self::Read { gradient, first_channel: 0, resample: Resample::None, norm: None }
    }

    fn reads(&self) -> Vec<TensorId> {
        match self {
            Self::Read { gradient, norm, .. } => {
                [*gradient].into_iter().chain(norm.map(|norm| norm.coefficients)).collect()
            }
            Self::Affine { coefficients } => vec![*coefficients],
        }
    }

    /// Whether the tensor's own value is needed.
    pub fn reads_tensor(&self) -> bool {
        !matches!(self, Self::Read { norm: None, .. })
    }
}

fn of_source(source: &Source) -> Vec<TensorId> {
    source.parts.iter().copied().chain(source.norm.map(|norm| norm.coefficients)).collect()
}

impl Instruction {
    /// The tensors that it reads and writes.
    pub fn access(&self) -> Access {
        match self {
            Self::Network(op) => Access { reads: op.inputs(), writes: vec![op.output()] },
            Self::Gradient(gradient) => gradient.access(),
        }
    }
}

impl Gradient {
    fn access(&self) -> Access {
        let (reads, writes) = match self {
            Self::Loss { answer, target, output, .. } => (vec![*answer, *target], vec![*output]),
            Self::ConvWeight { source, gradient, .. } => {
                (of_source(source).into_iter().chain([*gradient]).collect(), Vec::new())
            }
            Self::ChannelSums { gradient, output, .. } => (vec![*gradient], output.iter().copied().collect()),
            Self::Spread { input, output } => (vec![*input], vec![*output]),
            Self::NormSums { source, gradient, output } => {
                (of_source(source).into_iter().chain([*gradient]).collect(), vec![*output])
            }
            Self::NormCoefficients {
                moments, scale_shift, gradient, outputs, scale_shift_output, ..
            } => (
                moments.iter().copied().chain(*scale_shift).chain([*gradient]).collect(),
                outputs.iter().copied().chain(*scale_shift_output).collect(),
            ),
            Self::Sum { tensor, contributions, output } => {
                let own = contributions.iter().any(Contribution::reads_tensor).then_some(*tensor);
                let reads = contributions.iter().flat_map(Contribution::reads).chain(own).collect();
                (reads, vec![*output])
            }
            Self::Linear { input, gradient, output, .. } => {
                (vec![*input, *gradient], output.iter().copied().collect())
            }
            Self::Attention { qkv, gradient, output, .. } => (vec![*qkv, *gradient], vec![*output]),
        };
        Access { reads, writes }
    }
}
