//! Which stored values the network sees as black and white.
//!
//! A network sees values in [-1, 1]. What a file stores is in units of its own: cameras of 12 bits fill a sixteenth of the 16 bits
//! of their files, others add an offset, floating-point images have any range. An [`IntensityRange`] says which stored values
//! become -1 and 1; a model keeps the one that it was fitted with, and uses it again.
//!
//! What lies beyond is clamped: a few hot pixels must neither stand out more than anything that the network was trained on nor
//! shift its normalisation, and the result is that of the same image saved in 8 bits at this contrast.

mod report;
mod sample;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::ImageSource;
use crate::{Error, Result};

pub use report::{IntensityReport, IntensityWarning, SeenIntensities};
pub use sample::IntensitySample;

/// How far floating-point samples may be outside 0..=1, as left by somebody's interpolation.
const OVERSHOOT: f64 = 1e-3;

/// Two stored values, of which the first is less.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The value that the network sees as -1.
    pub low: f64,
    /// The value that the network sees as 1.
    pub high: f64,
}

impl Limits {
    /// # Errors
    /// [`Error::Invalid`] unless `low` is less than `high`, both are finite, and f32 can tell them apart.
    pub fn new(low: f64, high: f64) -> Result<Self> {
        let limits = Self { low, high };
        limits.validate()?;
        Ok(limits)
    }

    fn validate(self) -> Result<()> {
        let (low, high) = (self.low as f32, self.high as f32);
        if low < high && (high - low).is_finite() {
            return Ok(());
        }
        Err(Error::invalid("range", format!("{self}: the first value must be less than the second")))
    }

    /// Difference of the two.
    pub fn span(self) -> f64 {
        self.high - self.low
    }

    /// The smallest that holds both.
    pub fn union(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", Short(self.low), Short(self.high))
    }
}

/// A number with as many digits as anybody wants to read.
pub(crate) struct Short(pub(crate) f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() < 1e15 && self.0 == self.0.trunc() {
            return write!(f, "{}", self.0);
        }
        let digits = (3 - self.0.abs().log10().floor() as i32).clamp(0, 12);
        let scale = 10f64.powi(digits);
        write!(f, "{}", (self.0 * scale).round() / scale)
    }
}

/// How the stored values that become -1 and 1 are found.
///
/// In words, as [`FromStr`] reads them: `type`, `declared`, `LOW,HIGH` (for each channel `LOW,HIGH/LOW,HIGH/...`), `percentile`,
/// and `percentile:LOW,HIGH`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum IntensityRange {
    /// The range of the samples' type, whatever the image declares: 0 to 255, 0 to 65535, 0.0 to 1.0.
    Type,
    /// The range that the image declares, as files do that say how many of their bits are significant, and that of its
    /// type where it declares none.
    #[default]
    Declared,
    /// These stored values.
    Fixed {
        /// One for all channels, or one for each channel of the image.
        limits: Vec<Limits>,
    },
    /// Percentiles of the whole image, each channel by itself.
    Percentile {
        /// Percentage of values that are darker than black, in [0, 100).
        low: f64,
        /// Percentage of values that are darker than white, above `low` and at most 100.
        high: f64,
    },
}

impl IntensityRange {
    /// The percentiles that Cellpose and StarDist use.
    pub const PERCENTILE: Self = Self::Percentile { low: 1.0, high: 99.8 };

    /// Channels, at most.
    const MOST_CHANNELS: usize = 1024;

