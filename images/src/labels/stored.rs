//! What the samples of a label file mean.

use std::path::Path;

use super::colours::{LabelColours, in_words};
use super::{LabelNumbers, Numbers, UNLABELLED, UNLABELLED_WIDE};
use crate::Orientation;
use crate::error::{Result, failed};

/// Samples as a file stores them.
pub(super) struct Stored {
    pub(super) width: usize,
    pub(super) height: usize,
    /// 1 (grey or index), 2 (grey and opacity), 3 (RGB) or 4 (RGB and opacity).
    pub(super) channels: usize,
    /// `[height, width, channels]`.
    pub(super) samples: Samples,
    /// The largest value that a sample of this file can have.
    pub(super) most: u32,
    pub(super) palette: Option<Palette>,
    /// The grey or the colour that the file declares transparent.
    pub(super) transparent: Option<Vec<u32>>,
    /// How it is turned before it is shown, as its image is.
    pub(super) orientation: Orientation,
}

pub(super) enum Samples {
    Bytes(Vec<u8>),
    Wide(Vec<u32>),
}

/// Colours of indices, and their opacity as far as it is stated.
pub(super) struct Palette {
    pub(super) colours: Vec<[u8; 3]>,
    pub(super) opacity: Vec<u8>,
}

impl Palette {
    fn colour(&self, index: u8) -> [u8; 3] {
        self.colours.get(usize::from(index)).copied().unwrap_or_default()
    }

    fn opacity(&self, index: u8) -> u8 {
        self.opacity.get(usize::from(index)).copied().unwrap_or(255)
    }

    /// Whether the greys of the palette, rather than its indices, are numbers.
    ///
    /// They are where all of them together could be a numbering: 0, 1, 2 ... with few gaps, and 255. Greys that are spread
    /// out to be seen (black and white, or shades), and ramps, only show what the indices are.
    fn greys_are_numbers(&self) -> bool {
        let mut present = [false; 256];
        for [red, green, blue] in &self.colours {
            if red != green || green != blue {
                return false;
            }
            present[usize::from(*red)] = true;
        }
        let inverted = self.colours.len() == 256
            && self.colours.iter().enumerate().all(|(index, colour)| usize::from(colour[0]) == 255 - index);
        let numbers = &present[..usize::from(UNLABELLED)];
        let count = numbers.iter().filter(|present| **present).count();
        let largest = numbers.iter().rposition(|present| *present).unwrap_or(0);
        !inverted && largest < 4 * count.max(1)
    }
}

impl Stored {
    /// What the samples number.
    pub(super) fn numbers(self, path: &Path, colours: Option<&LabelColours>) -> Result<LabelNumbers> {
        let pixels = self.width * self.height;
        let mut transparent = 0;
        let numbers = match (colours, &self.palette, self.samples) {
            (Some(colours), palette, samples) => {
                let shown =
                    Shown { channels: self.channels, most: self.most, key: &self.transparent, palette };
                let values = by_colour(path, &samples, &shown, colours, &mut transparent)?;
                Numbers::Bytes(values)
            }
            (None, Some(palette), Samples::Bytes(mut indices)) => {
                let greys = palette.greys_are_numbers();
                for index in &mut indices {
                    *index = match palette.opacity(*index) {
                        0 => {
                            transparent += 1;
                            UNLABELLED
                        }
                        255 if greys => palette.colour(*index)[0],
                        255 => *index,
                        _ => return Err(antialiased(path)),
                    };
                }
                Numbers::Bytes(indices)
            }
            (None, _, Samples::Bytes(bytes)) if self.channels == 1 && self.transparent.is_none() => {
                Numbers::Bytes(bytes)
            }
            (None, _, samples) => {
                let shown = Shown {
                    channels: self.channels,
                    most: self.most,
                    key: &self.transparent,
                    palette: &None,
                };
                let mut numbers = Vec::new();
                numbers.try_reserve_exact(pixels).map_err(|_| failed(path, "does not fit into memory"))?;
                for pixel in 0..pixels {
                    numbers.push(match shown.pixel(path, &samples, pixel)? {
                        None => {
                            transparent += 1;
                            UNLABELLED_WIDE
                        }
                        Some([first, second, third]) if first == second && second == third => first,
                        Some(_) => return Err(coloured(path, &samples, &shown)),
                    });
                }
                narrowed(numbers)
            }
        };
        let (width, height, orientation) = (self.width, self.height, self.orientation);
        let numbers = match numbers {
            Numbers::Bytes(values) => orientation.turned(values, (width, height), 1).map(Numbers::Bytes),
            Numbers::Wide(values) => orientation.turned(values, (width, height), 1).map(Numbers::Wide),
        }
        .ok_or_else(|| failed(path, "does not fit into memory"))?;
        let (width, height) = orientation.size((width, height));
        Ok(LabelNumbers { width, height, numbers, transparent })
    }
}

