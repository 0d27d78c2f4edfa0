//! The head on the activations of a network that learns with it: forward, loss, and gradients of its parameters and of the
//! activations.
//!
//! The first layer commutes with bilinear interpolation, so that it is applied where the activations are, as in inference,
//! and its results are interpolated at the labelled pixels.

use std::ops::Range;

use mdm::engine::cpu::upsample::{Between, between};
use mdm::model::{BatchNorm, Head, Linear};
use rayon::prelude::*;

use crate::fit::chunk::softmax;
use crate::fit::matrix::{Matrix, product};
use crate::fit::random::Random;
use crate::fit::standardise::Standardisation;
use crate::metrics::UNLABELLED;

/// Widths of the hidden layers, those of the method's head.
const HIDDEN: [usize; 2] = [128, 32];

/// The activations of one decoder block for a micro-batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map<'a> {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    /// `[batch, height, width, channels]`.
    pub(crate) values: &'a [f32],
}

impl Map<'_> {
    fn sample(&self, sample: usize) -> &[f32] {
        let len = self.height * self.width * self.channels;
        &self.values[sample * len..][..len]
    }
}

/// Labelled pixels of one crop: index into the crop, class, and weight in the loss.
pub(crate) type Labelled = Vec<(u32, u8, f32)>;

/// Which loss is added to the cross entropy, and how much it counts a crop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dice(pub(crate) Option<f32>);

/// Linear, ReLU, linear, ReLU, linear, on standardised features.
#[derive(Clone)]
pub(crate) struct TunedHead {
    inputs: usize,
    classes: usize,
    standardisation: Standardisation,
    weight: [Range<usize>; 3],
    bias: [Range<usize>; 3],
    pub(crate) parameters: Vec<f32>,
}

/// What a batch says.
pub(crate) struct Passed {
    /// Mean loss.
    pub(crate) loss: f64,
    /// Labelled pixels that got their class, and all of them.
    pub(crate) right: (u64, u64),
    /// Of all parameters.
    pub(crate) gradient: Vec<f32>,
    /// Of each block's activations, shaped as they are.
    pub(crate) maps: Vec<Vec<f32>>,
}

impl TunedHead {
    /// Weights of variance 2 / inputs (He et al. 2015), small ones in the last layer.
    pub(crate) fn new(
        standardisation: Standardisation,
        inputs: usize,
        classes: usize,
        random: &mut Random,
    ) -> Self {
        let sizes = [(inputs, HIDDEN[0]), (HIDDEN[0], HIDDEN[1]), (HIDDEN[1], classes)];
        let mut len = 0;
        let mut take = |count: usize| {
            len += count;
            len - count..len
        };
        let weight = sizes.map(|(inputs, outputs)| take(inputs * outputs));
        let bias = sizes.map(|(_, outputs)| take(outputs));
        let mut parameters = vec![0.0; len];
        for (layer, (range, (inputs, _))) in weight.iter().zip(sizes).enumerate() {
            let deviation = if layer == 2 { 0.02 } else { (2.0 / inputs as f32).sqrt() };
            parameters[range.clone()].fill_with(|| deviation * random.normal());
        }
        Self { inputs, classes, standardisation, weight, bias, parameters }
    }

    fn layer(&self, layer: usize, inputs: usize) -> (Matrix<'_>, &[f32]) {
        let bias = &self.parameters[self.bias[layer].clone()];
        (Matrix::new(&self.parameters[self.weight[layer].clone()], bias.len(), inputs), bias)
    }

    /// The head for features as they come, in the form of model files.
    pub(crate) fn head(&self) -> Head {
        let linear = |layer: usize, inputs: usize| {
            let (_, bias) = self.layer(layer, inputs);
            Linear {
                inputs,
                outputs: bias.len(),
                weight: self.parameters[self.weight[layer].clone()].to_vec(),
                bias: bias.to_vec(),
            }
        };
        // There is none: in the form of the file, the identity.
        let norm = |channels: usize| BatchNorm {
            weight: vec![1.0; channels],
            bias: vec![0.0; channels],
            running_mean: vec![0.0; channels],
            running_var: vec![1.0 - BatchNorm::EPSILON; channels],
        };
        let mut first = linear(0, self.inputs);
        self.standardisation.fold(&mut first);
        Head {
            linear: [first, linear(1, HIDDEN[0]), linear(2, HIDDEN[1])],
            norm: [norm(HIDDEN[0]), norm(HIDDEN[1])],
        }
    }

