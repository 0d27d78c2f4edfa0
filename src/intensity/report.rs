//! What is to be said about an image's values.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::sample::percentile_of_sorted;
use super::{IntensityRange, IntensitySample, IntensityScale, Limits, Short};

/// Values that take up less than this part of their range are suspicious.
const NARROW: f64 = 1.0 / 16.0;

/// Percentage of values at either end that may be defects of a camera.
const DEFECTS: f64 = 0.01;

/// Percentage of values at either end that do not count to what a model has seen.
const RARE: f64 = 1.0;

/// Part of what a model has seen by which others may exceed it.
const MARGIN: f64 = 0.1;

/// Values that are outside what a model has seen, as a part of an image.
const MOST_UNSEEN: f64 = 0.5;

/// Values that are outside the range, as a part of an image.
const MOST_CLAMPED: f64 = 0.25;

/// Which values the images had that a model was fitted on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeenIntensities {
    /// As they were stored, without the rarest ones.
    pub stored: Limits,
    /// As the network saw them, -1 to 1, without the rarest ones.
    pub scaled: Limits,
}

impl SeenIntensities {
    /// What an image adds to what was `seen` before.
    pub fn with(seen: Option<Self>, report: &IntensityReport) -> Option<Self> {
        let Some(stored) = report.values.iter().copied().reduce(Limits::union) else { return seen };
        let scaled = report.scaled;
        Some(match seen {
            Some(seen) => Self { stored: seen.stored.union(stored), scaled: seen.scaled.union(scaled) },
            None => Self { stored, scaled },
        })
    }

    pub(crate) fn validate(&self) -> crate::Result<()> {
        let sound =
            |limits: Limits| limits.low <= limits.high && limits.low.is_finite() && limits.high.is_finite();
        if sound(self.stored) && sound(self.scaled) {
            return Ok(());
        }
        Err(crate::Error::invalid("intensities_seen", "are not two numbers that ascend"))
    }
}

/// How an image's stored values became what the network saw.
#[derive(Clone, Debug, PartialEq)]
pub struct IntensityReport {
    /// The stored values that became -1 and 1, for each channel of the image; empty where its source scales values itself.
    pub limits: Vec<Limits>,
    /// The stored values that there are in each channel, but for a hundredth of a percent at either end, which may be defects of
    /// the camera.
    pub values: Vec<Limits>,
    /// What the network saw, over all channels, but for a percent at either end; not clamped.
    pub scaled: Limits,
    /// What looks wrong.
    pub warnings: Vec<IntensityWarning>,
}

impl Default for IntensityReport {
    fn default() -> Self {
        let scaled = Limits { low: -1.0, high: 1.0 };
        Self { limits: Vec::new(), values: Vec::new(), scaled, warnings: Vec::new() }
    }
}

/// What looks wrong about an image's values.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum IntensityWarning {
    /// They take up less than a sixteenth of their range, so that the network sees hardly any contrast.
    Narrow {
        /// The values that there are.
        values: Limits,
        /// The range that they could take up.
        limits: Limits,
        /// A range that would suit a camera which makes such values.
        camera: Option<Camera>,
    },
    /// Many lie outside the range, or outside of what the model has seen.
    Outside {
        /// The values that there are.
        values: Limits,
        /// Part of the pixels that is outside, 0 to 1.
        share: f64,
    },
    /// All pixels have one value.
    NoContrast {
        /// The value.
        value: f64,
    },
}

/// A camera that would make such values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Camera {
    /// Its bits.
    pub bits: u32,
    /// What it makes.
    pub limits: Limits,
}

impl IntensityWarning {
    /// A range that would suit the image better, where one can be guessed.
    pub fn suggestion(&self) -> Option<IntensityRange> {
        match self {
            Self::Narrow { camera: Some(camera), .. } => {
                Some(IntensityRange::Fixed { limits: vec![camera.limits] })
            }
            _ => None,
        }
    }
}

