//! What the network sees and what it is to answer, for one sample.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use mdm::corruption::{alphas_cumprod, hidden_patches, hide, q_sample, signal_and_spread};
use mdm::intensity::{IntensityRange, IntensityScale};
use mdm::model::CorruptionKind;
use mdm::{Error, ImageView, Result};

use super::crop::{background, crop};
use super::draw::{self, below, corruption, decisions};
use super::images::Images;
use super::recipe::Recipe;

/// Crops that are tried in an image before the next one is.
const TRIES: u32 = 4;

/// Images that are tried for a crop that is not background, before one is taken as it is.
const MOST_IMAGES: u32 = 16;

/// A corrupted crop.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// `[size, size, channels]`.
    pub(crate) input: Vec<f32>,
    /// The crop, or the noise that was added to it.
    pub(crate) target: Vec<f32>,
    pub(crate) timestep: u32,
}

/// An image that cannot be used.
#[derive(Clone, Debug)]
pub(crate) struct LeftOut {
    pub(crate) index: usize,
    pub(crate) reason: String,
}

/// Makes samples from their numbers.
pub(crate) struct Sampler {
    recipe: Recipe,
    images: Arc<dyn Images>,
    alphas: Vec<f64>,
    /// Orders of the images in rounds that were used lately.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
    /// How values of images are scaled, where that follows from the values.
    scales: Mutex<HashMap<usize, Arc<IntensityScale>>>,
}

impl Sampler {
    pub(crate) fn new(recipe: Recipe, images: Arc<dyn Images>) -> Result<Self> {
        if images.count() == 0 || u32::try_from(images.count()).is_err() {
            return Err(Error::invalid(
                "images",
                format!("{} of them; 1 to 2^32 - 1 are possible", images.count()),
            ));
        }
        let alphas = match recipe.corruption.kind {
            CorruptionKind::Gaussian { schedule } => alphas_cumprod(schedule, recipe.corruption.timesteps),
            CorruptionKind::Mask { .. } => Vec::new(),
        };
        Ok(Self { recipe, images, alphas, orders: Mutex::default(), scales: Mutex::default() })
    }

    /// Values of a sample.
    pub(crate) fn len(&self) -> usize {
        self.recipe.size() * self.recipe.size() * self.recipe.unet.in_channels
    }

    /// Sample number `number`. `left_out` is told of images that cannot be used.
    ///
    /// # Errors
    /// [`Error::Image`] where no image can be used.
    pub(crate) fn sample(&self, number: u64, left_out: &mut dyn FnMut(LeftOut)) -> Result<Sample> {
        let (first, last) = self.recipe.timesteps();
        let [at] = decisions(self.recipe.seed, number, 0);
        let timestep =
            self.recipe.fixed_timestep.unwrap_or(first + below(at, (last - first + 1) as usize) as u32);
        let crop = self.crop(number, left_out)?;
        Ok(self.corrupted(crop, number, timestep))
    }

    /// As [`sample`](Self::sample), at a timestep of the caller's choice.
    pub(crate) fn sample_at(&self, number: u64, timestep: u32) -> Result<Sample> {
        let crop = self.crop(number, &mut |_| ())?;
        Ok(self.corrupted(crop, number, timestep))
    }

