//! Classes by the colours they are drawn in.

use std::collections::HashMap;
use std::str::FromStr;

use super::UNLABELLED;

/// Colours that are told apart before a file counts as a picture.
const MOST_COLOURS: usize = 256;

/// Colours that a message names.
const NAMED: usize = 10;

/// Which class is drawn in which colour, as `#000000=0,#ff0000=1,#808080=255`; 255 stands for "not labelled".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelColours(Vec<([u8; 3], u8)>);

impl LabelColours {
    /// The class that is drawn in this colour.
    pub fn class(&self, colour: [u8; 3]) -> Option<u8> {
        self.0.iter().find(|(known, _)| *known == colour).map(|(_, class)| *class)
    }
}

impl FromStr for LabelColours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut colours: Vec<([u8; 3], u8)> = Vec::new();
        for part in text.split(',') {
            let wrong = || {
                format!(
                    "{part:?} is no colour and class; write for example #000000=0,#ff0000=1,#808080={UNLABELLED} \
                     ({UNLABELLED}: not labelled)"
                )
            };
            let (colour, class) = part.trim().split_once('=').ok_or_else(wrong)?;
            let digits = colour.trim().trim_start_matches('#');
            if digits.len() != 6 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            let number = u32::from_str_radix(digits, 16).map_err(|_| wrong())?;
            let [_, red, green, blue] = number.to_be_bytes();
            let class = class.trim().parse().map_err(|_| wrong())?;
            if colours.iter().any(|(known, _)| *known == [red, green, blue]) {
                return Err(format!("#{digits} is given twice"));
            }
            colours.push(([red, green, blue], class));
        }
        Ok(Self(colours))
    }
}

/// `#rrggbb`.
pub(super) fn in_words([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// The most frequent colours and how many pixels have them.
pub(super) fn table(pixels: impl Iterator<Item = [u8; 3]>) -> String {
    let mut counts: HashMap<[u8; 3], u64> = HashMap::new();
    for colour in pixels {
        *counts.entry(colour).or_default() += 1;
        if counts.len() > MOST_COLOURS {
            return format!("more than {MOST_COLOURS} colours, as pictures and smoothed or resized masks do");
        }
    }
    let mut counts: Vec<([u8; 3], u64)> = counts.into_iter().collect();
    counts.sort_by_key(|(colour, count)| (std::cmp::Reverse(*count), *colour));
    let named: Vec<String> = counts
        .iter()
        .take(NAMED)
        .map(|(colour, count)| format!("{} ({count} pixels)", in_words(*colour)))
        .collect();
    let more = counts.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("the colours {}{rest}", named.join(", "))
}
