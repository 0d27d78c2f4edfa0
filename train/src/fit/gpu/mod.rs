//! Heads trained on a GPU: samples lie in its memory, and steps are handed over several at a time, so that it need not wait
//! for the host.
//!
//! Everything is f32, whatever format the device was opened with, and every sum has a fixed order: the same seed gives the same
//! bits on the same device.

mod calls;
mod memory;
mod pages;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use mdm::engine::gpu::GpuEngine;
use mdm::engine::gpu::context::Context;
use mdm::engine::gpu::prepare::{Prepared, Sizes};
use mdm::engine::gpu::shader::ValueType;
use mdm::engine::gpu::submit::{Encoder, map};
use mdm::engine::gpu::weights::{decode, write};
use mdm::model::Head;
use mdm::{Control, Error, Result};

use self::calls::Calls;
use self::memory::HeadMemory;
use self::pages::Pages;
use super::parameters::{BETAS, EPSILON, Layout, Shape};
use super::samples::Parts;
use super::standardise::Standardisation;
use super::state::HeadState;
use super::trainer::{HeadTrainer, batch_weights};
use crate::engine::gpu::optimiser::words;
use crate::engine::gpu::store::read;
use crate::learner::Update;

/// Steps that are handed over at a time.
const STEPS: usize = 16;

/// Samples of these steps together, at most: more would keep the device busy for long enough with fewer.
const STEP_SAMPLES: usize = 1 << 18;

/// Samples on a device, and what trains heads on them there, one after another.
pub(crate) struct GpuHeads {
    /// One for each size of batch.
    trainers: Vec<GpuTrainer>,
}

impl GpuHeads {
    /// Brings `samples` to the device and takes memory for heads of that shape with batches of these sizes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has not enough; those of the device. Steps need no further memory.
    pub(crate) fn new(
        engine: &GpuEngine,
        samples: &Parts<'_>,
        shape: Shape,
        batches: &[usize],
    ) -> Result<Self> {
        let limits = &engine.context()?.limits;
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        Self::with_pages(engine, samples, shape, batches, usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// With the samples in pages of at most `most` bytes.
    pub(crate) fn with_pages(
        engine: &GpuEngine,
        samples: &Parts<'_>,
        shape: Shape,
        batches: &[usize],
        most: usize,
    ) -> Result<Self> {
        let context = engine.context()?;
        let mut batches = batches.to_vec();
        batches.sort_unstable();
        batches.dedup();
        context.checked(|| {
            let pages = Pages::new(&context, samples, most)?;
            let trainer = |&batch: &usize| GpuTrainer::new(&context, &pages, shape, batch);
            Ok(Self { trainers: batches.iter().map(trainer).collect::<Result<_>>()? })
        })
    }

    /// A trainer that goes on from `state`, with batches of one of the sizes that were named.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn start(
        &mut self,
        state: HeadState,
        batch: usize,
        class_weights: Vec<f32>,
    ) -> Result<&mut GpuTrainer> {
        let trainer = self.trainers.iter_mut().find(|trainer| trainer.batch == batch);
        let trainer =
            trainer.ok_or_else(|| Error::invalid("batch", format!("none of {batch} was prepared")))?;
        trainer.start(state, class_weights)?;
        Ok(trainer)
    }
}

/// A head in training on a device.
pub(crate) struct GpuTrainer {
    context: Arc<Context>,
    batch: usize,
    /// Of all samples; a step's are handed over with it.
    labels: Arc<[u8]>,
    /// As it was when training began.
    state: HeadState,
    class_weights: Vec<f32>,
    /// Steps that were taken.
    taken: u64,
    memory: HeadMemory,
    prepared: Prepared,
}

impl GpuTrainer {
    fn new(context: &Arc<Context>, pages: &Pages, shape: Shape, batch: usize) -> Result<Self> {
        let parameters = vec![0.0; Layout::new(&shape).len];
        let state = HeadState::new(shape, Standardisation::none(shape.inputs), parameters);
        let steps = (STEP_SAMPLES / batch).clamp(1, STEPS);
        let memory = HeadMemory::new(context, &state, batch, steps)?;
        let calls = Calls { state: &state, batch, memory: &memory }.all(&pages.pages)?;
        let sizes = Sizes { arena: 0, vectors: 0, scratch: 0, keys: 0 };
        let prepared = Prepared::new(context, calls, Vec::new(), sizes)?;
        Ok(Self {
            context: context.clone(),
            batch,
            labels: pages.labels.clone(),
            state,
            class_weights: Vec::new(),
            taken: 0,
            memory,
            prepared,
        })
    }