impl fmt::Display for IntensityWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Narrow { values, limits, camera } => {
                if values.low - limits.low < NARROW * limits.span() && limits.low == 0.0 {
                    write!(f, "values reach {} of {}", Short(values.high), Short(limits.high))?;
                } else {
                    write!(
                        f,
                        "values lie in {} to {} of {} to {}",
                        Short(values.low),
                        Short(values.high),
                        Short(limits.low),
                        Short(limits.high)
                    )?;
                }
                if let Some(camera) = camera {
                    write!(f, ": looks like {} bits", camera.bits)?;
                    if camera.limits.low != 0.0 {
                        write!(f, " with an offset of {}", camera.limits.low)?;
                    }
                }
                Ok(())
            }
            Self::Outside { values, share } => write!(
                f,
                "{:.0} % of the values, which lie in {} to {}, are outside the range or of what the model was fitted on",
                100.0 * share,
                Short(values.low),
                Short(values.high)
            ),
            Self::NoContrast { value } => {
                write!(f, "all pixels have the value {}: no contrast", Short(*value))
            }
        }
    }
}

/// The camera whose values these are, in samples of more than 8 bits.
fn camera(values: Limits, full: Limits) -> Option<Camera> {
    const OFFSET: f64 = 32768.0;
    if full.span() < 65535.0 || values.low < 0.0 {
        return None;
    }
    // Some cameras of 16-bit files write signed numbers as unsigned ones.
    let offset = if values.low >= OFFSET { OFFSET } else { 0.0 };
    [8u32, 10, 12, 14]
        .into_iter()
        .map(|bits| Camera {
            bits,
            limits: Limits { low: offset, high: offset + f64::from((1u32 << bits) - 1) },
        })
        .find(|camera| values.high <= camera.limits.high)
}