    /// These stored values in every channel.
    ///
    /// # Errors
    /// As [`Limits::new`].
    pub fn fixed(low: f64, high: f64) -> Result<Self> {
        Ok(Self::Fixed { limits: vec![Limits::new(low, high)?] })
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Type | Self::Declared => Ok(()),
            Self::Fixed { limits } => {
                if limits.is_empty() || limits.len() > Self::MOST_CHANNELS {
                    return Err(Error::invalid("range", format!("of {} channels", limits.len())));
                }
                limits.iter().try_for_each(|limits| limits.validate())
            }
            Self::Percentile { low, high } => {
                if *low >= 0.0 && low < high && *high <= 100.0 {
                    return Ok(());
                }
                Err(Error::invalid(
                    "range",
                    format!("percentiles {low} and {high} are not two of 0 to 100 that ascend"),
                ))
            }
        }
    }

    /// The range that heads are fitted with on a backbone that was trained with this one, where nobody says otherwise.
    ///
    /// Fixed values and percentiles are the backbone's. Where it was trained on images by their type, what another image
    /// declares is brought to the same [-1, 1].
    #[must_use]
    pub fn inherited(&self) -> Self {
        match self {
            Self::Type | Self::Declared => Self::Declared,
            Self::Fixed { .. } | Self::Percentile { .. } => self.clone(),
        }
    }

    /// How the values of `source` become what a network sees; `None` where the source scales them itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] for values of another number of channels than the image has, and for percentiles of a source that can
    /// be read only once; errors of the source.
    pub fn scale(&self, source: &mut dyn ImageSource) -> Result<Option<IntensityScale>> {
        self.validate()?;
        let channels = source.channels();
        let Some(stored) = source.stored() else { return Ok(None) };
        let full = stored.full_range();
        let declared = stored.declared_ranges().filter(|ranges| ranges.len() == channels).map(<[_]>::to_vec);
        let by_type = matches!(self, Self::Type) || matches!(self, Self::Declared) && declared.is_none();
        let limits = match self {
            Self::Type => vec![full; channels],
            Self::Declared => declared.unwrap_or_else(|| vec![full; channels]),
            Self::Fixed { limits } if limits.len() == channels => limits.clone(),
            Self::Fixed { limits } => match limits[..] {
                [limits] => vec![limits; channels],
                _ => {
                    return Err(Error::invalid(
                        "range",
                        format!("is given for {} channels, but the image has {channels}", limits.len()),
                    ));
                }
            },
            Self::Percentile { low, high } => {
                let mut sample = IntensitySample::for_percentiles(channels);
                if !stored.survey(&mut sample)? {
                    return Err(Error::invalid(
                        "range",
                        "percentiles must be known before an image is read, and this one can be read only once: give \
                         fixed values, or a source that can be read again",
                    ));
                }
                (0..channels).map(|channel| sample.contrast(channel, *low, *high)).collect()
            }
        };
        for limits in &limits {
            limits.validate()?;
        }
        Ok(Some(IntensityScale {
            measured: matches!(self, Self::Percentile { .. }),
            by_type,
            full,
            channels: limits.iter().map(Channel::new).collect(),
            limits,
        }))
    }

    /// How the values of `source` become what a network sees, and what is to be said about that. All values are looked at,
    /// so the source must be one that can be read again.
    ///
    /// # Errors
    /// As [`scale`](Self::scale).
    pub fn measure(
        &self,
        source: &mut dyn ImageSource,
        seen: Option<&SeenIntensities>,
    ) -> Result<(Option<IntensityScale>, IntensityReport)> {
        let Some(scale) = self.scale(source)? else { return Ok((None, IntensityReport::default())) };
        let mut sample = IntensitySample::new(source.channels());
        if let Some(stored) = source.stored() {
            stored.survey(&mut sample)?;
        }
        let report = scale.report(&sample, seen);
        Ok((Some(scale), report))
    }
}

impl fmt::Display for IntensityRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type => f.write_str("type"),
            Self::Declared => f.write_str("declared"),
            Self::Fixed { limits } => {
                for (index, limits) in limits.iter().enumerate() {
                    write!(f, "{}{limits}", if index > 0 { "/" } else { "" })?;
                }
                Ok(())
            }
            range if *range == Self::PERCENTILE => f.write_str("percentile"),
            Self::Percentile { low, high } => write!(f, "percentile:{low},{high}"),
        }
    }
}

impl FromStr for IntensityRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(
                "range",
                format!(
                    "{text:?} is none: give two stored values that ascend (0,4095), for each channel if need be \
                     (0,4095/100,900/0,255), \"percentile\", \"percentile:1,99.8\", \"declared\" or \"type\""
                ),
            )
        };
        let pair = |text: &str| {
            let (low, high) = text.split_once(',')?;
            Some((low.trim().parse::<f64>().ok()?, high.trim().parse::<f64>().ok()?))
        };
        let range = match text.trim() {
            "type" => Self::Type,
            "declared" => Self::Declared,
            "percentile" => Self::PERCENTILE,
            other => match other.strip_prefix("percentile:") {
                Some(percentiles) => {
                    let (low, high) = pair(percentiles).ok_or_else(wrong)?;
                    Self::Percentile { low, high }
                }
                None => {
                    let limits = other.split('/').map(|part| {
                        let (low, high) = pair(part)?;
                        Some(Limits { low, high })
                    });
                    Self::Fixed { limits: limits.collect::<Option<_>>().ok_or_else(wrong)? }
                }
            },
        };
        range.validate().map_err(|_| wrong())?;
        Ok(range)
    }
}

