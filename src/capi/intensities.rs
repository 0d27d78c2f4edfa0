//! Which stored values the network sees as black and white.

use super::errors::Failure;
use super::log::{self, MDM_LOG_WARNING};
use crate::intensity::{IntensityRange, IntensityReport, IntensityWarning, Limits};

/// How the stored values are found that the network sees as black and white. Values beyond them are clamped.
pub type mdm_range = u32;

/// As the model says, which is how it was fitted. In options only.
pub const MDM_RANGE_AS_MODEL: mdm_range = 0;
/// The range of the samples' type, whatever the image declares.
pub const MDM_RANGE_TYPE: mdm_range = 1;
/// The range that the image declares, and that of its type where it declares none.
pub const MDM_RANGE_DECLARED: mdm_range = 2;
/// range_low and range_high are the stored values, for all channels.
pub const MDM_RANGE_FIXED: mdm_range = 3;
/// range_low and range_high are percentiles of the whole image, for each channel by itself; 0 and 0 stand for 1 and 99.8.
pub const MDM_RANGE_PERCENTILE: mdm_range = 4;

/// What looks wrong about an image's values; bits that are combined by |. The log says it in words.
pub type mdm_intensity_warnings = u32;

/// They take up less than a sixteenth of their range: set another range.
pub const MDM_INTENSITIES_NARROW: mdm_intensity_warnings = 1;
/// Many are outside the range, or outside of what the model was fitted on.
pub const MDM_INTENSITIES_OUTSIDE: mdm_intensity_warnings = 2;
/// All pixels have the same value.
pub const MDM_INTENSITIES_NO_CONTRAST: mdm_intensity_warnings = 4;

/// `None` where the model decides.
#[doc(hidden)]
pub fn range_of(range: mdm_range, low: f64, high: f64) -> Result<Option<IntensityRange>, Failure> {
    if !matches!(range, MDM_RANGE_FIXED | MDM_RANGE_PERCENTILE) && (low, high) != (0.0, 0.0) {
        return Err(Failure::argument(
            "range_low and range_high must be 0 unless range is MDM_RANGE_FIXED or MDM_RANGE_PERCENTILE",
        ));
    }
    let range = match range {
        MDM_RANGE_AS_MODEL => return Ok(None),
        MDM_RANGE_TYPE => IntensityRange::Type,
        MDM_RANGE_DECLARED => IntensityRange::Declared,
        MDM_RANGE_FIXED => IntensityRange::fixed(low, high)?,
        MDM_RANGE_PERCENTILE if (low, high) == (0.0, 0.0) => IntensityRange::PERCENTILE,
        MDM_RANGE_PERCENTILE => IntensityRange::Percentile { low, high },
        other => return Err(Failure::argument(format!("range: {other} is none of the MDM_RANGE constants"))),
    };
    range.validate()?;
    Ok(Some(range))
}

/// What an image declares; 0 and 0 say that it declares nothing.
pub(super) fn declared_of(low: f64, high: f64) -> Result<Option<Limits>, Failure> {
    if (low, high) == (0.0, 0.0) { Ok(None) } else { Ok(Some(Limits::new(low, high)?)) }
}

/// A range and its two numbers, of the first channel.
pub(super) fn numbers_of(range: &IntensityRange) -> (mdm_range, f64, f64) {
    match range {
        IntensityRange::Type => (MDM_RANGE_TYPE, 0.0, 0.0),
        IntensityRange::Declared => (MDM_RANGE_DECLARED, 0.0, 0.0),
        IntensityRange::Fixed { limits } => limits
            .first()
            .map_or((MDM_RANGE_FIXED, 0.0, 0.0), |limits| (MDM_RANGE_FIXED, limits.low, limits.high)),
        IntensityRange::Percentile { low, high } => (MDM_RANGE_PERCENTILE, *low, *high),
    }
}

/// Tells the log what looks wrong, and which bits say so.
#[doc(hidden)]
pub fn warn(report: &IntensityReport) -> mdm_intensity_warnings {
    let mut bits = 0;
    for warning in &report.warnings {
        bits |= match warning {
            IntensityWarning::Narrow { .. } => MDM_INTENSITIES_NARROW,
            IntensityWarning::Outside { .. } => MDM_INTENSITIES_OUTSIDE,
            IntensityWarning::NoContrast { .. } => MDM_INTENSITIES_NO_CONTRAST,
        };
        log::write(MDM_LOG_WARNING, || match warning.suggestion() {
            Some(range) => format!("{warning}; set the range to {range}, or to percentiles"),
            None => warning.to_string(),
        });
    }
    bits
}
