//! Backpropagation: turns the plan of a network into the program of a training step.
//!
//! The program is a list of [`Instruction`]s over one arena, planned by liveness across both passes: the network's own
//! operations, the loss, and the gradient of each operation in reverse. The gradient of a convolution with respect to its
//! input is a convolution again ([`transposed`] weights), so that engines run it on the paths that they have.
//!
//! What flows back into a tensor from its readers is collected and added up in one pass ([`Gradient::Sum`]). Group norm is
//! differentiated as it is computed, in coefficients: readers leave two sums a channel ([`Gradient::NormSums`]), from which
//! follow the gradients of its parameters and an affine map of the tensor that goes into that sum.

mod instruction;
mod recompute;
mod reverse;

pub use instruction::{Contribution, Gradient, Instruction, NormUse};

use mdm::model::UnetConfig;
use mdm::plan::memory::{self, Access};
use mdm::plan::{Op, Param, ParamId, Plan, PlanOptions, TensorId};
use mdm::{Error, Result};

use crate::loss::Loss;

/// Start of the names of parameters that are another one with inputs and outputs exchanged and the kernel turned by
/// half a turn: `[in, out, ...]`.
const TRANSPOSED: &str = "transposed ";

/// The parameter that `name` is the transposed of, if it is one.
pub fn transposed(name: &str) -> Option<&str> {
    name.strip_prefix(TRANSPOSED)
}

/// A training step of one micro-batch.
#[derive(Clone, Debug)]
pub struct Program {
    /// All tensors of both passes, and the parameters: first those of the network, then transposed ones. Its operations
    /// are those of the forward pass.
    pub plan: Plan,
    /// Number of parameters of the network.
    pub parameters: usize,
    /// What is to be done, in order.
    pub instructions: Vec<Instruction>,
    /// How many of them are the forward pass.
    pub forward: usize,
    /// What the network answers: the restored image, or the activations of decoder blocks.
    pub answers: Vec<TensorId>,
    /// Given by the caller, each shaped as its answer: what the network should have answered; or, before the instructions after
    /// the forward pass, the gradient of a loss that the caller computes with respect to the answer.
    pub targets: Vec<TensorId>,
}

impl Program {
    /// The step of a network of `config` for `batch` images of `size` x `size` pixels.
    ///
    /// With `recompute`, only what blocks hand each other is kept for the backward pass; the rest is computed again.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Loss::check`]; [`Error::Invalid`] for networks that do not answer with as many channels as they
    /// are given, or that need classes.
    pub fn new(config: &UnetConfig, batch: usize, size: usize, loss: Loss, recompute: bool) -> Result<Self> {
        if config.out_channels != config.in_channels || config.num_classes.is_some() {
            return Err(Error::invalid(
                "network",
                "training takes networks without classes and with as many output as input channels",
            ));
        }
        let options = PlanOptions {
            batch,
            height: size,
            width: size,
            timestep_slots: 1,
            corruption: None,
            blocks: Vec::new(),
            image: true,
            head: None,
        };
        let plan = Plan::new(config, options)?;
        let (image, answer) = (plan.images[0], plan.outputs[0]);
        Self::of(plan, image, answer, loss, recompute)
    }

    /// The step of a network whose answers are the activations of `blocks`, for a loss that the caller computes. Later blocks are
    /// left out, and so are their parameters.
    ///
    /// # Errors
    /// As [`Plan::new`]; [`Error::Invalid`] for networks that need classes.
    pub fn of_blocks(
        config: &UnetConfig,
        batch: usize,
        size: usize,
        blocks: &[usize],
        recompute: bool,
    ) -> Result<Self> {
        if config.num_classes.is_some() {
            return Err(Error::invalid("network", "training takes networks without classes"));
        }
        let options = PlanOptions {
            batch,
            height: size,
            width: size,
            timestep_slots: 1,
            corruption: None,
            blocks: blocks.to_vec(),
            image: false,
            head: None,
        };
        let plan = Plan::new(config, options)?;
        let (image, answers) = (plan.images[0], plan.outputs.clone());
        Self::differentiated(plan, image, answers, None, recompute)
    }

