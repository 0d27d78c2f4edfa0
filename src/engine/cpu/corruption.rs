//! What is done to images before the network sees them.

#![allow(unsafe_code)]

use super::step::{Context, ScratchSize, Step};
use crate::corruption::{hide, q_sample};
use crate::plan::{Plan, TensorId};

/// Values that get noise at a time; a multiple of the four numbers that are drawn at once.
const CHUNK: usize = 1024;

pub struct Mask {
    image: TensorId,
    patch: usize,
    hidden: usize,
    timestep: u32,
    output: TensorId,
    patches: usize,
}

impl Mask {
    pub fn new(
        image: TensorId,
        patch: usize,
        hidden: usize,
        timestep: u32,
        output: TensorId,
        plan: &Plan,
    ) -> Self {
        let tensor = &plan.tensors[image];
        let patches = tensor.height.div_ceil(patch) * tensor.width.div_ceil(patch);
        Self { image, patch, hidden, timestep, output, patches }
    }
}

impl Step for Mask {
    fn scratch(&self) -> ScratchSize {
        // The random numbers and the order of the patches.
        ScratchSize { shared: 0, private: 2 * self.patches }
    }

    fn run(&self, context: &Context<'_>) {
        let image = context.map(self.image);
        let output = context.output(self.output);
        let (height, width, channels) = (image.height, image.width, image.channels);
        let len = height * width * channels;
        let columns = width.div_ceil(self.patch);
        context.parallel(context.batch(), |sample| {
            context.with_private(|scratch| {
                // SAFETY: image and output have `len` values a sample, and the scratch memory is divided as it was added up.
                let (pixels, scratch) = unsafe {
                    let pixels = std::slice::from_raw_parts_mut(output.get().add(sample * len), len);
                    pixels.copy_from_slice(std::slice::from_raw_parts(image.at(sample * len), len));
                    (pixels, std::slice::from_raw_parts_mut(scratch, 2 * self.patches))
                };
                let (noise, order) = scratch.split_at_mut(self.patches);
                context.noise[sample].uniform(self.timestep, noise);
                for &patch in hide(noise, self.hidden, bytemuck::cast_slice_mut(order)) {
                    let patch = patch as usize;
                    let (top, left) = (patch / columns * self.patch, patch % columns * self.patch);
                    let (bottom, right) = (height.min(top + self.patch), width.min(left + self.patch));
                    for y in top..bottom {
                        pixels[(y * width + left) * channels..(y * width + right) * channels].fill(0.0);
                    }
                }
            });
        });
    }
}

pub struct AddNoise {
    pub image: TensorId,
    pub signal: f32,
    pub spread: f32,
    pub timestep: u32,
    pub output: TensorId,
}

impl Step for AddNoise {
    fn run(&self, context: &Context<'_>) {
        let image = context.map(self.image);
        let output = context.output(self.output);
        let len = image.height * image.width * image.channels;
        let chunks = len.div_ceil(CHUNK);
        context.parallel(context.batch() * chunks, |task| {
            let (sample, first) = (task / chunks, task % chunks * CHUNK);
            let count = CHUNK.min(len - first);
            // SAFETY: image and output have `len` values a sample; each task writes its own chunk.
            let values = unsafe {
                let start = sample * len + first;
                let values = std::slice::from_raw_parts_mut(output.get().add(start), count);
                values.copy_from_slice(std::slice::from_raw_parts(image.at(start), count));
                values
            };
            let mut noise = [0.0; CHUNK];
            let noise = &mut noise[..count];
            context.noise[sample].normal(self.timestep, first / 4, noise);
            q_sample(values, noise, (self.signal, self.spread));
        });
    }
}