    fn crop(&self, number: u64, left_out: &mut dyn FnMut(LeftOut)) -> Result<Vec<f32>> {
        let Recipe { crops, unet, .. } = &self.recipe;
        let count = self.images.count() as u64;
        let mut out = vec![0.0; self.len()];
        let mut usable = 0;
        let mut last = None;
        'images: for offset in 0..count {
            let index = self.image_of(number, offset);
            for attempt in 0..TRIES {
                if let Err(error) = self.attempt(index, number, 1 + usable * TRIES + attempt, &mut out) {
                    left_out(LeftOut { index, reason: error.to_string() });
                    last = Some(error);
                    continue 'images;
                }
                if crops.skip_background.is_none_or(|most| background(&out, unet.in_channels) <= most) {
                    return Ok(out);
                }
            }
            usable += 1;
            if usable == MOST_IMAGES {
                break;
            }
        }
        match last {
            Some(error) if usable == 0 => {
                Err(Error::Image(format!("none of {count} images can be used; of the last one: {error}")))
            }
            // All of it is background: the last crop is as good as any.
            _ => Ok(out),
        }
    }

    /// Crops image `index` for sample `number`.
    fn attempt(&self, index: usize, number: u64, attempt: u32, out: &mut [f32]) -> Result<()> {
        let Recipe { crops, seed, unet, .. } = &self.recipe;
        let choices = decisions(*seed, number, attempt);
        let mut taken = false;
        let read = catch_unwind(AssertUnwindSafe(|| {
            self.images.read(index, &mut |image| {
                taken = true;
                let scale = self.scale(index, image)?;
                crop(image, scale.as_deref(), crops, choices, self.recipe.size(), unet.in_channels, out)
            })
        }));
        match read {
            Ok(Ok(())) if !taken => Err(Error::Image("was not delivered".into())),
            Ok(read) => read,
            Err(_) => Err(Error::Image("its decoder panicked".into())),
        }
    }

    /// How the values of image `index` become what the network sees. Percentiles are computed once an image.
    fn scale(&self, index: usize, image: &ImageView<'_>) -> Result<Option<Arc<IntensityScale>>> {
        let range = &self.recipe.crops.range;
        let measured = matches!(range, IntensityRange::Percentile { .. });
        let lock = || self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        if measured && let Some(scale) = lock().get(&index) {
            return Ok(Some(scale.clone()));
        }
        let scale = range.scale(&mut { *image })?.map(Arc::new);
        if measured && let Some(scale) = &scale {
            lock().insert(index, scale.clone());
        }
        Ok(scale)
    }

    /// Images come in a new order each round. That of sample `number`, or, with an `offset`, another of the same round in its
    /// place.
    fn image_of(&self, number: u64, offset: u64) -> usize {
        let count = self.images.count() as u64;
        let (round, at) = (number / count, ((number + offset) % count) as usize);
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let known = orders.iter().find(|(of, _)| *of == round).map(|(_, order)| order.clone());
        let order = known.unwrap_or_else(|| {
            let order = Arc::new(draw::order(self.recipe.seed, round, count as usize));
            if orders.len() == 4 {
                orders.remove(0);
            }
            orders.push((round, order.clone()));
            order
        });
        order[at] as usize
    }

    fn corrupted(&self, crop: Vec<f32>, number: u64, timestep: u32) -> Sample {
        let key = corruption(self.recipe.seed, number);
        let (size, channels) = (self.recipe.size(), self.recipe.unet.in_channels);
        let mut input = crop.clone();
        match self.recipe.corruption.kind {
            CorruptionKind::Mask { patch, rule } => {
                let columns = size.div_ceil(patch);
                let patches = columns * columns;
                let (mut noise, mut order) = (vec![0.0; patches], vec![0; patches]);
                key.uniform(timestep, &mut noise);
                let hidden = hidden_patches(rule, timestep, self.recipe.corruption.timesteps, patches);
                for &patch_index in hide(&noise, hidden, &mut order) {
                    let patch_index = patch_index as usize;
                    let (top, left) = (patch_index / columns * patch, patch_index % columns * patch);
                    let (bottom, right) = (size.min(top + patch), size.min(left + patch));
                    for y in top..bottom {
                        input[(y * size + left) * channels..(y * size + right) * channels].fill(0.0);
                    }
                }
                Sample { input, target: crop, timestep }
            }
            CorruptionKind::Gaussian { .. } => {
                let mut noise = crop;
                key.normal(timestep, 0, &mut noise);
                q_sample(&mut input, &noise, self.signal_and_spread(timestep));
                Sample { input, target: noise, timestep }
            }
        }
    }

    /// The image that an answer stands for.
    pub(crate) fn restored(&self, sample: &Sample, answer: &[f32]) -> Vec<f32> {
        self.clean(sample, answer)
    }

    /// The image before it was corrupted.
    pub(crate) fn original(&self, sample: &Sample) -> Vec<f32> {
        self.clean(sample, &sample.target)
    }

    fn clean(&self, sample: &Sample, answer: &[f32]) -> Vec<f32> {
        match self.recipe.corruption.kind {
            CorruptionKind::Mask { .. } => answer.to_vec(),
            CorruptionKind::Gaussian { .. } => {
                let (signal, spread) = self.signal_and_spread(sample.timestep);
                sample.input.iter().zip(answer).map(|(x, noise)| (x - spread * noise) / signal).collect()
            }
        }
    }

    fn signal_and_spread(&self, timestep: u32) -> (f32, f32) {
        signal_and_spread(self.alphas.get(timestep as usize).copied().unwrap_or(1.0))
    }
}

#[cfg(test)]
mod tests {
    use mdm::PixelFormat;
    use mdm::model::{Corruption, MaskRule, NoiseSchedule, UnetConfig};

    use super::*;
    use crate::pretrain::Crops;

    const SIZE: usize = 32;