/// How the stored values of one image become what a network sees.
#[derive(Clone, Debug, PartialEq)]
pub struct IntensityScale {
    /// One for each channel.
    limits: Vec<Limits>,
    channels: Vec<Channel>,
    /// The range of the samples' type.
    full: Limits,
    /// Whether the limits are those of the type, which nothing exceeds.
    by_type: bool,
    /// Whether the limits follow from the values.
    measured: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Channel {
    low: f32,
    half: f32,
}

impl Channel {
    fn new(limits: &Limits) -> Self {
        Self { low: limits.low as f32, half: (limits.span() / 2.0) as f32 }
    }

    fn unclamped(self, value: f32) -> f32 {
        (value - self.low) / self.half - 1.0
    }
}

impl IntensityScale {
    /// The stored values that become -1 and 1, for each channel.
    pub fn limits(&self) -> &[Limits] {
        &self.limits
    }

    /// Scales stored `values`, whole rows of an image of `width` pixels from row `first` on, to [-1, 1].
    ///
    /// # Errors
    /// [`Error::Image`] with its place for a value that is not finite, and for floating-point values outside 0 to 1 where nobody
    /// says what their range is.
    pub fn apply(&self, values: &mut [f32], first: usize, width: usize) -> Result<()> {
        let (lowest, highest) = if self.by_type {
            ((self.full.low - OVERSHOOT) as f32, (self.full.high + OVERSHOOT) as f32)
        } else {
            (f32::MIN, f32::MAX)
        };
        // Not a number is in no range.
        if let Some(index) = values.iter().position(|value| !(lowest..=highest).contains(value)) {
            let pixel = index / self.channels.len();
            let (value, row, column) = (values[index], first + pixel / width.max(1), pixel % width.max(1));
            let why = if value.is_finite() {
                format!(
                    "is outside {}..={}, the range of its type: say what range its values have (--range)",
                    self.full.low, self.full.high
                )
            } else {
                "is not a finite number".to_owned()
            };
            return Err(Error::Image(format!("the value {value} at row {row}, column {column} {why}")));
        }
        let scale = |channel: Channel, value: &mut f32| *value = channel.unclamped(*value).clamp(-1.0, 1.0);
        match self.channels[..] {
            [channel] => values.iter_mut().for_each(|value| scale(channel, value)),
            _ => {
                for pixel in values.chunks_exact_mut(self.channels.len()) {
                    for (value, channel) in pixel.iter_mut().zip(&self.channels) {
                        scale(*channel, value);
                    }
                }
            }
        }
        Ok(())
    }