    fn start(&mut self, state: HeadState, class_weights: Vec<f32>) -> Result<()> {
        let (context, memory) = (&self.context, &self.memory);
        context.checked(|| {
            let put = |buffer, at: usize, values: &[f32]| {
                write(context, buffer, 4 * at as u64, values, ValueType::F32);
            };
            put(&memory.parameters.buffer, 0, &state.parameters);
            put(&memory.scale.buffer, 0, &state.standardisation.channels().concat());
            for (layer, norm) in memory.norms.iter().enumerate() {
                let running = [&state.running_mean[layer][..], &state.running_var[layer]].concat();
                put(&norm.buffer, running.len(), &running);
            }
            let mut commands = context.device.create_command_encoder(&Default::default());
            for moments in [&memory.first, &memory.second] {
                commands.clear_buffer(&moments.buffer, 0, None);
            }
            context.queue.submit([commands.finish()]);
            Ok(())
        })?;
        self.state = state;
        self.class_weights = class_weights;
        self.taken = 0;
        Ok(())
    }

    /// Writes what differs from step to step to the bytes of all steps.
    fn describe(&self, slot: usize, picked: &[u32], rate: f64, into: &mut [u8]) {
        let update = Update {
            learning_rate: rate,
            beta1: BETAS.0,
            beta2: BETAS.1,
            epsilon: EPSILON,
            weight_decay: 0.0,
            clip: None,
        };
        let labels = || picked.iter().map(|&index| self.labels[index as usize]);
        let weights = batch_weights(&self.class_weights, labels());
        let places = self.memory.steps.places(slot);
        let mut put = |start: usize, words: &mut dyn Iterator<Item = u32>| {
            let to = into[4 * start..].chunks_exact_mut(4);
            to.zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        };
        let update = words(&update, self.taken + slot as u64 + 1, 1.0);
        put(places.update.start, &mut update.iter().map(|value| value.to_bits()));
        put(places.weights.start, &mut weights.iter().map(|value| value.to_bits()));
        put(places.labels.start, &mut labels().map(u32::from));
        put(places.picked.start, &mut picked.iter().copied());
    }

    fn run(&self, picked: &[u32], rates: &[f64], control: &Control<'_>) -> Result<Vec<f64>> {
        let (context, memory) = (&self.context, &self.memory);
        let mut described = vec![0; 4 * memory.steps.slot_words() * rates.len()];
        for (slot, (picked, &rate)) in picked.chunks_exact(self.batch).zip(rates).enumerate() {
            self.describe(slot, picked, rate, &mut described);
        }
        context.queue.write_buffer(&memory.steps.memory.buffer, 0, &described);
        let mut encoder = Encoder::new(context, control, None);
        for slot in 0..rates.len() {
            for step in calls::order(slot) {
                encoder.operation(self.prepared.steps[step].iter(), None)?;
            }
        }
        let count = memory.loss_sums * rates.len();
        encoder.submit(|commands| {
            let (from, to) = (&memory.losses.buffer, &memory.staging.buffer);
            commands.copy_buffer_to_buffer(from, 0, to, 0, Some(4 * count as u64));
        })?;
        encoder.wait()?;
        let bytes = map(context, &memory.staging.buffer)?;
        let losses = decode(&bytes, count, ValueType::F32);
        drop(bytes);
        memory.staging.buffer.unmap();
        let steps = losses.chunks_exact(memory.loss_sums);
        Ok(steps.map(|sums| sums.iter().copied().map(f64::from).sum()).collect())
    }
}

impl HeadTrainer for GpuTrainer {
    fn most_steps(&self) -> usize {
        self.memory.steps.count
    }

    fn steps(&mut self, picked: &[u32], rates: &[f64], control: &Control<'_>) -> Result<Vec<f64>> {
        assert_eq!(picked.len(), self.batch * rates.len(), "samples of {} batches", rates.len());
        let mut losses = Vec::with_capacity(rates.len());
        let batches = picked.chunks(self.batch * self.most_steps());
        for (picked, rates) in batches.zip(rates.chunks(self.most_steps())) {
            control.check()?;
            losses.extend(self.context.checked(|| self.run(picked, rates, control))?);
            self.taken += rates.len() as u64;
        }
        Ok(losses)
    }

    fn head(&mut self) -> Result<Head> {
        let (context, memory) = (&self.context, &self.memory);
        let mut state = self.state.clone();
        context.checked(|| {
            state.parameters = read(context, &memory.parameters, 0, state.parameters.len(), ValueType::F32)?;
            for (layer, norm) in memory.norms.iter().enumerate() {
                let channels = state.shape.hidden[layer];
                let running = read(context, norm, 8 * channels, 2 * channels, ValueType::F32)?;
                let (mean, variance) = running.split_at(channels);
                state.running_mean[layer] = mean.to_vec();
                state.running_var[layer] = variance.to_vec();
            }
            Ok(())
        })?;
        Ok(state.head())
    }
}
