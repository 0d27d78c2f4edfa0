//! The size of a pixel as image files state it.
//!
//! Most programs write a resolution of 72, 96, 150 or 300 dots per inch that means a screen or a printer. Even 1200 dots
//! per inch are 21 micrometres a pixel, so anything coarser than [`COARSEST`] is taken for such a default and ignored.

/// Coarsest pixel that is believed, in micrometres.
const COARSEST: f64 = 20.0;

/// Finest pixel that is believed, in micrometres: a tenth of an atom.
const FINEST: f64 = 1e-5;

/// How much wider than high a pixel may be that is taken for a square.
const SQUARE: f64 = 0.01;

/// What a file says about the size of its pixels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PixelSize {
    /// Micrometres along x and y.
    Known { x: f64, y: f64 },
    /// Nothing, or nothing that means an object.
    Absent,
    /// Something, in words, that is not understood or not believed.
    NotUnderstood(String),
}

impl PixelSize {
    /// Micrometres a pixel, where these are plausible.
    pub(crate) fn believable(x: f64, y: f64) -> Self {
        let within = |size| (FINEST..=COARSEST).contains(&size);
        if within(x) && within(y) { Self::Known { x, y } } else { Self::Absent }
    }

    /// From a size along x and y that were stated together with a unit of length.
    pub(crate) fn stated(x: &str, y: Option<&str>, unit: &str) -> Self {
        let shown = || Self::NotUnderstood(format!("{} {}", x.trim(), unit.trim()));
        let y = y.unwrap_or(x);
        let (Some(x), Some(y)) = (number(x), number(y)) else { return shown() };
        let micrometres = match unit_of(unit) {
            Unit::Micrometres(micrometres) => micrometres,
            Unit::Pixels => return Self::Absent,
            Unit::Unknown => return shown(),
        };
        // Zero is what programs write that know of none.
        if x == 0.0 || y == 0.0 {
            return Self::Absent;
        }
        match Self::believable(x * micrometres, y * micrometres) {
            Self::Absent => shown(),
            known => known,
        }
    }

    /// From pixels per unit of length.
    pub(crate) fn of_density(x: f64, y: f64, micrometres: f64) -> Self {
        Self::believable(micrometres / x, micrometres / y)
    }

    /// The same seen with exchanged sides.
    pub(crate) fn transposed(self) -> Self {
        match self {
            Self::Known { x, y } => Self::Known { x: y, y: x },
            other => other,
        }
    }

    /// Whether a pixel is as wide as high; if nothing is known, it is.
    pub(crate) fn is_square(&self) -> bool {
        match self {
            Self::Known { x, y } => (x / y - 1.0).abs() <= SQUARE,
            _ => true,
        }
    }
}

/// A number as people and programs write it, with a point or a comma.
pub(crate) fn number(text: &str) -> Option<f64> {
    text.trim().replace(',', ".").parse().ok().filter(|number: &f64| number.is_finite())
}

/// A unit of length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unit {
    Micrometres(f64),
    /// The image has not been calibrated.
    Pixels,
    Unknown,
}

/// A unit of length by its name or symbol.
pub(crate) fn unit_of(name: &str) -> Unit {
    Unit::Micrometres(match name.trim().to_lowercase().as_str() {
        "µm" | "μm" | "um" | "micron" | "microns" | "micrometer" | "micrometers" | "micrometre"
        | "micrometres" | "\\u00b5m" | "\\u03bcm" => 1.0,
        "nm" | "nanometer" | "nanometers" | "nanometre" | "nanometres" => 1e-3,
        "pm" | "picometer" | "picometre" => 1e-6,
        "å" | "\\u00c5" | "\\u212b" | "angstrom" | "angstroms" => 1e-4,
        "mm" | "millimeter" | "millimeters" | "millimetre" | "millimetres" => 1e3,
        "cm" | "centimeter" | "centimeters" | "centimetre" | "centimetres" => 1e4,
        "m" | "meter" | "meters" | "metre" | "metres" => 1e6,
        "in" | "inch" | "inches" => 25_400.0,
        "pixel" | "pixels" | "px" | "reference frame" | "" => return Unit::Pixels,
        _ => return Unit::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(size: f64) -> PixelSize {
        PixelSize::Known { x: size, y: size }
    }

    #[test]
    fn screen_and_printer_resolutions_are_not_believed() {
        for dots_per_inch in [0.0, 1.0, 72.0, 96.0, 300.0, 1200.0, f64::NAN, f64::INFINITY] {
            let size = PixelSize::of_density(dots_per_inch, dots_per_inch, 25_400.0);
            assert_eq!(size, PixelSize::Absent, "{dots_per_inch} dpi");
        }
        assert_eq!(PixelSize::of_density(50_800.0, 50_800.0, 25_400.0), square(0.5));
    }

    #[test]
    fn numbers_and_units_are_read_as_they_are_written() {
        for (text, unit) in [("0.25", "µm"), ("0,25", "Micron"), (" 250 ", " nm "), ("2.5e-4", "mm")] {
            let PixelSize::Known { x, y } = PixelSize::stated(text, None, unit) else {
                panic!("{text} {unit}")
            };
            assert!((x - 0.25).abs() < 1e-12 && x == y, "{text} {unit}");
        }
        assert_eq!(PixelSize::stated("0.25", Some("0.5"), "um"), PixelSize::Known { x: 0.25, y: 0.5 });
        for (text, unit) in [("0", "µm"), ("1", "pixel"), ("1", "reference frame")] {
            assert_eq!(PixelSize::stated(text, None, unit), PixelSize::Absent);
        }
        for (text, unit) in [("0.25", "furlong"), ("about 1", "µm"), ("1e9", "m"), ("NaN", "µm")] {
            assert!(matches!(PixelSize::stated(text, None, unit), PixelSize::NotUnderstood(_)), "{text}");
        }
    }

    #[test]
    fn pixels_of_unequal_sides_are_told_from_squares() {
        assert!(square(0.5).is_square() && PixelSize::Absent.is_square());
        assert!(PixelSize::Known { x: 0.5, y: 0.5001 }.is_square());
        assert!(!PixelSize::Known { x: 0.5, y: 0.51 }.is_square());
    }
}
