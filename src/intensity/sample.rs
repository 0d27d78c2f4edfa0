//! Values that stand for an image.

use super::Limits;

/// Pixels that are kept to say something about an image.
const PIXELS: usize = 1 << 16;

/// Pixels that are kept for percentiles: of images with more, the 99.8th is off by less than a hundredth of a percent.
const PIXELS_FOR_PERCENTILES: usize = 1 << 20;

/// Pixels of an image, evenly spread, whose number need not be known before: all of them while they are few, and one of
/// every 2, 4, 8 ... when they become many.
#[derive(Clone, Debug)]
pub struct IntensitySample {
    channels: usize,
    capacity: usize,
    /// One pixel of so many is kept.
    stride: usize,
    /// Pixels that were offered.
    offered: usize,
    /// The next one that is kept.
    next: usize,
    /// `[pixels, channels]`
    values: Vec<f32>,
}

impl IntensitySample {
    /// For images of so many channels.
    pub(crate) fn new(channels: usize) -> Self {
        Self::with_capacity(channels, PIXELS)
    }

    pub(super) fn for_percentiles(channels: usize) -> Self {
        Self::with_capacity(channels, PIXELS_FOR_PERCENTILES)
    }

    fn with_capacity(channels: usize, capacity: usize) -> Self {
        Self { channels: channels.max(1), capacity, stride: 1, offered: 0, next: 0, values: Vec::new() }
    }

    /// Offers the next pixels `[pixels, channels]`, as they are stored.
    pub fn add(&mut self, values: &[f32]) {
        let end = self.offered + values.len() / self.channels;
        while self.next < end {
            let pixel = &values[(self.next - self.offered) * self.channels..][..self.channels];
            // What is not finite is an error to whoever reads it.
            if pixel.iter().all(|value| value.is_finite()) {
                self.values.extend_from_slice(pixel);
            }
            if self.values.len() >= self.capacity * self.channels {
                self.thin();
            }
            self.next = (self.next / self.stride + 1) * self.stride;
            self.next += scatter(self.next / self.stride) % self.stride;
        }
        self.offered = end;
    }

    fn thin(&mut self) {
        let pixels = self.values.len() / self.channels;
        for kept in 0..pixels / 2 {
            self.values
                .copy_within(2 * kept * self.channels..(2 * kept + 1) * self.channels, kept * self.channels);
        }
        self.values.truncate(pixels / 2 * self.channels);
        self.stride *= 2;
    }

    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// A channel's values, ascending.
    pub(super) fn sorted(&self, channel: usize) -> Vec<f32> {
        let mut values: Vec<f32> = self.values.iter().skip(channel).step_by(self.channels).copied().collect();
        values.sort_unstable_by(f32::total_cmp);
        values
    }

    /// The percentiles of a channel, or two other values where they are the same: its extremes, and where these are, something
    /// that makes it black.
    pub(super) fn contrast(&self, channel: usize, low: f64, high: f64) -> Limits {
        let mut values: Vec<f32> = self.values.iter().skip(channel).step_by(self.channels).copied().collect();
        let limits = Limits { low: percentile(&mut values, low), high: percentile(&mut values, high) };
        if limits.validate().is_ok() {
            return limits;
        }
        let extremes = Limits { low: percentile(&mut values, 0.0), high: percentile(&mut values, 100.0) };
        if extremes.validate().is_ok() {
            return extremes;
        }
        Limits { low: extremes.low, high: extremes.low + extremes.low.abs().max(1.0) }
    }
}

/// A number that looks random.
fn scatter(number: usize) -> usize {
    ((number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize
}

/// The percentile of `values`, interpolated between neighbours as numpy does; 0 of none.
fn percentile(values: &mut [f32], percentage: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let position = (percentage / 100.0).clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let (_, &mut value, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(value);
    f64::from(value) + (f64::from(next) - f64::from(value)) * position.fract()
}

/// The percentile of values that ascend.
pub(super) fn percentile_of_sorted(values: &[f32], percentage: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let position = (percentage / 100.0).clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let (value, next) = (f64::from(values[below]), f64::from(values[(below + 1).min(last)]));
    value + (next - value) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([5, 1, 4, 2, 3], [0, 10, 50, 99.8, 100])
        let mut values = [5.0f32, 1.0, 4.0, 2.0, 3.0];
        for (percentage, want) in [(0.0, 1.0), (10.0, 1.4), (50.0, 3.0), (99.8, 4.992), (100.0, 5.0)] {
            assert!((percentile(&mut values, percentage) - want).abs() < 1e-9);
        }
        values.sort_unstable_by(f32::total_cmp);
        assert!((percentile_of_sorted(&values, 99.8) - 4.992).abs() < 1e-9);
        assert_eq!(percentile(&mut [], 50.0), 0.0);
    }

    #[test]
    fn many_pixels_are_thinned_evenly() {
        // A picture of columns, whose width is a multiple of every stride.
        let mut sample = IntensitySample::with_capacity(2, 1000);
        let row: Vec<f32> = (0..256).flat_map(|x| [x as f32, 7.0]).collect();
        for _ in 0..100 {
            sample.add(&row);
        }
        let columns = sample.sorted(0);
        assert!((500..=1000).contains(&columns.len()), "{}", columns.len());
        for (percentage, want) in [(10.0, 25.6), (50.0, 128.0), (90.0, 230.4)] {
            let found = percentile_of_sorted(&columns, percentage);
            assert!((found - want).abs() < 12.0, "{percentage}: {found}");
        }
        assert!(sample.sorted(1).iter().all(|value| *value == 7.0));
    }

    #[test]
    fn few_pixels_are_all_kept_however_they_come() {
        let values: Vec<f32> = (0..30).map(|i| i as f32).collect();
        let mut sample = IntensitySample::new(3);
        sample.add(&values[..9]);
        sample.add(&[]);
        sample.add(&values[9..]);
        assert_eq!(sample.sorted(1), [1.0, 4.0, 7.0, 10.0, 13.0, 16.0, 19.0, 22.0, 25.0, 28.0]);
    }
}