/// Numbers in bytes, where they fit.
fn narrowed(numbers: Vec<u32>) -> Numbers {
    if numbers.iter().any(|number| *number > 255 && *number != UNLABELLED_WIDE) {
        return Numbers::Wide(numbers);
    }
    Numbers::Bytes(numbers.into_iter().map(|number| u8::try_from(number).unwrap_or(UNLABELLED)).collect())
}

/// How samples are looked at as colours.
struct Shown<'a> {
    channels: usize,
    most: u32,
    key: &'a Option<Vec<u32>>,
    palette: &'a Option<Palette>,
}

impl Shown<'_> {
    /// Red, green and blue as stored; nothing where the pixel is transparent.
    fn pixel(&self, path: &Path, samples: &Samples, pixel: usize) -> Result<Option<[u32; 3]>> {
        let mut stored = [0; 4];
        let range = pixel * self.channels..(pixel + 1) * self.channels;
        match samples {
            Samples::Bytes(bytes) => {
                for (stored, byte) in stored.iter_mut().zip(&bytes[range]) {
                    *stored = u32::from(*byte);
                }
            }
            Samples::Wide(values) => {
                for (stored, value) in stored.iter_mut().zip(&values[range]) {
                    *stored = *value;
                }
            }
        }
        let (colour, opacity) = match (self.palette, self.channels) {
            (Some(palette), _) => {
                let index = u8::try_from(stored[0]).unwrap_or(u8::MAX);
                let opacity = u32::from(palette.opacity(index));
                (palette.colour(index).map(u32::from), if opacity == 255 { self.most } else { opacity })
            }
            (None, 1) => ([stored[0]; 3], self.most),
            (None, 2) => ([stored[0]; 3], stored[1]),
            (None, 3) => ([stored[0], stored[1], stored[2]], self.most),
            (None, _) => ([stored[0], stored[1], stored[2]], stored[3]),
        };
        let keyed = self.key.as_ref().is_some_and(|key| key.iter().eq(stored[..self.channels].iter()));
        match opacity {
            0 => Ok(None),
            _ if keyed => Ok(None),
            opacity if opacity == self.most => Ok(Some(colour)),
            _ => Err(antialiased(path)),
        }
    }

    /// A colour in 8 bits a channel.
    fn eight_bits(&self, colour: [u32; 3]) -> [u8; 3] {
        let most = if self.palette.is_some() { 255 } else { u64::from(self.most.max(1)) };
        colour.map(|value| (u64::from(value) * 255 / most).min(255) as u8)
    }
}

fn by_colour(
    path: &Path,
    samples: &Samples,
    shown: &Shown<'_>,
    colours: &LabelColours,
    transparent: &mut u64,
) -> Result<Vec<u8>> {
    let pixels = match samples {
        Samples::Bytes(values) => values.len() / shown.channels,
        Samples::Wide(values) => values.len() / shown.channels,
    };
    (0..pixels)
        .map(|pixel| match shown.pixel(path, samples, pixel)? {
            None => {
                *transparent += 1;
                Ok(UNLABELLED)
            }
            Some(colour) => {
                let colour = shown.eight_bits(colour);
                colours.class(colour).ok_or_else(|| {
                    let table = table(path, samples, shown, pixels);
                    failed(
                        path,
                        format!(
                            "has a colour that no class was given, {}; it holds {table}",
                            in_words(colour)
                        ),
                    )
                })
            }
        })
        .collect()
}

fn antialiased(path: &Path) -> crate::FileError {
    failed(
        path,
        "has pixels that are partly transparent, so it is no label image: it was antialiased or resized; export it without \
         smoothing, and leave transparent (or 255) what is not labelled",
    )
}

fn coloured(path: &Path, samples: &Samples, shown: &Shown<'_>) -> crate::FileError {
    let pixels = match samples {
        Samples::Bytes(values) => values.len() / shown.channels,
        Samples::Wide(values) => values.len() / shown.channels,
    };
    failed(
        path,
        format!(
            "is a colour picture; labels are class indices (grey or with a palette): 0, 1, 2 ..., and 255 where nothing is \
             labelled. It holds {}",
            table(path, samples, shown, pixels)
        ),
    )
}

/// The colours that occur, for a message.
fn table(path: &Path, samples: &Samples, shown: &Shown<'_>, pixels: usize) -> String {
    let seen = (0..pixels).filter_map(|pixel| shown.pixel(path, samples, pixel).ok().flatten());
    super::colours::table(seen.map(|colour| shown.eight_bits(colour)))
}