    /// What is to be said about an image of which `sample` is a part, to a model that has `seen` others.
    pub fn report(&self, sample: &IntensitySample, seen: Option<&SeenIntensities>) -> IntensityReport {
        report::report(self, sample, seen)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{ImageView, PixelFormat};

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn scaled(range: &IntensityRange, view: &ImageView<'_>) -> Result<Vec<f32>> {
        let mut view = *view;
        let scale = range.scale(&mut view)?.unwrap();
        let mut values = vec![0.0; view.width() * view.height() * view.format().colours()];
        let (height, width) = (view.height(), view.width());
        view.stored().unwrap().read_stored(0..height, &mut values)?;
        scale.apply(&mut values, 0, width)?;
        Ok(values)
    }

    #[test]
    fn ranges_are_written_as_they_are_read() {
        for text in
            ["type", "declared", "percentile", "percentile:0,100", "0,4095", "-0.5,1.5", "0,4095/1,2/3,255"]
        {
            let range: IntensityRange = text.parse().unwrap();
            assert_eq!(range.to_string(), text);
            let json = serde_json::to_string(&range).unwrap();
            assert_eq!(serde_json::from_str::<IntensityRange>(&json).unwrap(), range, "{json}");
        }
        let spaced: IntensityRange = " 0, 4095 ".parse().unwrap();
        assert_eq!(spaced, IntensityRange::fixed(0.0, 4095.0).unwrap());
        for bad in [
            "",
            "4095",
            "4095,0",
            "1,1",
            "0,inf",
            "nan,1",
            "a,b",
            "0,1/",
            "percentile:",
            "percentile:5",
            "percentile:60,40",
            "percentile:-1,99",
            "percentile:1,101",
            "Type",
            "0,1,2",
            "1e39,2e39",
        ] {
            let error = bad.parse::<IntensityRange>().unwrap_err().to_string();
            assert!(error.contains("0,4095"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_declared_range_goes_before_the_type_but_not_before_what_is_asked_for() {
        let data: Vec<u8> = [0u16, 4095, 2048].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let plain = ImageView::new(&data, 3, 1, PixelFormat::Grey16).unwrap();
        let declared = plain.with_range(0.0, 4095.0).unwrap();
        let high = |range: &IntensityRange, view| scaled(range, view).unwrap()[1];
        assert_eq!(high(&IntensityRange::Declared, &declared), 1.0);
        assert!(high(&IntensityRange::Declared, &plain) < -0.8);
        assert!(high(&IntensityRange::Type, &declared) < -0.8);
        let half = IntensityRange::fixed(0.0, 8190.0).unwrap();
        assert_eq!(high(&half, &declared), 0.0);
        assert!(plain.with_range(5.0, 5.0).is_err());
    }

    #[test]
    fn what_lies_beyond_fixed_values_is_clamped() {
        let data = bytes(&[-7.0, 0.0, 50.0, 100.0, 1e6]);
        let view = ImageView::new(&data, 5, 1, PixelFormat::GreyF32).unwrap();
        let range = IntensityRange::fixed(0.0, 100.0).unwrap();
        assert_eq!(scaled(&range, &view).unwrap(), [-1.0, -1.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn channels_have_ranges_of_their_own() {
        let view = ImageView::new(&[10, 20, 30, 20, 40, 60], 2, 1, PixelFormat::Rgb8).unwrap();
        let range: IntensityRange = "10,20/20,40/30,60".parse().unwrap();
        assert_eq!(scaled(&range, &view).unwrap(), [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
        let percentile = IntensityRange::Percentile { low: 0.0, high: 100.0 };
        assert_eq!(scaled(&percentile, &view).unwrap(), [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
        let two: IntensityRange = "0,1/0,2".parse().unwrap();
        let error = scaled(&two, &view).unwrap_err().to_string();
        assert!(error.contains("2 channels") && error.contains("has 3"), "{error}");
    }

    #[test]
    fn percentiles_do_not_depend_on_gain_and_offset() {
        let values: Vec<f32> = (0..10_000).map(|i| ((i * 7919) % 10_007) as f32).collect();
        let of = |gain: f32, offset: f32| {
            let data = bytes(&values.iter().map(|value| gain * value + offset).collect::<Vec<_>>());
            let view = ImageView::new(&data, 100, 100, PixelFormat::GreyF32).unwrap();
            scaled(&IntensityRange::PERCENTILE, &view).unwrap()
        };
        let plain = of(1.0, 0.0);
        assert!(plain.iter().filter(|value| **value == 1.0).count() <= 21);
        assert!((100..=102).contains(&plain.iter().filter(|value| **value == -1.0).count()));
        for (gain, offset) in [(0.25, 0.0), (1.0, 32768.0), (3.0, -500.0), (1e-6, 0.0)] {
            let worst = of(gain, offset).iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{gain}, {offset}: {worst}");
        }
    }

    #[test]
    fn percentiles_of_images_with_little_in_them() {
        let mut values = vec![3.0f32; 10_000];
        let dark = |values: &[f32]| {
            let data = bytes(values);
            let view = ImageView::new(&data, 100, 100, PixelFormat::GreyF32).unwrap();
            scaled(&IntensityRange::PERCENTILE, &view).unwrap()
        };
        assert!(dark(&values).iter().all(|value| *value == -1.0), "no contrast at all");
        values[17] = 8.0;
        let found = dark(&values);
        assert!(found[17] == 1.0 && found[18] == -1.0, "one spot on a plain ground keeps its contrast");
    }

    #[test]
    fn what_is_no_pixel_is_named_with_its_place() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1, 255.0] {
            let data = bytes(&[0.5, 0.5, 0.5, bad]);
            let view = ImageView::new(&data, 2, 2, PixelFormat::GreyF32).unwrap();
            for range in [IntensityRange::Declared, IntensityRange::Type] {
                let error = scaled(&range, &view).unwrap_err().to_string();
                assert!(error.contains("row 1, column 1"), "{error}");
            }
            let fixed = scaled(&IntensityRange::fixed(0.0, 255.0).unwrap(), &view);
            assert_eq!(fixed.is_ok(), bad.is_finite(), "{bad}");
        }
        let data = bytes(&[-1e-7, 1.000_000_1]);
        let view = ImageView::new(&data, 2, 1, PixelFormat::GreyF32).unwrap();
        assert_eq!(scaled(&IntensityRange::Type, &view).unwrap(), [-1.0, 1.0], "left by interpolation");
    }
}
