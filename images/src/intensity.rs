//! What files say about the intensities in them.

use std::fmt;

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
