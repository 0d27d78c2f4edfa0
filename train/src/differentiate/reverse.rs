//! Walks the forward pass from its end and writes down the gradients.

use std::collections::HashMap;
use std::ops::Range;

use mdm::plan::{Conv, Op, Plan, Resample, Source, TensorId, TensorInfo};
use mdm::{Error, Result};

use super::instruction::{Contribution, Gradient, Instruction, NormUse};
use super::{has_params, transpose};
use crate::loss::Loss;

/// What flows back into a tensor is added up at once if none of its readers comes within so many operations: the gradients
/// that it comes from need not wait for that.
const NEAR: usize = 8;

pub(super) struct Reverse<'a> {
    pub plan: &'a mut Plan,
    forward: &'a [Op],
    instructions: &'a mut Vec<Instruction>,
    contributions: HashMap<TensorId, Vec<Contribution>>,
    /// Whether a parameter is upstream, for each tensor.
    needed: Vec<bool>,
    /// For each tensor of the forward pass, the operations that read it.
    readers: HashMap<TensorId, Vec<usize>>,
    /// Tensors that were computed again, and what they are a copy of.
    copies: HashMap<TensorId, TensorId>,
}

impl<'a> Reverse<'a> {
    pub(super) fn new(plan: &'a mut Plan, forward: &'a [Op], instructions: &'a mut Vec<Instruction>) -> Self {
        let mut needed = vec![false; plan.tensors.len()];
        let mut readers: HashMap<TensorId, Vec<usize>> = HashMap::new();
        for (index, op) in forward.iter().enumerate() {
            let inputs = op.inputs();
            needed[op.output()] = has_params(op) || inputs.iter().any(|&input| needed[input]);
            for input in inputs {
                readers.entry(input).or_default().push(index);
            }
        }
        Self {
            plan,
            forward,
            instructions,
            contributions: HashMap::new(),
            needed,
            readers,
            copies: HashMap::new(),
        }
    }

    /// The loss, where everything begins.
    pub(super) fn loss(&mut self, answer: TensorId, target: TensorId, loss: Loss) {
        let output = self.like(answer);
        self.push(Gradient::Loss { loss, answer, target, output });
        self.contribute(answer, Contribution::plain(output));
    }

    /// An answer whose gradient is given.
    pub(super) fn given(&mut self, answer: TensorId, gradient: TensorId) {
        self.contribute(answer, Contribution::plain(gradient));
    }

    /// The gradients of all operations; those in `segments` after their tensors were computed again.
    pub(super) fn run(&mut self, segments: &[Range<usize>]) -> Result<()> {
        let mut segments: Vec<Range<usize>> = segments.to_vec();
        let mut ops: Vec<Op> = self.forward.to_vec();
        for index in (0..ops.len()).rev() {
            while segments.last().is_some_and(|segment| segment.start > index) {
                segments.pop();
            }
            // What is still there from the forward pass need not be computed again.
            if let Some(segment) =
                segments.pop_if(|segment| segment.end == index + 1 && index + 1 < ops.len())
            {
                self.compute_again(&mut ops, segment);
            }
            let op = ops[index].clone();
            self.differentiate(&op)?;
            self.add_up_what_waits(index);
        }
        Ok(())
    }

    /// Runs the operations of `segment` again, on new tensors for all maps that nobody outside of it reads. The gradients
    /// read the new ones, so that the first ones' memory is free in between.
    fn compute_again(&mut self, ops: &mut [Op], segment: Range<usize>) {
        let mut renamed: HashMap<TensorId, TensorId> = HashMap::new();
        for op in &ops[segment.clone()] {
            let id = op.output();
            let tensor = &self.plan.tensors[id];
            let inside = self
                .readers
                .get(&id)
                .is_some_and(|readers| readers.iter().all(|reader| segment.contains(reader)));
            if inside && tensor.height * tensor.width > 1 {
                let copy = self.like(id);
                self.needed[copy] = self.needed[id];
                self.copies.insert(copy, id);
                renamed.insert(id, copy);
            }
        }
        for op in &mut ops[segment] {
            let again = renamed.contains_key(&op.output());
            rename(op, &renamed);
            if again {
                self.instructions.push(Instruction::Network(op.clone()));
            }
        }
    }

    fn push(&mut self, gradient: Gradient) {
        self.instructions.push(Instruction::Gradient(gradient));
    }

    fn tensor(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        self.plan.tensors.push(TensorInfo::new(height, width, channels));
        self.needed.push(false);
        self.plan.tensors.len() - 1
    }