    /// Forward and back over crops of `size` pixels a side. Weights of all pixels add up to 1.
    pub(crate) fn pass(&self, maps: &[Map<'_>], size: usize, labelled: &[Labelled], dice: Dice) -> Passed {
        let crops: Vec<Crop> = labelled
            .par_iter()
            .enumerate()
            .map(|(sample, labelled)| self.crop(maps, sample, size, labelled, dice))
            .collect();
        // In their order, so that the bits do not depend on the number of threads.
        let mut passed = Passed {
            loss: 0.0,
            right: (0, 0),
            gradient: vec![0.0; self.parameters.len()],
            maps: maps.iter().map(|map| Vec::with_capacity(map.values.len())).collect(),
        };
        for crop in crops {
            passed.loss += crop.loss;
            passed.right.0 += crop.right;
            passed.right.1 += crop.pixels;
            for (sum, value) in passed.gradient.iter_mut().zip(&crop.gradient) {
                *sum += value;
            }
            for (all, own) in passed.maps.iter_mut().zip(&crop.maps) {
                all.extend_from_slice(own);
            }
        }
        passed
    }

    fn crop(
        &self,
        maps: &[Map<'_>],
        sample: usize,
        size: usize,
        labelled: &[(u32, u8, f32)],
        dice: Dice,
    ) -> Crop {
        let count = labelled.len();
        let mut crop = Crop {
            loss: 0.0,
            right: 0,
            pixels: count as u64,
            gradient: vec![0.0; self.parameters.len()],
            maps: Vec::new(),
        };
        if count == 0 {
            crop.maps = maps.iter().map(|map| vec![0.0; map.sample(sample).len()]).collect();
            return crop;
        }
        let [first, second, third] = [(0, self.inputs), (1, HIDDEN[0]), (2, HIDDEN[1])]
            .map(|(layer, inputs)| self.layer(layer, inputs));
        let groups = self.groups(maps, sample);
        let taps: Vec<Taps> = groups.iter().map(|group| group.taps(size)).collect();

        let mut hidden = Vec::with_capacity(count * HIDDEN[0]);
        for _ in 0..count {
            hidden.extend_from_slice(first.1);
        }
        for (group, taps) in groups.iter().zip(&taps) {
            let (rows, weight) =
                (group.height * group.width, first.0.columns_of(group.channels.start, group.channels.end));
            let mut results = vec![0.0; rows * HIDDEN[0]];
            product(
                &mut results,
                Matrix::new(&group.values, rows, group.channels.len()),
                weight.transposed(),
            );
            for (out, (pixel, ..)) in hidden.chunks_exact_mut(HIDDEN[0]).zip(labelled) {
                for (at, share) in taps.of(*pixel) {
                    let from = &results[at * HIDDEN[0]..][..HIDDEN[0]];
                    for (out, from) in out.iter_mut().zip(from) {
                        *out += share * from;
                    }
                }
            }
        }
        relu(&mut hidden);
        let mut narrow = vec![0.0; count * HIDDEN[1]];
        product(&mut narrow, Matrix::new(&hidden, count, HIDDEN[0]), second.0.transposed());
        for row in narrow.chunks_exact_mut(HIDDEN[1]) {
            row.iter_mut().zip(second.1).for_each(|(value, bias)| *value += bias);
        }
        relu(&mut narrow);
        let mut logits = vec![0.0; count * self.classes];
        product(&mut logits, Matrix::new(&narrow, count, HIDDEN[1]), third.0.transposed());
        self.loss(&mut logits, third.1, labelled, dice, &mut crop);

        // Back: `logits` holds the gradient with respect to them.
        let outer = Matrix::new(&logits, count, self.classes);
        product(
            &mut crop.gradient[self.weight[2].clone()],
            outer.transposed(),
            Matrix::new(&narrow, count, HIDDEN[1]),
        );
        sum_rows(&mut crop.gradient[self.bias[2].clone()], &logits);
        let mut back = vec![0.0; narrow.len()];
        product(&mut back, outer, third.0);
        where_active(&mut back, &narrow);
        let outer = Matrix::new(&back, count, HIDDEN[1]);
        product(
            &mut crop.gradient[self.weight[1].clone()],
            outer.transposed(),
            Matrix::new(&hidden, count, HIDDEN[0]),
        );
        sum_rows(&mut crop.gradient[self.bias[1].clone()], &back);
        let mut wide = vec![0.0; hidden.len()];
        product(&mut wide, outer, second.0);
        where_active(&mut wide, &hidden);
        sum_rows(&mut crop.gradient[self.bias[0].clone()], &wide);
        for (group, taps) in groups.iter().zip(&taps) {
            let rows = group.height * group.width;
            let mut spread = vec![0.0; rows * HIDDEN[0]];
            for (from, (pixel, ..)) in wide.chunks_exact(HIDDEN[0]).zip(labelled) {
                for (at, share) in taps.of(*pixel) {
                    let out = &mut spread[at * HIDDEN[0]..][..HIDDEN[0]];
                    for (out, from) in out.iter_mut().zip(from) {
                        *out += share * from;
                    }
                }
            }
            let outer = Matrix::new(&spread, rows, HIDDEN[0]);
            let channels = group.channels.len();
            let mut own = vec![0.0; HIDDEN[0] * channels];
            product(&mut own, outer.transposed(), Matrix::new(&group.values, rows, channels));
            let weights = &mut crop.gradient[self.weight[0].clone()];
            for (to, from) in weights.chunks_exact_mut(self.inputs).zip(own.chunks_exact(channels)) {
                to[group.channels.clone()].copy_from_slice(from);
            }
            let mut gradient = vec![0.0; rows * channels];
            product(&mut gradient, outer, first.0.columns_of(group.channels.start, group.channels.end));
            self.split(group, &gradient, &mut crop.maps);
        }
        crop
    }

    /// Turns logits into the gradient of the loss with respect to them.
    fn loss(
        &self,
        logits: &mut [f32],
        bias: &[f32],
        labelled: &[(u32, u8, f32)],
        dice: Dice,
        crop: &mut Crop,
    ) {
        let classes = self.classes;
        let mut overlap = vec![[0.0f64; 2]; classes];
        for (row, &(_, label, weight)) in logits.chunks_exact_mut(classes).zip(labelled) {
            let label = usize::from(label);
            let wanted = row[label] + bias[label];
            let total = softmax(row, bias);
            crop.loss += f64::from(weight) * f64::from(total - wanted);
            let best = (0..classes).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            crop.right += u64::from(best == label);
            overlap[label][0] += f64::from(row[label]);
            for (class, sums) in overlap.iter_mut().enumerate() {
                sums[1] += f64::from(row[class]) + f64::from(u8::from(class == label));
            }
        }
        let present = {
            let mut present = vec![false; classes];
            labelled.iter().for_each(|(_, label, _)| present[usize::from(*label)] = true);
            present
        };
        let terms = present.iter().filter(|present| **present).count() as f32;
        // Of 1 - 2 shared / both, by shared and by both.
        let slopes: Vec<[f32; 2]> = overlap
            .iter()
            .zip(&present)
            .map(|(&[shared, both], &present)| match dice.0.filter(|_| present) {
                Some(share) => {
                    let share = f64::from(share / terms);
                    crop.loss += share * (1.0 - 2.0 * shared / both);
                    [(-2.0 * share / both) as f32, (2.0 * share * shared / (both * both)) as f32]
                }
                None => [0.0; 2],
            })
            .collect();
        let mut by_probability = vec![0.0f32; classes];
        for (row, &(_, label, weight)) in logits.chunks_exact_mut(classes).zip(labelled) {
            let label = usize::from(label);
            let mut mean = 0.0;
            for (class, slope) in by_probability.iter_mut().enumerate() {
                *slope = slopes[class][1] + if class == label { slopes[class][0] } else { 0.0 };
                mean += *slope * row[class];
            }
            for (class, value) in row.iter_mut().enumerate() {
                let probability = *value;
                let wanted = f32::from(u8::from(class == label));
                *value = weight * (probability - wanted) + probability * (by_probability[class] - mean);
            }
        }
    }

    /// Blocks of one size, one after the other, with standardised values side by side.
    fn groups(&self, maps: &[Map<'_>], sample: usize) -> Vec<Group> {
        let [mean, inverse] = self.standardisation.channels();
        let mut groups: Vec<Group> = Vec::new();
        let mut first = 0;
        for map in maps {
            match groups.last_mut() {
                Some(group) if (group.height, group.width) == (map.height, map.width) => {
                    group.channels.end += map.channels;
                    group.blocks.push(map.channels);
                }
                _ => groups.push(Group {
                    height: map.height,
                    width: map.width,
                    channels: first..first + map.channels,
                    blocks: vec![map.channels],
                    values: Vec::new(),
                }),
            }
            first += map.channels;
        }
        let mut rest = maps.iter();
        for group in &mut groups {
            let all = group.channels.len();
            group.values = vec![0.0; group.height * group.width * all];
            let mut offset = 0;
            for map in rest.by_ref().take(group.blocks.len()) {
                let channels = map.channels;
                let (mean, inverse) = (
                    &mean[group.channels.start + offset..][..channels],
                    &inverse[group.channels.start + offset..][..channels],
                );
                let rows = group.values.chunks_exact_mut(all).zip(map.sample(sample).chunks_exact(channels));
                for (to, from) in rows {
                    let to = &mut to[offset..offset + channels];
                    for ((to, from), (mean, inverse)) in to.iter_mut().zip(from).zip(mean.iter().zip(inverse))
                    {
                        *to = (from - mean) * inverse;
                    }
                }
                offset += channels;
            }
        }
        groups
    }

    /// The gradients of a group's blocks, as they came.
    fn split(&self, group: &Group, gradient: &[f32], maps: &mut Vec<Vec<f32>>) {
        let [_, inverse] = self.standardisation.channels();
        let mut offset = 0;
        for &channels in &group.blocks {
            let inverse = &inverse[group.channels.start + offset..][..channels];
            let mut own = Vec::with_capacity(group.height * group.width * channels);
            for row in gradient.chunks_exact(group.channels.len()) {
                own.extend(
                    row[offset..offset + channels].iter().zip(inverse).map(|(value, scale)| value * scale),
                );
            }
            maps.push(own);
            offset += channels;
        }
    }
}

struct Crop {
    loss: f64,
    right: u64,
    pixels: u64,
    gradient: Vec<f32>,
    maps: Vec<Vec<f32>>,
}

struct Group {
    height: usize,
    width: usize,
    /// Among all features.
    channels: Range<usize>,
    /// Channels of each block.
    blocks: Vec<usize>,
    /// `[height, width, channels]`.
    values: Vec<f32>,
}

impl Group {
    fn taps(&self, size: usize) -> Taps {
        let along = |from: usize| (0..size).map(|index| between(index, size, from)).collect();
        Taps { size, width: self.width, rows: along(self.height), columns: along(self.width) }
    }
}

/// Where a crop's pixels lie among those of a map: pixel centres at half integers (align_corners = false).
struct Taps {
    size: usize,
    width: usize,
    rows: Vec<Between>,
    columns: Vec<Between>,
}

impl Taps {
    fn of(&self, pixel: u32) -> [(usize, f32); 4] {
        let &Between { first: top, second: bottom, share: down } = &self.rows[pixel as usize / self.size];
        let &Between { first: left, second: right, share: across } =
            &self.columns[pixel as usize % self.size];
        [
            (top * self.width + left, (1.0 - down) * (1.0 - across)),
            (top * self.width + right, (1.0 - down) * across),
            (bottom * self.width + left, down * (1.0 - across)),
            (bottom * self.width + right, down * across),
        ]
    }
}

fn relu(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = value.max(0.0));
}

fn where_active(gradient: &mut [f32], activations: &[f32]) {
    for (gradient, value) in gradient.iter_mut().zip(activations) {
        if *value <= 0.0 {
            *gradient = 0.0;
        }
    }
}

fn sum_rows(sums: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

/// Pixels of a crop's labels that have one, with the weights of their classes; pixels near another class weigh three times as
/// much where `boundaries` says so. At most `most`, chosen at random.
pub(crate) fn labelled(
    labels: &[u8],
    size: usize,
    weights: &[f32],
    boundaries: bool,
    most: usize,
    random: &mut Random,
) -> Labelled {
    let mut at: Vec<u32> = (0..labels.len() as u32).filter(|&at| labels[at as usize] != UNLABELLED).collect();
    if at.len() > most {
        random.shuffle_front(&mut at, most);
        at.truncate(most);
        at.sort_unstable();
    }
    let differs = |at: usize| {
        let (row, column) = (at / size, at % size);
        let around = |at: usize| at.saturating_sub(2)..(at + 3).min(size);
        around(row).any(|y| {
            around(column).any(|x| {
                let other = labels[y * size + x];
                other != UNLABELLED && other != labels[at]
            })
        })
    };
    at.into_iter()
        .map(|pixel| {
            let label = labels[pixel as usize];
            let near = if boundaries && differs(pixel as usize) { 3.0 } else { 1.0 };
            (pixel, label, near * weights[usize::from(label)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8;

    fn values(count: usize, random: &mut Random) -> Vec<f32> {
        (0..count).map(|_| random.normal()).collect()
    }

    /// Side, channels and values of a map.
    type Values = (usize, usize, Vec<f32>);

    /// Two crops with three maps, two of which have one size.
    fn problem() -> (TunedHead, Vec<Values>, Vec<Labelled>) {
        let mut random = Random::new(3, 0);
        let maps: Vec<Values> = [(2, 3), (2, 4), (4, 5)]
            .map(|(side, channels)| (side, channels, values(2 * side * side * channels, &mut random)))
            .into();
        let moments = |offset: f64| (0..12).map(|i| offset + 0.1 * f64::from(i)).collect::<Vec<_>>();
        let standardisation = Standardisation::from_moments(&moments(-0.3), &moments(0.5));
        let mut head = TunedHead::new(standardisation, 12, 3, &mut random);
        for range in head.bias.clone().iter().chain([&head.weight[2].clone()]) {
            head.parameters[range.clone()].fill_with(|| 0.3 * random.normal());
        }
        let crop = |seed: u8, random: &mut Random| {
            let labels: Vec<u8> = (0..64)
                .map(|i: u8| if i % 5 == seed { UNLABELLED } else { (i / 8 + i % 3 + seed) % 3 })
                .collect();
            labelled(&labels, SIZE, &[0.02, 0.01, 0.005], true, 40, random)
        };
        let crops = vec![crop(0, &mut random), crop(2, &mut random)];
        (head, maps, crops)
    }

    fn pass(head: &TunedHead, maps: &[Values], crops: &[Labelled], dice: Dice) -> Passed {
        let maps: Vec<Map<'_>> = maps
            .iter()
            .map(|(side, channels, values)| Map { height: *side, width: *side, channels: *channels, values })
            .collect();
        head.pass(&maps, SIZE, crops, dice)
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (head, maps, crops) = problem();
        for dice in [Dice(None), Dice(Some(0.5))] {
            let passed = pass(&head, &maps, &crops, dice);
            let mut random = Random::new(9, 9);
            let step = 1e-2;
            let direction = values(head.parameters.len(), &mut random);
            // Parameters are many, and none may move past a ReLU's corner often.
            let small = step / 50.0;
            let moved = |sign: f32| {
                let mut head = head.clone();
                for (value, own) in head.parameters.iter_mut().zip(&direction) {
                    *value += sign * small * own;
                }
                pass(&head, &maps, &crops, dice).loss
            };
            let differences = (moved(1.0) - moved(-1.0)) / f64::from(2.0 * small);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let slope = dot(&direction, &passed.gradient);
            assert!((slope - differences).abs() < 1e-2 * differences.abs(), "{slope} for {differences}");
            for block in 0..maps.len() {
                let direction = values(maps[block].2.len(), &mut random);
                let moved = |sign: f32| {
                    let mut maps = maps.clone();
                    for (value, own) in maps[block].2.iter_mut().zip(&direction) {
                        *value += sign * small * own;
                    }
                    pass(&head, &maps, &crops, dice).loss
                };
                let differences = (moved(1.0) - moved(-1.0)) / f64::from(2.0 * small);
                let slope = dot(&direction, &passed.maps[block]);
                assert!(
                    (slope - differences).abs() < 2e-2 * differences.abs().max(1e-2),
                    "block {block}: {slope} for {differences}"
                );
            }
        }
    }

    #[test]
    fn crops_without_labels_say_nothing() {
        let (head, maps, mut crops) = problem();
        crops[1].clear();
        let passed = pass(&head, &maps, &crops, Dice(Some(0.5)));
        let half = maps[2].2.len() / 2;
        assert!(passed.maps[2][half..].iter().all(|value| *value == 0.0));
        assert!(passed.maps[2][..half].iter().any(|value| *value != 0.0));
        assert_eq!(passed.right.1, crops[0].len() as u64);
    }

    #[test]
    fn pixels_near_another_class_weigh_more() {
        let labels: Vec<u8> = (0..64).map(|i| u8::from(i % 8 > 3)).collect();
        let mut random = Random::new(0, 0);
        let all = labelled(&labels, SIZE, &[1.0, 0.5], true, 64, &mut random);
        let row: Vec<f32> = all[..8].iter().map(|(_, _, weight)| *weight).collect();
        assert_eq!(row, [1.0, 1.0, 3.0, 3.0, 1.5, 1.5, 0.5, 0.5]);
        assert_eq!(labelled(&labels, SIZE, &[1.0, 0.5], true, 10, &mut random).len(), 10);
    }
}
