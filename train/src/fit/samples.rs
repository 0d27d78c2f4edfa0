//! Labelled pixels and their features.

use mdm::{Error, Result};

/// One sample is one labelled pixel: its features, its class, and whether it is kept from the held-out probe.
///
/// Features are gathered from the network's maps once and kept as rows: a training step then reads a row of consecutive
/// memory (0.2 us for 288 channels) where interpolation would read four places in every map (1.3 us, more than the step
/// computes on it), and each is read some forty times. Memory is samples x channels x 4 bytes, bounded by
/// [`FitOptions::max_samples`](super::FitOptions::max_samples) whatever the number and size of the images.
#[derive(Clone, Debug)]
pub struct Samples {
    channels: usize,
    features: Vec<f32>,
    labels: Vec<u8>,
    held_out: Vec<bool>,
}

impl Samples {
    /// None yet, of `channels` features each.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no channels.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::invalid("channels", "a pixel needs at least one feature"));
        }
        Ok(Self { channels, features: Vec::new(), labels: Vec::new(), held_out: Vec::new() })
    }

    /// Takes memory for `count` samples more.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn reserve(&mut self, count: usize) -> Result<()> {
        let refused = || {
            Error::OutOfMemory(format!(
                "{count} samples of {} features; lower the number of samples",
                self.channels
            ))
        };
        let total = self.len().checked_add(count).filter(|&total| u32::try_from(total).is_ok());
        total.ok_or_else(refused)?;
        let values = count.checked_mul(self.channels).ok_or_else(refused)?;
        let reserved = self.features.try_reserve_exact(values).is_ok()
            && self.labels.try_reserve_exact(count).is_ok()
            && self.held_out.try_reserve_exact(count).is_ok();
        if reserved { Ok(()) } else { Err(refused()) }
    }

    /// Adds a sample whose features `fill` writes; `held_out` ones are not shown to the probe that is scored on them.
    pub fn push(&mut self, label: u8, held_out: bool, fill: impl FnOnce(&mut [f32])) {
        let start = self.features.len();
        self.features.resize(start + self.channels, 0.0);
        fill(&mut self.features[start..]);
        self.labels.push(label);
        self.held_out.push(held_out);
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Features of a sample.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Features of sample `index`.
    pub fn features(&self, index: usize) -> &[f32] {
        &self.features[index * self.channels..][..self.channels]
    }

    /// Class of sample `index`.
    pub fn label(&self, index: usize) -> u8 {
        self.labels[index]
    }

    /// Whether sample `index` is kept from the probe.
    pub fn is_held_out(&self, index: usize) -> bool {
        self.held_out[index]
    }
}

/// Samples that lie in several places, numbered through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts<'a> {
    parts: Vec<Part<'a>>,
}

/// Samples `start..end` of [`Parts`].
#[derive(Clone, Debug)]
struct Part<'a> {
    start: usize,
    end: usize,
    samples: &'a Samples,
    /// Whether all of them are held out; where nobody says so, the samples know.
    held_out: Option<bool>,
}

impl<'a> Parts<'a> {
    /// Adds samples, which must have as many channels as the others.
    pub(crate) fn push(&mut self, samples: &'a Samples, held_out: Option<bool>) {
        let start = self.len();
        if !samples.is_empty() {
            self.parts.push(Part { start, end: start + samples.len(), samples, held_out });
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.end)
    }

    pub(crate) fn channels(&self) -> usize {
        self.parts.first().map_or(0, |part| part.samples.channels())
    }

    pub(crate) fn features(&self, index: usize) -> &'a [f32] {
        let (part, index) = self.find(index);
        part.samples.features(index)
    }

    pub(crate) fn label(&self, index: usize) -> u8 {
        let (part, index) = self.find(index);
        part.samples.label(index)
    }

    pub(crate) fn is_held_out(&self, index: usize) -> bool {
        let (part, index) = self.find(index);
        part.held_out.unwrap_or_else(|| part.samples.is_held_out(index))
    }

    fn find(&self, index: usize) -> (&Part<'a>, usize) {
        let part = &self.parts[self.parts.partition_point(|part| part.end <= index)];
        (part, index - part.start)
    }
}

impl<'a> From<&'a Samples> for Parts<'a> {
    fn from(samples: &'a Samples) -> Self {
        let mut parts = Self::default();
        parts.push(samples, None);
        parts
    }
}
