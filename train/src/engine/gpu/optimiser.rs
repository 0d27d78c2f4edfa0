//! AdamW, moving averages and the gradient's norm, page by page.

use std::sync::Arc;

use mdm::Result;
use mdm::control::Control;
use mdm::engine::gpu::call::{Binding, Call, word};
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::prepare::{Prepared, Sizes};
use mdm::engine::gpu::shader::ValueType;
use mdm::engine::gpu::submit::{Dispatch, Encoder};
use mdm::engine::gpu::weights::write;
use wgpu::BufferUsages as Usage;

use super::program::GpuProgram;
use super::shaders::{ADAMW, AVERAGE, SQUARE_SUMS, plain};
use super::store::{Pages, read};
use crate::learner::Update;

/// Values whose squares a workgroup adds up, as in the shader.
const SQUARES: usize = 16_384;

/// Words of the shader's `Update`.
pub(crate) const UPDATE: usize = 9;

/// What the optimiser knows of the parameters of a program, and its calls.
pub(super) struct Optimiser {
    pub(super) first: Pages,
    pub(super) second: Pages,
    /// Moving averages with their decay rates.
    pub(super) averages: Vec<(f64, Pages)>,
    update: Arc<Memory>,
    squares: Arc<Memory>,
    /// How many sums of squares there are.
    sums: usize,
    prepared: Prepared,
}

impl Optimiser {
    pub(super) fn new(context: &Context, program: &GpuProgram, ema_rates: &[f64]) -> Result<Self> {
        let layout = &program.layout;
        let first = Pages::new(context, "mean of gradients", layout)?;
        let second = Pages::new(context, "mean of squared gradients", layout)?;
        let average = |&rate: &f64| Ok((rate, Pages::new(context, "moving average", layout)?));
        let averages: Vec<(f64, Pages)> = ema_rates.iter().map(average).collect::<Result<_>>()?;
        let sums: usize = layout.pages.iter().map(|len| len.div_ceil(SQUARES)).sum();
        let usage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let update = Arc::new(context.buffer("update", 4 * UPDATE as u64, usage)?);
        let squares = Arc::new(context.buffer("squares of gradients", 4 * sums as u64, usage)?);

        let whole = |pages: &Pages, index: usize| Binding::whole(pages.memory()[index].clone());
        let (mut norm, mut step) = (Vec::new(), Vec::new());
        let mut to = 0;
        for (index, &len) in layout.pages.iter().enumerate() {
            norm.push(Call {
                permutation: plain(SQUARE_SUMS),
                params: vec![word(len)?, word(to)?],
                bindings: vec![(1, whole(&program.gradients, index)), (2, Binding::whole(squares.clone()))],
                workgroups: word(len.div_ceil(SQUARES))?,
                work: len as f64,
            });
            to += len.div_ceil(SQUARES);
            let each = |params, bindings, shader| {
                let workgroups = word(len.div_ceil(256))?;
                Ok::<_, mdm::Error>(Call {
                    permutation: plain(shader),
                    params,
                    bindings,
                    workgroups,
                    work: 8.0 * len as f64,
                })
            };
            let bindings = vec![
                (1, Binding::whole(update.clone())),
                (2, whole(&program.values, index)),
                (3, whole(&program.gradients, index)),
                (4, whole(&first, index)),
                (5, whole(&second, index)),
            ];
            step.push(each(vec![word(len)?], bindings, ADAMW)?);
            for (rate, average) in &averages {
                let rest = ((1.0 - rate) as f32).to_bits();
                let bindings = vec![(1, whole(&program.values, index)), (2, whole(average, index))];
                step.push(each(vec![word(len)?, rest], bindings, AVERAGE)?);
            }
        }
        let sizes = Sizes { arena: 0, vectors: 0, scratch: 0, keys: 0 };
        let prepared = Prepared::new(context, vec![norm, step], Vec::new(), sizes)?;
        Ok(Self { first, second, averages, update, squares, sums, prepared })
    }

    fn run(&self, context: &Context, dispatches: &[Dispatch]) -> Result<()> {
        let control = Control::none();
        let mut encoder = Encoder::new(context, &control, None);
        encoder.operation(dispatches.iter(), None)?;
        encoder.submit(|_| ())?;
        encoder.wait()
    }

    /// Euclidean norm of the gradients.
    pub(super) fn norm(&self, context: &Context) -> Result<f64> {
        self.run(context, &self.prepared.steps[0])?;
        let sums = read(context, &self.squares, 0, self.sums, ValueType::F32)?;
        Ok(sums.into_iter().map(f64::from).sum::<f64>().sqrt())
    }

    /// One step, the `step`th from 1 on, by `scale` times the gradients, which are forgotten.
    pub(super) fn step(&self, context: &Context, update: &Update, step: u64, scale: f64) -> Result<()> {
        write(context, &self.update.buffer, 0, &words(update, step, scale), ValueType::F32);
        self.run(context, &self.prepared.steps[1])
    }
}

/// The shader's `Update` for the `step`th step from 1 on, by `scale` times the gradients.
pub(crate) fn words(update: &Update, step: u64, scale: f64) -> [f32; UPDATE] {
    let Update { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *update;
    let power = i32::try_from(step).unwrap_or(i32::MAX);
    let words: [f64; UPDATE] = [
        scale,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        learning_rate / (1.0 - beta1.powi(power)),
        (1.0 - beta2.powi(power)).sqrt(),
        epsilon,
        1.0 - learning_rate * weight_decay,
    ];
    words.map(|word| word as f32)
}
