//! What pixels are made of.

use crate::intensity::Limits;

/// Layout of one pixel. Samples of more than 8 bits have the machine's byte order.
///
/// Alpha is ignored: neither composed onto a background nor divided out of premultiplied colours. Which stored values the network
/// sees as black and white is said by an [`IntensityRange`](crate::intensity::IntensityRange); where nothing else is said, it is
/// the range given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PixelFormat {
    /// One channel, 0..=255.
    Grey8,
    /// One channel, 0..=65535.
    Grey16,
    /// One channel, 0.0..=1.0.
    GreyF32,
    /// Red, green, blue, 0..=255.
    Rgb8,
    /// Red, green, blue, 0..=65535.
    Rgb16,
    /// Red, green, blue, 0.0..=1.0.
    RgbF32,
    /// Red, green, blue, alpha, 0..=255.
    Rgba8,
    /// Blue, green, red, alpha, 0..=255.
    Bgra8,
    /// Red, green, blue, alpha, 0..=65535.
    Rgba16,
    /// One channel, signed, -32768..=32767.
    GreyI16,
    /// One channel, 0..=4294967295. Values are taken as f32: whole numbers are exact up to 2^24.
    GreyU32,
    /// One channel, signed, -2147483648..=2147483647; likewise.
    GreyI32,
    /// One channel of half precision (IEEE 754 binary16), 0.0..=1.0.
    GreyF16,
    /// One channel of double precision, 0.0..=1.0; values are taken as f32.
    GreyF64,
    /// Red, green, blue, signed, -32768..=32767.
    RgbI16,
    /// Red, green, blue, 0..=4294967295; as [`GreyU32`](Self::GreyU32).
    RgbU32,
    /// Red, green, blue, signed, -2147483648..=2147483647; likewise.
    RgbI32,
    /// Red, green, blue in half precision, 0.0..=1.0.
    RgbF16,
    /// Red, green, blue in double precision, 0.0..=1.0; values are taken as f32.
    RgbF64,
}

/// Type of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sample {
    U8,
    U16,
    I16,
    U32,
    I32,
    F16,
    F32,
    F64,
}

impl Sample {
    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Values of every `step`th sample of `bytes` from the first on.
    pub(super) fn read<'a>(self, bytes: &[u8], step: usize, out: impl Iterator<Item = &'a mut f32>) {
        fn each<'a, const N: usize>(
            bytes: &[u8],
            step: usize,
            out: impl Iterator<Item = &'a mut f32>,
            value: impl Fn([u8; N]) -> f32,
        ) {
            let (samples, _) = bytes.as_chunks::<N>();
            for (out, sample) in out.zip(samples.iter().step_by(step)) {
                *out = value(*sample);
            }
        }
        match self {
            Self::U8 => each(bytes, step, out, |[byte]| f32::from(byte)),
            Self::U16 => each(bytes, step, out, |sample| f32::from(u16::from_ne_bytes(sample))),
            Self::I16 => each(bytes, step, out, |sample| f32::from(i16::from_ne_bytes(sample))),
            Self::U32 => each(bytes, step, out, |sample| u32::from_ne_bytes(sample) as f32),
            Self::I32 => each(bytes, step, out, |sample| i32::from_ne_bytes(sample) as f32),
            Self::F16 => each(bytes, step, out, |sample| half::f16::from_ne_bytes(sample).to_f32()),
            Self::F32 => each(bytes, step, out, f32::from_ne_bytes),
            Self::F64 => each(bytes, step, out, |sample| f64::from_ne_bytes(sample) as f32),
        }
    }
}

impl PixelFormat {
    /// Bytes of a pixel.
    pub fn bytes_per_pixel(self) -> usize {
        self.samples() * self.bytes_per_sample()
    }

    /// Channels without alpha: 1 or 3.
    pub fn colours(self) -> usize {
        self.order().len()
    }

    /// The values of its type that stand for black and white where nothing else is said.
    pub fn full_range(self) -> Limits {
        let (low, high) = match self.sample() {
            Sample::U8 => (0.0, f64::from(u8::MAX)),
            Sample::U16 => (0.0, f64::from(u16::MAX)),
            Sample::I16 => (f64::from(i16::MIN), f64::from(i16::MAX)),
            Sample::U32 => (0.0, f64::from(u32::MAX)),
            Sample::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
            Sample::F16 | Sample::F32 | Sample::F64 => (0.0, 1.0),
        };
        Limits { low, high }
    }

    /// Where grey, or red, green and blue are among a pixel's samples.
    pub(super) fn order(self) -> &'static [usize] {
        match self {
            Self::Grey8
            | Self::Grey16
            | Self::GreyI16
            | Self::GreyU32
            | Self::GreyI32
            | Self::GreyF16
            | Self::GreyF32
            | Self::GreyF64 => &[0],
            Self::Bgra8 => &[2, 1, 0],
            Self::Rgb8
            | Self::Rgb16
            | Self::RgbI16
            | Self::RgbU32
            | Self::RgbI32
            | Self::RgbF16
            | Self::RgbF32
            | Self::RgbF64
            | Self::Rgba8
            | Self::Rgba16 => &[0, 1, 2],
        }
    }

    /// Channels with alpha.
    pub(crate) fn samples(self) -> usize {
        match self {
            Self::Rgba8 | Self::Bgra8 | Self::Rgba16 => 4,
            _ => self.colours(),
        }
    }

    /// Bytes of a sample.
    pub(super) fn bytes_per_sample(self) -> usize {
        self.sample().bytes()
    }

    pub(super) fn sample(self) -> Sample {
        match self {
            Self::Grey8 | Self::Rgb8 | Self::Rgba8 | Self::Bgra8 => Sample::U8,
            Self::Grey16 | Self::Rgb16 | Self::Rgba16 => Sample::U16,
            Self::GreyI16 | Self::RgbI16 => Sample::I16,
            Self::GreyU32 | Self::RgbU32 => Sample::U32,
            Self::GreyI32 | Self::RgbI32 => Sample::I32,
            Self::GreyF16 | Self::RgbF16 => Sample::F16,
            Self::GreyF32 | Self::RgbF32 => Sample::F32,
            Self::GreyF64 | Self::RgbF64 => Sample::F64,
        }
    }
}