    fn like(&mut self, id: TensorId) -> TensorId {
        let TensorInfo { height, width, channels, .. } = self.plan.tensors[id];
        self.tensor(height, width, channels)
    }

    fn contribute(&mut self, tensor: TensorId, contribution: Contribution) {
        if self.needed[tensor] {
            self.contributions.entry(tensor).or_default().push(contribution);
        }
    }

    /// The gradient of `tensor`, all of whose readers were differentiated; none where it changes nothing.
    fn gradient_of(&mut self, tensor: TensorId) -> Option<TensorId> {
        let contributions = self.contributions.remove(&tensor)?;
        Some(self.add_up(tensor, contributions))
    }

    fn add_up(&mut self, tensor: TensorId, contributions: Vec<Contribution>) -> TensorId {
        if let [Contribution::Read { gradient, first_channel: 0, resample: Resample::None, norm: None }] =
            contributions[..]
            && self.plan.tensors[gradient].channels == self.plan.tensors[tensor].channels
        {
            return gradient;
        }
        let output = self.like(tensor);
        self.push(Gradient::Sum { tensor, contributions, output });
        output
    }

    /// Adds up what flowed back into tensors whose next reader is far away.
    fn add_up_what_waits(&mut self, index: usize) {
        let mut waiting: Vec<TensorId> = self.contributions.keys().copied().collect();
        // In an order that does not depend on the map's.
        waiting.sort_unstable();
        for tensor in waiting {
            let original = self.copies.get(&tensor).copied().unwrap_or(tensor);
            let next = self
                .readers
                .get(&original)
                .and_then(|readers| readers.iter().copied().filter(|&reader| reader < index).max());
            // Without a reader left, its own operation comes next.
            let near = next.is_some_and(|next| index - next <= NEAR);
            if near || next.is_none() && !self.is_map(tensor) {
                continue;
            }
            if let Some(contributions) = self.contributions.remove(&tensor) {
                let sum = self.add_up(tensor, contributions);
                self.contributions.insert(tensor, vec![Contribution::plain(sum)]);
            }
        }
    }

    fn is_map(&self, tensor: TensorId) -> bool {
        let TensorInfo { height, width, .. } = self.plan.tensors[tensor];
        height * width > 1
    }

    fn differentiate(&mut self, op: &Op) -> Result<()> {
        let Some(gradient) = self.gradient_of(op.output()) else { return Ok(()) };
        match op {
            Op::Conv(conv) => self.conv(conv, gradient),
            Op::Moments { input, .. } => {
                self.contribute(*input, Contribution::Affine { coefficients: gradient });
            }
            Op::NormCoefficients { moments, weight, bias, scale_shift, .. } => {
                let outputs: Vec<TensorId> = moments.iter().map(|&moments| self.like(moments)).collect();
                let scale_shift_output = scale_shift.map(|id| self.like(id));
                let pixels = self.pixels_behind(moments[0]);
                self.push(Gradient::NormCoefficients {
                    moments: moments.clone(),
                    pixels,
                    weight: *weight,
                    bias: *bias,
                    scale_shift: *scale_shift,
                    gradient,
                    outputs: outputs.clone(),
                    scale_shift_output,
                });
                for (&moments, output) in moments.iter().zip(outputs) {
                    self.contribute(moments, Contribution::plain(output));
                }
                if let Some((id, output)) = scale_shift.zip(scale_shift_output) {
                    self.contribute(id, Contribution::plain(output));
                }
            }
            Op::Linear { input, silu, weight, bias, label_embedding: None, .. } => {
                let output = self.needed[*input].then(|| self.like(*input));
                self.push(Gradient::Linear {
                    input: *input,
                    silu: *silu,
                    weight: *weight,
                    bias: *bias,
                    gradient,
                    output,
                });
                if let Some(output) = output {
                    self.contribute(*input, Contribution::plain(output));
                }
            }
            Op::Attention { qkv, heads, qkv_first, .. } => {
                let output = self.like(*qkv);
                self.push(Gradient::Attention {
                    qkv: *qkv,
                    heads: *heads,
                    qkv_first: *qkv_first,
                    gradient,
                    output,
                });
                self.contribute(*qkv, Contribution::plain(output));
            }
            // Nothing upstream of these has parameters.
            Op::Mask { .. } | Op::AddNoise { .. } | Op::Sinusoid { .. } => {}
            Op::Linear { .. } | Op::FeatureNorm { .. } | Op::Head { .. } => {
                return Err(Error::invalid("network", "has an operation without a gradient"));
            }
        }
        Ok(())
    }