pub(super) fn report(
    scale: &IntensityScale,
    sample: &IntensitySample,
    seen: Option<&SeenIntensities>,
) -> IntensityReport {
    let channels: Vec<Vec<f32>> = (0..sample.channels()).map(|channel| sample.sorted(channel)).collect();
    let mut report = IntensityReport { limits: scale.limits.clone(), ..IntensityReport::default() };
    if channels.iter().any(Vec::is_empty) || channels.len() != scale.limits.len() {
        return report;
    }
    let at = |values: &[f32], percentage: f64| percentile_of_sorted(values, percentage);
    let within = |values: &[f32], rare: f64| Limits { low: at(values, rare), high: at(values, 100.0 - rare) };
    report.values = channels.iter().map(|values| within(values, DEFECTS)).collect();
    let unscaled = |limits: &Limits, scaled: f64| limits.low + (scaled + 1.0) / 2.0 * limits.span();
    let scaled = |limits: &Limits, value: f64| 2.0 * (value - limits.low) / limits.span() - 1.0;
    let of_channels = channels.iter().zip(&scale.limits);
    if let Some(all) = of_channels
        .clone()
        .map(|(values, limits)| {
            let stored = within(values, RARE);
            Limits { low: scaled(limits, stored.low), high: scaled(limits, stored.high) }
        })
        .reduce(Limits::union)
    {
        report.scaled = all;
    }
    let whole = report.values.iter().copied().reduce(Limits::union).unwrap_or(scale.full);
    if channels.iter().all(|values| values.first() == values.last()) {
        report.warnings.push(IntensityWarning::NoContrast { value: whole.low });
        return report;
    }

    // Images of 8 bits with little contrast are common, and nothing but the image is to blame.
    let by_eight_bits = scale.full.span() <= 255.0 && scale.limits.iter().all(|limits| *limits == scale.full);
    let narrow = !scale.measured
        && !by_eight_bits
        && report.values.iter().zip(&scale.limits).all(|(values, limits)| {
            values.low.max(limits.low) <= values.high.min(limits.high)
                && values.span() < NARROW * limits.span()
        });
    // A model that was fitted on such images has learnt to see them so.
    let usual = seen.is_some_and(|seen| 4.0 * report.scaled.span() >= seen.scaled.span());
    if narrow && !usual {
        let limits = scale.limits.iter().copied().reduce(Limits::union).unwrap_or(scale.full);
        let camera = camera(whole, scale.full);
        report.warnings.push(IntensityWarning::Narrow { values: whole, limits, camera });
        // It follows that they are also unlike what the model has seen.
        return report;
    }

    let outside = |values: &[f32], limits: Limits| {
        let below = values.partition_point(|value| f64::from(*value) < limits.low);
        let above = values.len() - values.partition_point(|value| f64::from(*value) <= limits.high);
        (below + above) as f64 / values.len() as f64
    };
    let share = |limits: &dyn Fn(&Limits) -> Limits| {
        let shares = of_channels.clone().map(|(values, own)| outside(values, limits(own)));
        shares.sum::<f64>() / channels.len() as f64
    };
    let clamped = if scale.measured { 0.0 } else { share(&|own| *own) };
    let unseen = seen.map_or(0.0, |seen| {
        let margin = MARGIN * seen.scaled.span();
        share(&|own| Limits {
            low: unscaled(own, seen.scaled.low - margin),
            high: unscaled(own, seen.scaled.high + margin),
        })
    });
    if clamped > MOST_CLAMPED || unseen > MOST_UNSEEN {
        let share = if clamped > MOST_CLAMPED { clamped } else { unseen };
        report.warnings.push(IntensityWarning::Outside { values: whole, share });
    }
    report
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{ImageView, PixelFormat};

    /// 100 x 100 values from `low` to `high`, which the last eleven have.
    fn ramp(low: u16, high: u16) -> Vec<u8> {
        let value = |i: u32| low + (u32::from(high - low) * i.min(9989) / 9989) as u16;
        (0..10_000).flat_map(|i| value(i).to_ne_bytes()).collect()
    }

    fn measured(
        range: &IntensityRange,
        low: u16,
        high: u16,
        seen: Option<&SeenIntensities>,
    ) -> IntensityReport {
        let data = ramp(low, high);
        let mut view = ImageView::new(&data, 100, 100, PixelFormat::Grey16).unwrap();
        range.measure(&mut view, seen).unwrap().1
    }

    fn words(report: &IntensityReport) -> Vec<String> {
        report.warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn cameras_are_recognised_by_what_they_write() {
        for (low, high, what, range) in [
            (0, 4080, "values reach 4080 of 65535: looks like 12 bits", Some("0,4095")),
            (30, 255, "values reach 255 of 65535: looks like 8 bits", Some("0,255")),
            (
                32768,
                36848,
                "values lie in 32768 to 36848 of 0 to 65535: looks like 12 bits with an offset of 32768",
                Some("32768,36863"),
            ),
            (20000, 21000, "values lie in 20000 to 21000 of 0 to 65535", None),
        ] {
            let report = measured(&IntensityRange::Type, low, high, None);
            assert_eq!(words(&report), [what]);
            let suggestion = report.warnings[0].suggestion();
            assert_eq!(suggestion.map(|range| range.to_string()).as_deref(), range);
        }
        assert!(measured(&IntensityRange::Type, 0, 5000, None).warnings.is_empty());
        assert!(measured(&"0,4095".parse().unwrap(), 0, 4080, None).warnings.is_empty());
        assert!(measured(&IntensityRange::PERCENTILE, 0, 100, None).warnings.is_empty());
    }

    #[test]
    fn defects_of_a_camera_hide_nothing() {
        let mut data = ramp(0, 4080);
        data[..2].copy_from_slice(&[255; 2]);
        let mut view = ImageView::new(&data, 100, 100, PixelFormat::Grey16).unwrap();
        let report = IntensityRange::Type.measure(&mut view, None).unwrap().1;
        assert!(words(&report)[0].contains("12 bits"), "{report:?}");
    }

    #[test]
    fn what_a_model_has_seen_is_no_surprise() {
        let own = measured(&IntensityRange::Type, 0, 4080, None);
        let seen = SeenIntensities::with(None, &own).unwrap();
        assert!(measured(&IntensityRange::Type, 10, 4000, Some(&seen)).warnings.is_empty());
        let eight = measured(&IntensityRange::Type, 0, 255, Some(&seen));
        assert!(words(&eight)[0].contains("8 bits"), "{eight:?}");
        let other = measured(&IntensityRange::Type, 20000, 60000, Some(&seen));
        assert!(matches!(other.warnings[..], [IntensityWarning::Outside { share, .. }] if share > 0.9));
        let fixed = measured(&"0,4095".parse().unwrap(), 32768, 36863, None);
        assert!(matches!(fixed.warnings[..], [IntensityWarning::Outside { share: 1.0, .. }]), "{fixed:?}");
    }

    #[test]
    fn eight_bits_may_have_little_contrast_but_not_none() {
        let measured = |data: &[u8], range: &str| {
            let mut view = ImageView::new(data, 2, 1, PixelFormat::Grey8).unwrap();
            range.parse::<IntensityRange>().unwrap().measure(&mut view, None).unwrap().1.warnings
        };
        assert!(measured(&[100, 103], "type").is_empty());
        assert_eq!(measured(&[7, 7], "type"), [IntensityWarning::NoContrast { value: 7.0 }]);
        assert!(matches!(measured(&[0, 200], "0,4095")[..], [IntensityWarning::Narrow { .. }]));
    }
}
