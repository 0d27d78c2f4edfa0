//! The network as a list of operations over planned memory: the one description that every engine executes.
//!
//! Tensors are dense, channels last: `[batch, height, width, channels]`; vectors have height and width 1. Group norm is
//! split into [`Op::Moments`] and [`Op::NormCoefficients`], which leave one multiplier and one summand a channel;
//! whoever reads the normalised tensor applies them on the fly, followed by SiLU. Concatenation and resampling are not
//! operations either: a [`Source`] names several tensors and how they are read.

mod builder;
mod check;
#[doc(hidden)]
pub mod memory;

pub use builder::{CorruptionOptions, PlanOptions};

use std::borrow::Cow;
use std::ops::Range;

use crate::model::{UnetConfig, WeightSource};
use crate::{Error, Result};

/// Start of the names of the heads' parameters, see [`PlanOptions::head`].
pub const HEAD_PREFIX: &str = "head.";

/// Index into [`Plan::tensors`].
pub type TensorId = usize;

/// Index into [`Plan::params`].
pub type ParamId = usize;

/// A value computed by an operation or given by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Rows; 1 for vectors.
    pub height: usize,
    /// Columns; 1 for vectors.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Where its values lie in the arena, in units of f32.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// A tensor that has no place yet.
    pub fn new(height: usize, width: usize, channels: usize) -> Self {
        Self { height, width, channels, range: 0..0 }
    }

    /// Values of one sample.
    pub fn sample_len(&self) -> usize {
        self.height * self.width * self.channels
    }
}

/// A parameter that the plan needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape in the checkpoint.
    pub shape: Vec<usize>,
}

impl Param {
    /// Its values, where `weights` has it in this shape. Dimensions of 1 at the end of a shape do not count.
    ///
    /// # Errors
    /// [`Error::Tensor`] where it is missing or has another shape.
    pub fn read<'a>(&self, weights: &'a dyn WeightSource) -> Result<Cow<'a, [f32]>> {
        let tensor = weights.tensor(&self.name)?;
        let significant = |shape: &[usize]| {
            let ones = shape.iter().rev().take_while(|&&size| size == 1).count();
            shape[..shape.len() - ones].to_vec()
        };
        let len = self.shape.iter().product::<usize>();
        if significant(&tensor.shape) != significant(&self.shape) || tensor.data.len() != len {
            let reason = format!("has shape {:?}, the network needs {:?}", tensor.shape, self.shape);
            return Err(Error::tensor(&self.name, reason));
        }
        Ok(tensor.data)
    }
}

/// How a tensor is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// As it is.
    None,
    /// Each pixel stands for 2 x 2 pixels.
    NearestUp,
    /// 2 x 2 pixels are averaged; rows and columns are even in number.
    AverageDown,
}

/// What an operation reads: tensors of equal size concatenated by channel, normalised, then resampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Concatenated in this order.
    pub parts: Vec<TensorId>,
    /// `x * coefficients[0] + coefficients[1]` for each channel, then SiLU if asked for.
    pub norm: Option<Norm>,
    /// Applied last.
    pub resample: Resample,
}

/// An affine map a channel, and a nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// `[batch, 1, 1, 2 * channels]`: all multipliers, then all summands.
    pub coefficients: TensorId,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// A convolution, 3x3 with padding 1 or 1x1 with none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Input.
    pub source: Source,
    /// `[out, in, 3, 3]`, `[out, in, 1, 1]`, `[out, in, 1]` or `[out, in]`.
    pub weight: ParamId,
    /// `[out]`, where there is one.
    pub bias: Option<ParamId>,
    /// `[batch, 1, 1, out]`, added to every pixel.
    pub sample_bias: Option<TensorId>,
    /// Added to the result; its norm is absent.
    pub residual: Option<Source>,
    /// 1 or 3.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Result.
    pub output: TensorId,
}