    /// Pixels of the tensor whose moments `moments` are.
    fn pixels_behind(&self, moments: TensorId) -> usize {
        let input = self.forward.iter().find_map(|op| match op {
            Op::Moments { input, output } if *output == moments => Some(*input),
            _ => None,
        });
        input.map_or(1, |input| self.plan.tensors[input].height * self.plan.tensors[input].width)
    }

    fn conv(&mut self, conv: &Conv, gradient: TensorId) {
        let sample_sums = conv.sample_bias.map(|id| self.like(id));
        if conv.bias.is_some() || sample_sums.is_some() {
            self.push(Gradient::ChannelSums { gradient, bias: conv.bias, output: sample_sums });
        }
        if let Some((id, sums)) = conv.sample_bias.zip(sample_sums) {
            self.contribute(id, Contribution::plain(sums));
        }
        self.push(Gradient::ConvWeight {
            source: conv.source.clone(),
            gradient,
            weight: conv.weight,
            kernel: conv.kernel,
            stride: conv.stride,
        });
        if let Some(residual) = &conv.residual {
            self.send_back(residual, gradient);
        }
        if conv.source.parts.iter().any(|&part| self.needed[part]) {
            let before = self.conv_input(conv, gradient);
            if let Some(norm) = conv.source.norm {
                let sums = self.like(norm.coefficients);
                self.push(Gradient::NormSums { source: conv.source.clone(), gradient: before, output: sums });
                self.contribute(norm.coefficients, Contribution::plain(sums));
            }
            self.send_back(&conv.source, before);
        }
    }

    /// The gradient of what a convolution read, at its resolution.
    fn conv_input(&mut self, conv: &Conv, gradient: TensorId) -> TensorId {
        let first = &self.plan.tensors[conv.source.parts[0]];
        let (height, width) = match conv.source.resample {
            Resample::None => (first.height, first.width),
            Resample::NearestUp => (2 * first.height, 2 * first.width),
            Resample::AverageDown => (first.height / 2, first.width / 2),
        };
        let channels = conv.source.parts.iter().map(|&part| self.plan.tensors[part].channels).sum();
        let gradient = if conv.stride == 2 {
            let spread = self.tensor(height, width, self.plan.tensors[gradient].channels);
            self.push(Gradient::Spread { input: gradient, output: spread });
            spread
        } else {
            gradient
        };
        let output = self.tensor(height, width, channels);
        let weight = transpose(self.plan, conv.weight);
        self.instructions.push(Instruction::Network(Op::Conv(Conv {
            source: Source { parts: vec![gradient], norm: None, resample: Resample::None },
            weight,
            bias: None,
            sample_bias: None,
            residual: None,
            kernel: conv.kernel,
            stride: 1,
            output,
        })));
        output
    }

    fn send_back(&mut self, source: &Source, gradient: TensorId) {
        let mut first_channel = 0;
        let norm = source.norm.map(|norm| NormUse { coefficients: norm.coefficients, silu: norm.silu });
        for &part in &source.parts {
            self.contribute(
                part,
                Contribution::Read { gradient, first_channel, resample: source.resample, norm },
            );
            first_channel += self.plan.tensors[part].channels;
        }
    }
}

/// Exchanges tensors of an operation.
fn rename(op: &mut Op, names: &HashMap<TensorId, TensorId>) {
    let to = |id: &mut TensorId| {
        if let Some(new) = names.get(id) {
            *id = *new;
        }
    };
    let source = |source: &mut Source| {
        source.parts.iter_mut().for_each(to);
        if let Some(norm) = &mut source.norm {
            to(&mut norm.coefficients);
        }
    };
    match op {
        Op::Conv(conv) => {
            source(&mut conv.source);
            conv.sample_bias.iter_mut().for_each(to);
            conv.residual.iter_mut().for_each(source);
            to(&mut conv.output);
        }
        Op::Moments { input, output } | Op::Linear { input, output, .. } => {
            to(input);
            to(output);
        }
        Op::NormCoefficients { moments, scale_shift, output, .. } => {
            moments.iter_mut().chain(scale_shift.iter_mut()).for_each(to);
            to(output);
        }
        Op::Attention { qkv, output, .. } => {
            to(qkv);
            to(output);
        }
        Op::Mask { image: input, output, .. }
        | Op::AddNoise { image: input, output, .. }
        | Op::Sinusoid { timesteps: input, output } => {
            to(input);
            to(output);
        }
        Op::FeatureNorm { .. } | Op::Head { .. } => {}
    }
}