    /// The step of any operations: `answer` is compared with a target shaped alike, and gradients flow back to all
    /// parameters.
    ///
    /// # Errors
    /// As [`Loss::check`]; [`Error::Invalid`] for operations that have no gradient; [`Error::OutOfMemory`] where sizes overflow.
    pub fn of(plan: Plan, image: TensorId, answer: TensorId, loss: Loss, recompute: bool) -> Result<Self> {
        loss.check()?;
        Self::differentiated(plan, image, vec![answer], Some(loss), recompute)
    }

    fn differentiated(
        mut plan: Plan,
        image: TensorId,
        answers: Vec<TensorId>,
        loss: Option<Loss>,
        recompute: bool,
    ) -> Result<Self> {
        let targets: Vec<TensorId> = (plan.tensors.len()..).take(answers.len()).collect();
        for &answer in &answers {
            let shape = plan.tensors[answer].clone();
            plan.tensors.push(shape);
        }
        let parameters = plan.params.len();
        let forward = plan.ops.clone();
        let mut instructions: Vec<Instruction> = forward.iter().cloned().map(Instruction::Network).collect();
        let mut reverse = reverse::Reverse::new(&mut plan, &forward, &mut instructions);
        for (&answer, &target) in answers.iter().zip(&targets) {
            match loss {
                Some(loss) => reverse.loss(answer, target, loss),
                None => reverse.given(answer, target),
            }
        }
        let segments =
            if recompute { recompute::segments(&forward, &reverse.plan.params) } else { Vec::new() };
        reverse.run(&segments)?;

        let mut program = Self { plan, parameters, instructions, forward: forward.len(), answers, targets };
        program.place(image)?;
        Ok(program)
    }

    /// Gives all tensors their place in the arena.
    fn place(&mut self, image: TensorId) -> Result<()> {
        let plan = &mut self.plan;
        let batch = plan.options.batch;
        let too_large = || {
            Error::OutOfMemory("the activations exceed the address space; use smaller micro-batches".into())
        };
        let lengths = plan
            .tensors
            .iter()
            .map(|tensor| tensor.sample_len().checked_mul(batch).ok_or_else(too_large))
            .collect::<Result<Vec<_>>>()?;
        let accesses: Vec<Access> = self.instructions.iter().map(Instruction::access).collect();
        let given: Vec<TensorId> =
            [image].iter().chain(&self.targets).chain(&plan.timesteps).copied().collect();
        let (ranges, arena) = memory::arrange(
            &lengths,
            memory::ALIGNMENT,
            memory::UNDIVIDED,
            &accesses,
            &given,
            &self.answers,
        )?;
        for (tensor, range) in plan.tensors.iter_mut().zip(ranges) {
            tensor.range = range;
        }
        plan.arena_len = arena;
        Ok(())
    }

    /// The parameters of the network.
    pub fn params(&self) -> &[Param] {
        &self.plan.params[..self.parameters]
    }
}

/// The parameter of an operation's weight with inputs and outputs exchanged, which is added where it is not there yet.
fn transpose(plan: &mut Plan, weight: ParamId) -> ParamId {
    let Param { name, shape } = &plan.params[weight];
    let name = format!("{TRANSPOSED}{name}");
    if let Some(known) = plan.params.iter().position(|param| param.name == name) {
        return known;
    }
    let mut shape = shape.clone();
    shape.swap(0, 1);
    plan.params.push(Param { name, shape });
    plan.params.len() - 1
}

/// Whether `op` reads parameters.
fn has_params(op: &Op) -> bool {
    matches!(op, Op::Linear { .. } | Op::NormCoefficients { .. } | Op::Conv(_))
}
