//! A head's parameters as one vector, and Adam on it.

use std::ops::Range;

use mdm::model::Head;

use super::random::Random;

/// Sizes of a head: linear, ReLU, batch norm, linear, ReLU, batch norm, linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) inputs: usize,
    pub(crate) hidden: [usize; 2],
    pub(crate) classes: usize,
}

impl Shape {
    /// The method's head for features of `inputs` channels.
    pub(crate) fn new(inputs: usize, classes: usize) -> Self {
        Self { inputs, hidden: if classes < 30 { [128, 32] } else { [256, 128] }, classes }
    }

    /// Whether `head` has it.
    pub(crate) fn is_of(&self, head: &Head) -> bool {
        head.linear.iter().map(|layer| (layer.inputs, layer.outputs)).eq(self.linear())
    }

    /// Inputs and outputs of each linear layer.
    pub(crate) fn linear(&self) -> [(usize, usize); 3] {
        [(self.inputs, self.hidden[0]), (self.hidden[0], self.hidden[1]), (self.hidden[1], self.classes)]
    }
}

/// Where each parameter lies in the vector.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// `[outputs, inputs]`.
    pub(crate) weight: [Range<usize>; 3],
    /// `[outputs]`.
    pub(crate) bias: [Range<usize>; 3],
    /// Multiplier of each batch norm.
    pub(crate) scale: [Range<usize>; 2],
    /// Summand of each batch norm.
    pub(crate) shift: [Range<usize>; 2],
    /// Length of the vector.
    pub(crate) len: usize,
}

impl Layout {
    pub(crate) fn new(shape: &Shape) -> Self {
        let mut len = 0;
        let mut take = |count: usize| {
            len += count;
            len - count..len
        };
        let weight = shape.linear().map(|(inputs, outputs)| take(inputs * outputs));
        let bias = shape.linear().map(|(_, outputs)| take(outputs));
        let scale = shape.hidden.map(&mut take);
        let shift = shape.hidden.map(&mut take);
        Self { weight, bias, scale, shift, len }
    }

    /// Weights N(0, 0.02), biases 0, batch norms the identity.
    pub(crate) fn initial(&self, random: &mut Random) -> Vec<f32> {
        let mut parameters = vec![0.0; self.len];
        for range in &self.weight {
            parameters[range.clone()].fill_with(|| 0.02 * random.normal());
        }
        for range in &self.scale {
            parameters[range.clone()].fill(1.0);
        }
        parameters
    }
}

/// Decay rates of the means of gradients and of their squares.
pub(crate) const BETAS: (f64, f64) = (0.9, 0.999);
/// Added to the root of the mean of squares.
pub(crate) const EPSILON: f64 = 1e-8;

/// Adam (Kingma and Ba 2015).
#[derive(Clone, Debug)]
pub(crate) struct Adam {
    steps: i32,
    means: Vec<f32>,
    squares: Vec<f32>,
}

impl Adam {
    pub(crate) fn new(len: usize) -> Self {
        Self { steps: 0, means: vec![0.0; len], squares: vec![0.0; len] }
    }

    pub(crate) fn step(&mut self, parameters: &mut [f32], gradient: &[f32], rate: f64) {
        self.steps = self.steps.saturating_add(1);
        let rate = (rate / (1.0 - BETAS.0.powi(self.steps))) as f32;
        let root = (1.0 / (1.0 - BETAS.1.powi(self.steps)).sqrt()) as f32;
        let (keep_mean, keep_square) = (BETAS.0 as f32, BETAS.1 as f32);
        let (new_mean, new_square) = ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32);
        let moments = self.means.iter_mut().zip(&mut self.squares);
        for ((parameter, &slope), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *mean = keep_mean * *mean + new_mean * slope;
            *square = keep_square * *square + new_square * slope * slope;
            *parameter -= rate * *mean / (square.sqrt() * root + EPSILON as f32);
        }
    }
}