/// One step of the network.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Sets patches of an image to zero. One random number in [0, 1) is drawn for each patch, rows of patches one after another
    /// ([`NoiseKey::uniform`](crate::corruption::NoiseKey::uniform)); those with the largest are hidden, the later of equals
    /// first. Where the image is no multiple of the patch, patches at its lower and right borders are cut off and count like
    /// whole ones.
    Mask {
        /// `[batch, h, w, c]`.
        image: TensorId,
        /// Side of a patch in pixels.
        patch: usize,
        /// How many patches are hidden.
        hidden: usize,
        /// Part of the random numbers' counter.
        timestep: u32,
        /// `[batch, h, w, c]`.
        output: TensorId,
    },
    /// `signal * image + spread * noise`, with normal random numbers in the order of the image's values
    /// ([`NoiseKey::normal`](crate::corruption::NoiseKey::normal)).
    AddNoise {
        /// `[batch, h, w, c]`.
        image: TensorId,
        /// Factor of the image.
        signal: f32,
        /// Standard deviation of the noise.
        spread: f32,
        /// Part of the random numbers' counter.
        timestep: u32,
        /// `[batch, h, w, c]`.
        output: TensorId,
    },
    /// Cosines, then sines, of `t * exp(-ln(10000) k / half)`.
    Sinusoid {
        /// `[batch, 1, 1, 1]`, the timesteps.
        timesteps: TensorId,
        /// `[batch, 1, 1, 2 * half]`.
        output: TensorId,
    },
    /// `weight * f(input) + bias` on vectors, f SiLU or nothing.
    Linear {
        /// `[batch, 1, 1, in]`.
        input: TensorId,
        /// Whether SiLU is applied to the input.
        silu: bool,
        /// `[out, in]`.
        weight: ParamId,
        /// `[out]`.
        bias: ParamId,
        /// A row of this table is added, chosen by the sample's class.
        label_embedding: Option<ParamId>,
        /// `[batch, 1, 1, out]`.
        output: TensorId,
    },
    /// Mean and variance of each channel of each sample.
    Moments {
        /// `[batch, h, w, c]`.
        input: TensorId,
        /// `[batch, 1, 1, 2 c]`: means, then biased variances.
        output: TensorId,
    },
    /// Group norm over 32 groups (eps 1e-5) as one multiplier and one summand a channel.
    NormCoefficients {
        /// Moments of the tensors whose concatenation is normalised.
        moments: Vec<TensorId>,
        /// `[c]`.
        weight: ParamId,
        /// `[c]`.
        bias: ParamId,
        /// `[batch, 1, 1, 2 c]`, scale then shift: the norm's result is multiplied by `1 + scale`, then `shift` is added.
        scale_shift: Option<TensorId>,
        /// `[batch, 1, 1, 2 c]`: multipliers, then summands.
        output: TensorId,
    },
    /// Convolution.
    Conv(Conv),
    /// `softmax(Q K^T / sqrt(channels a head)) V`, for each head.
    Attention {
        /// `[batch, h, w, 3 c]`.
        qkv: TensorId,
        /// Number of heads.
        heads: usize,
        /// Channels are grouped by query, key, value first; otherwise by head first.
        qkv_first: bool,
        /// `[batch, h, w, c]`.
        output: TensorId,
    },
    /// The Frobenius norm of the bilinearly upsampled (align_corners = false), concatenated blocks, a sample.
    FeatureNorm {
        /// Blocks, each at its own resolution.
        blocks: Vec<TensorId>,
        /// Rows and columns they are upsampled to.
        size: (usize, usize),
        /// `[batch, 1, 1, 1]`: the norm.
        output: TensorId,
    },
    /// What follows the first layer of an ensemble of heads: partial sums upsampled and added, the remaining layers,
    /// softmax, and the combination of the ensemble.
    Head {
        /// First layers' products without bias, `[batch, h_i, w_i, heads * hidden.0]`, each at its own resolution.
        partial_sums: Vec<TensorId>,
        /// Divides the partial sums.
        feature_norm: Option<TensorId>,
        /// What the heads look like.
        shape: HeadShape,
        /// First bias `[heads * hidden.0]`, second weight `[heads, hidden.1, hidden.0]` and bias `[heads * hidden.1]`,
        /// third weight `[heads, classes, hidden.1]` and bias `[heads * classes]`.
        params: [ParamId; 5],
        /// `[batch, h, w, classes]`, and one channel more with the uncertainty where it is wanted.
        output: TensorId,
    },
}

/// An ensemble of MLP heads, batch norms folded into the layer after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Size of the ensemble.
    pub heads: usize,
    /// Widths of the two hidden layers.
    pub hidden: (usize, usize),
    /// Number of classes.
    pub classes: usize,
    /// Whether features are divided by their Frobenius norm.
    pub normalise: bool,
    /// How the ensemble is combined.
    pub combine: Combine,
    /// Whether the last channel is the uncertainty: entropy of the mean minus mean of the entropies, in nats.
    pub uncertainty: bool,
}

/// How an ensemble becomes one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Mean of the probabilities.
    Mean,
    /// Share of heads that prefer the class.
    Vote,
}