    /// Grey images of the side of a crop, each of one value.
    struct Plain(Vec<u8>);

    impl Images for Plain {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn name(&self, index: usize) -> String {
            index.to_string()
        }

        fn read(&self, index: usize, take: &mut dyn FnMut(&ImageView<'_>) -> Result<()>) -> Result<()> {
            take(&ImageView::new(&[self.0[index]; SIZE * SIZE], SIZE, SIZE, PixelFormat::Grey8)?)
        }
    }

    fn sampler(kind: CorruptionKind, crops: Crops, images: &[u8]) -> Sampler {
        let recipe = Recipe {
            unet: UnetConfig { image_size: SIZE, in_channels: 1, out_channels: 1, ..UnetConfig::mdm_paper() },
            corruption: Corruption { kind, ..Corruption::default() },
            crops,
            seed: 5,
            ..Recipe::default()
        };
        Sampler::new(recipe, Arc::new(Plain(images.to_vec()))).unwrap()
    }

    fn grey(value: f32) -> u8 {
        ((value + 1.0) * 127.5).round() as u8
    }

    #[test]
    fn as_many_patches_are_hidden_as_the_timestep_says() {
        for (patch, rule) in
            [(4, MaskRule::Paper), (8, MaskRule::Paper), (16, MaskRule::Paper), (8, MaskRule::Official)]
        {
            let sampler = sampler(CorruptionKind::Mask { patch, rule }, Crops::default(), &[10, 250]);
            let (mut least, mut most) = (u32::MAX, 0);
            for number in 0..300 {
                let sample = sampler.sample(number, &mut |_| ()).unwrap();
                let hidden = hidden_patches(rule, sample.timestep, 1000, (SIZE / patch).pow(2));
                let zeros = sample.input.iter().filter(|value| **value == 0.0).count();
                assert_eq!(zeros, hidden * patch * patch, "t = {}", sample.timestep);
                assert!(sample.target.iter().all(|value| *value == sample.target[0] && *value != 0.0));
                (least, most) = (least.min(sample.timestep), most.max(sample.timestep));
            }
            let (first, last) = if rule == MaskRule::Paper { (1, 1000) } else { (0, 999) };
            assert!((first..first + 20).contains(&least) && (last - 20..=last).contains(&most));
        }
    }

    #[test]
    fn noise_is_added_by_the_schedule_and_can_be_taken_away() {
        for schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
            let sampler = sampler(CorruptionKind::Gaussian { schedule }, Crops::default(), &[200]);
            let alphas = alphas_cumprod(schedule, 1000);
            for timestep in [0, 10, 500, 900] {
                let sample = sampler.sample_at(7, timestep).unwrap();
                let (signal, spread) = signal_and_spread(alphas[timestep as usize]);
                let clean = f32::from(200u8) / 127.5 - 1.0;
                for (x, noise) in sample.input.iter().zip(&sample.target) {
                    assert!((x - (signal * clean + spread * noise)).abs() < 1e-5);
                }
                let mean = sample.target.iter().sum::<f32>() / sample.target.len() as f32;
                assert!(mean.abs() < 0.15, "{mean}");
                assert!(sampler.original(&sample).iter().all(|value| (value - clean).abs() < 1e-2));
            }
        }
    }

    #[test]
    fn every_round_takes_every_image() {
        let values: Vec<u8> = (0..7).map(|i| 30 * i + 20).collect();
        let kind = CorruptionKind::Mask { patch: 8, rule: MaskRule::Paper };
        let sampler = sampler(kind, Crops::default(), &values);
        let seen = |numbers: std::ops::Range<u64>| -> Vec<u8> {
            numbers.map(|number| grey(sampler.sample(number, &mut |_| ()).unwrap().target[0])).collect()
        };
        let (first, second) = (seen(0..7), seen(7..14));
        assert_ne!(first, second);
        for mut round in [first, second] {
            round.sort_unstable();
            assert_eq!(round, values);
        }
    }

    #[test]
    fn background_is_taken_only_where_there_is_nothing_else() {
        let kind = CorruptionKind::Mask { patch: 8, rule: MaskRule::Paper };
        let crops = Crops { skip_background: Some(0.9), ..Crops::default() };
        let target = |images: &[u8], number| {
            let sample = sampler(kind, crops.clone(), images).sample(number, &mut |_| ()).unwrap();
            grey(sample.target[0])
        };
        for number in 0..8 {
            assert_eq!(target(&[250, 240, 100, 235], number), 100);
        }
        assert_eq!(target(&[250; 40], 3), 250);
    }
}
