//! What files say about the intensities in them.

use std::fmt;

use crate::read::Pixels;

/// The type of the values in a file. In memory they may have a wider one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredType {
    /// How bits stand for numbers.
    pub kind: NumberKind,
    /// Bits of a value, 1 to 64.
    pub bits: u8,
}

/// How bits stand for numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NumberKind {
    /// Whole numbers from zero on.
    Unsigned,
    /// Whole numbers in two's complement.
    Signed,
    /// IEEE floating point.
    Float,
}

impl StoredType {
    /// 8-bit unsigned numbers, the most common type.
    pub const U8: Self = Self::unsigned(8);
    /// 16-bit unsigned numbers.
    pub const U16: Self = Self::unsigned(16);
    /// 32-bit floating-point numbers.
    pub const F32: Self = Self { kind: NumberKind::Float, bits: 32 };

    /// Unsigned numbers.
    pub const fn unsigned(bits: u8) -> Self {
        Self { kind: NumberKind::Unsigned, bits }
    }

    /// The lowest and the highest number that the type can express; floating-point types have no such limits.
    pub fn limits(self) -> Option<(f64, f64)> {
        let bits = i32::from(self.bits);
        match self.kind {
            NumberKind::Unsigned => Some((0.0, 2f64.powi(bits) - 1.0)),
            NumberKind::Signed => Some((-2f64.powi(bits - 1), 2f64.powi(bits - 1) - 1.0)),
            NumberKind::Float => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NumberKind::Unsigned => "unsigned",
            NumberKind::Signed => "signed",
            NumberKind::Float => "floating-point",
        };
        write!(f, "{}-bit {kind}", self.bits)
    }
}

/// Between which intensities a file says that its values lie, where that is less than its type can express.
///
/// A range that a value of the image contradicts is not believed and does not appear. The minimum and maximum that ImageJ writes
/// say how an image was shown on a screen, and are no such range.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredRange {
    /// The lowest and the highest intensity of each channel except opacity, in stored units; lowest < highest.
    pub channels: Vec<(f64, f64)>,
    /// What says so.
    pub source: RangeSource,
}

/// Where a [`DeclaredRange`] stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeSource {
    /// `SignificantBits` in OME-XML.
    OmeSignificantBits,
    /// The TIFF tags MinSampleValue and MaxSampleValue, or SMinSampleValue and SMaxSampleValue.
    TiffSampleValues,
    /// The chunk `sBIT` of a PNG whose values were not scaled to its depth.
    PngSignificantBits,
    /// Bits a value, where these are less than those of the type that is held in memory.
    BitsPerSample,
}

impl fmt::Display for RangeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OmeSignificantBits => "OME SignificantBits",
            Self::TiffSampleValues => "TIFF MinSampleValue and MaxSampleValue",
            Self::PngSignificantBits => "PNG sBIT",
            Self::BitsPerSample => "TIFF BitsPerSample",
        })
    }
}

impl DeclaredRange {
    /// The range of values of `bits` significant bits, if that is less than the type can express.
    pub(crate) fn of_significant_bits(
        bits: u8,
        stored: StoredType,
        colours: usize,
        source: RangeSource,
    ) -> Option<Self> {
        let range = StoredType { bits, ..stored }.limits()?;
        (1..stored.bits).contains(&bits).then(|| Self { channels: vec![range; colours], source })
    }

    /// From the chunk `sBIT`, which has a number for each channel.
    ///
    /// The standard has such values scaled to the depth of the PNG, by shifting them to the left or by repeating their highest bits:
    /// these fill their type. There is a range only where a value was neither.
    pub(crate) fn of_png(bits: &[u8], pixels: &Pixels, channels: usize) -> Option<Self> {
        let colours = channels;
        let bits = bits.get(..colours)?;
        fn unscaled<T: Copy + Into<u32>>(values: &[T], channels: usize, depth: u32, bits: &[u8]) -> bool {
            values.chunks_exact(channels).any(|pixel| {
                pixel.iter().zip(bits).any(|(value, bits)| {
                    let (value, bits): (u32, u32) = ((*value).into(), (*bits).into());
                    let missing = depth.saturating_sub(bits);
                    let shifted = (value >> missing) << missing;
                    let repeated = shifted | (value >> missing >> bits.saturating_sub(missing));
                    bits > 0 && missing > 0 && value != shifted && value != repeated
                })
            })
        }
        let unscaled = match pixels {
            Pixels::U8(values) => unscaled(values, channels, 8, bits),
            Pixels::U16(values) => unscaled(values, channels, 16, bits),
            Pixels::F32(_) => false,
        };
        let channels = bits.iter().map(|bits| (0.0, 2f64.powi((*bits).into()) - 1.0)).collect();
        unscaled.then_some(Self { channels, source: RangeSource::PngSignificantBits })
    }

    /// The range, if it is one and no pixel of `channels` values contradicts it.
    pub(crate) fn believed(self, pixels: &Pixels, channels: usize) -> Option<Self> {
        fn within<T: Copy + Into<f64>>(values: &[T], channels: usize, ranges: &[(f64, f64)]) -> bool {
            values.chunks_exact(channels).all(|pixel| {
                pixel.iter().zip(ranges).all(|(value, (low, high))| (*low..=*high).contains(&(*value).into()))
            })
        }
        let possible = self.channels.iter().all(|(low, high)| low < high);
        let within = possible
            && match pixels {
                Pixels::U8(values) => within(values, channels, &self.channels),
                Pixels::U16(values) => within(values, channels, &self.channels),
                Pixels::F32(values) => within(values, channels, &self.channels),
            };
        within.then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_limits() {
        assert_eq!(StoredType::unsigned(12).limits(), Some((0.0, 4095.0)));
        assert_eq!(StoredType { kind: NumberKind::Signed, bits: 16 }.limits(), Some((-32768.0, 32767.0)));
        assert_eq!(StoredType::F32.limits(), None);
        assert_eq!(StoredType::U16.to_string(), "16-bit unsigned");
    }

    #[test]
    fn a_contradicted_range_is_not_believed() {
        let range = |low, high| DeclaredRange {
            channels: vec![(low, high), (0.0, 9.0)],
            source: RangeSource::TiffSampleValues,
        };
        let pixels = Pixels::U16(vec![100, 0, 200, 9]);
        assert_eq!(range(100.0, 200.0).believed(&pixels, 2), Some(range(100.0, 200.0)));
        for (low, high) in [(101.0, 200.0), (100.0, 199.0), (300.0, 300.0), (f64::NAN, 300.0)] {
            assert_eq!(range(low, high).believed(&pixels, 2), None);
        }
    }

    #[test]
    fn significant_bits_of_a_png_count_where_values_were_not_scaled() {
        let of = |values: &[u16]| DeclaredRange::of_png(&[12], &Pixels::U16(values.to_vec()), 1);
        let range = of(&[5, 4095]).unwrap();
        assert_eq!((range.channels, range.source), (vec![(0.0, 4095.0)], RangeSource::PngSignificantBits));
        assert_eq!(of(&[16 * 5, 16 * 4095]), None);
        assert_eq!(of(&[0xABCA, 0x1231, 16]), None);
        assert_eq!(DeclaredRange::of_png(&[16], &Pixels::U16(vec![5]), 1), None);
    }
}