/// A network for one batch and window size.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was built from.
    pub config: UnetConfig,
    /// What was asked for.
    pub options: PlanOptions,
    /// All tensors.
    pub tensors: Vec<TensorInfo>,
    /// All parameters.
    pub params: Vec<Param>,
    /// In the order of execution.
    pub ops: Vec<Op>,
    /// What the caller gives beside timesteps, classes and noise: the windows, one tensor that all timestep slots share.
    pub images: Vec<TensorId>,
    /// The timesteps, one tensor for each slot.
    pub timesteps: Vec<TensorId>,
    /// Results: for features the blocks of each slot, slots outermost, then the restored images of each slot if asked
    /// for; for a segmentation its probabilities alone.
    pub outputs: Vec<TensorId>,
    /// Length of the arena that holds all tensors, in units of f32.
    pub arena_len: usize,
}

impl Plan {
    /// Plans the network of `config` for one batch size and window size.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a configuration, size or block that cannot be; [`Error::OutOfMemory`] where sizes overflow.
    pub fn new(config: &UnetConfig, options: PlanOptions) -> Result<Self> {
        builder::build(config, options)
    }

    /// A plan of any operations, placed in memory and checked: for single operations, as tests and benchmarks want them.
    ///
    /// `images` are given by the caller ([`Inputs::images`](crate::engine::Inputs)), whatever they mean; the timesteps
    /// are empty. Tensors need no ranges.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`new`](Self::new).
    pub fn assemble(
        config: UnetConfig,
        batch: usize,
        mut tensors: Vec<TensorInfo>,
        params: Vec<Param>,
        ops: Vec<Op>,
        images: Vec<TensorId>,
        outputs: Vec<TensorId>,
    ) -> Result<Self> {
        let known = |id: &TensorId| *id < tensors.len();
        if !ops.iter().all(|op| op.inputs().iter().chain([&op.output()]).all(known))
            || !images.iter().chain(&outputs).all(known)
        {
            return Err(Error::invalid("plan", "names a tensor that it does not have"));
        }
        let arena_len = memory::place(&mut tensors, &ops, batch, &images, &outputs)?;
        let options = PlanOptions {
            batch,
            height: 1,
            width: 1,
            timestep_slots: 0,
            corruption: None,
            blocks: Vec::new(),
            image: false,
            head: None,
        };
        let plan =
            Self { config, options, tensors, params, ops, images, timesteps: Vec::new(), outputs, arena_len };
        plan.check()?;
        Ok(plan)
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena_len * size_of::<f32>()
    }

    /// Whether it corrupts its images, for which each sample needs a [`NoiseKey`](crate::corruption::NoiseKey).
    pub fn reads_noise(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Mask { .. } | Op::AddNoise { .. }))
    }

    /// The index of the parameter called `name`.
    pub fn param(&self, name: &str) -> Result<ParamId> {
        self.params
            .iter()
            .position(|param| param.name == name)
            .ok_or_else(|| Error::tensor(name, "is not a parameter of this plan"))
    }
}

impl Op {
    /// The tensor it computes.
    pub fn output(&self) -> TensorId {
        match self {
            Op::Mask { output, .. }
            | Op::AddNoise { output, .. }
            | Op::Sinusoid { output, .. }
            | Op::Linear { output, .. }
            | Op::Moments { output, .. }
            | Op::NormCoefficients { output, .. }
            | Op::Attention { output, .. }
            | Op::FeatureNorm { output, .. }
            | Op::Head { output, .. } => *output,
            Op::Conv(conv) => conv.output,
        }
    }

    /// The tensors it reads.
    pub fn inputs(&self) -> Vec<TensorId> {
        fn of_source(source: &Source) -> Vec<TensorId> {
            source.parts.iter().copied().chain(source.norm.map(|norm| norm.coefficients)).collect()
        }
        match self {
            Op::Mask { image, .. } | Op::AddNoise { image, .. } => vec![*image],
            Op::Sinusoid { timesteps, .. } => vec![*timesteps],
            Op::Linear { input, .. } | Op::Moments { input, .. } => vec![*input],
            Op::NormCoefficients { moments, scale_shift, .. } => {
                moments.iter().copied().chain(*scale_shift).collect()
            }
            Op::Conv(conv) => {
                let mut inputs = of_source(&conv.source);
                inputs.extend(conv.sample_bias);
                inputs.extend(conv.residual.iter().flat_map(of_source));
                inputs
            }
            Op::Attention { qkv, .. } => vec![*qkv],
            Op::FeatureNorm { blocks, .. } => blocks.clone(),
            Op::Head { partial_sums, feature_norm, .. } => {
                partial_sums.iter().copied().chain(*feature_norm).collect()
            }
        }
    }
}
