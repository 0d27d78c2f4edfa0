//! Which planes of image files are read, and what is said about files that hold more, or odd pixel sizes.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use mdm_images::{ChannelChoice, Image, ReadOptions, ZChoice};
use serde::{Deserialize, Serialize};

use crate::arguments::positive;
use crate::device::size;
use crate::error::{Result, usage, warn};

/// Sizes of pixels that count as one.
const ALIKE: f64 = 0.05;

/// What is read of files that hold more than one plane.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "Files that hold several planes")]
#[serde(default)]
pub(crate) struct PlaneArguments {
    /// Channels by number or name, such as 2 or DAPI; a network of three channels takes three of them, such as 3,1,2, or one
    /// [default: the colours of a colour image, or else the first]
    #[arg(long, value_name = "CHANNEL,...", value_delimiter = ',', value_parser = checked::<ChannelChoice>)]
    pub(crate) channels: Vec<String>,

    /// Plane of a stack: its number, "mid", or "max" for the brightest value of all planes [default: 1]
    #[arg(long, value_name = "PLANE", value_parser = checked::<ZChoice>)]
    pub(crate) z: Option<String>,

    /// Time of a series, by its number [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) time: Option<usize>,

    /// Most memory that the pixels of one image may take [default: 8.6GB]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Computing")]
    pub(crate) max_image_memory: Option<u64>,
}

/// The text, if it can be read as a `T`.
fn checked<T: std::str::FromStr<Err = String>>(text: &str) -> Result<String, String> {
    text.parse::<T>().map(|_| text.trim().to_owned())
}

impl PlaneArguments {
    /// For reading images whose pixels have a size of `mpp`, if the command line says so.
    pub(crate) fn options(&self, mpp: Option<f64>) -> ReadOptions {
        ReadOptions {
            channels: self.channels.iter().filter_map(|channel| channel.parse().ok()).collect(),
            z: self.z.as_ref().and_then(|z| z.parse().ok()),
            time: self.time,
            microns_per_pixel: mpp,
            most_bytes: self.max_image_memory,
        }
    }

    /// Refuses numbers of channels that a network of `inputs` cannot take: one is repeated, others have to be as many.
    pub(crate) fn check(&self, inputs: usize) -> Result<()> {
        let count = self.channels.len();
        if count <= 1 || count == inputs {
            return Ok(());
        }
        let wanted = if inputs == 1 { "1".to_owned() } else { format!("1 or {inputs}") };
        Err(usage(format!("--channels names {count} channels, but the network takes {wanted}")))
    }

    /// What of `before` is not said anew.
    pub(crate) fn or(self, before: Self) -> Self {
        Self {
            channels: if self.channels.is_empty() { before.channels } else { self.channels },
            z: self.z.or(before.z),
            time: self.time.or(before.time),
            max_image_memory: self.max_image_memory.or(before.max_image_memory),
        }
    }

    /// What changes results, in words.
    pub(crate) fn settings(&self) -> String {
        let time = self.time.map(|time| time.to_string());
        let said = |value: Option<String>| value.unwrap_or_else(|| "first".to_owned());
        let channels = (!self.channels.is_empty()).then(|| self.channels.join("+"));
        format!(", channels {}, z {}, time {}", said(channels), said(self.z.clone()), said(time))
    }
}

/// What is said about images as they are read, each kind once.
#[derive(Debug, Default)]
pub(crate) struct ImageNotes {
    /// Size of a pixel that the network knows.
    network: Option<f64>,
    /// Whether it learns its size from the images, if it knows none.
    learns: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    left_out: bool,
    odd: bool,
    unknown: bool,
    differing: bool,
    /// The first size.
    microns: Option<Option<f64>>,
}

impl ImageNotes {
    /// For images that a network is to segment, whose unknown sizes are counted elsewhere.
    pub(crate) fn for_segmenting() -> Self {
        Self {
            state: Mutex::new(State { unknown: true, differing: true, ..State::default() }),
            ..Self::default()
        }
    }

    /// For images that something is fitted to; `network` is the size of its pixels, if it is known.
    pub(crate) fn for_fitting(network: Option<f64>) -> Self {
        Self { network, learns: true, ..Self::default() }
    }

    /// For images that a network is trained on, which are brought to `network` micrometres a pixel if that is given.
    pub(crate) fn for_training(network: Option<f64>) -> Self {
        Self { network, ..Self::default() }
    }

    /// Says what is new about the image in `path`.
    pub(crate) fn look(&self, path: &Path, image: &Image) {
        for message in self.news(path, image) {
            warn(message);
        }
    }

    fn news(&self, path: &Path, image: &Image) -> Vec<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut news = Vec::new();
        let name = path.display();
        if let Some(taken) = &image.left_out
            && !std::mem::replace(&mut state.left_out, true)
        {
            news.push(format!(
                "{name}: only {taken} is used, and so of other images like it; choose with --channels, --z and --time"
            ));
        }
        if let Some(size) = &image.odd_pixel_size
            && !std::mem::replace(&mut state.odd, true)
        {
            news.push(format!(
                "{name}: says about the size of its pixels: {size}; this is not understood and left out of account: give --mpp"
            ));
        }
        let first = *state.microns.get_or_insert(image.microns_per_pixel);
        match (self.network, image.microns_per_pixel) {
            (Some(network), None) if !std::mem::replace(&mut state.unknown, true) => {
                news.push(format!(
                    "{name}: does not say how large its pixels are and is taken as it is, and so are others like it; the network's \
                     are {network} um: give --mpp if theirs differ"
                ));
            }
            (None, size) if !alike(size, first) && !std::mem::replace(&mut state.differing, true) => {
                let in_words = |size: Option<f64>| {
                    size.map_or_else(|| "of unknown size".to_owned(), |size| format!("of {size} um"))
                };
                let result = if self.learns { ", and the model will not know its own" } else { "" };
                news.push(format!(
                    "{name}: has pixels {}, others have pixels {}; all are taken as they are{result}: give --mpp if these sizes are wrong, \
                     or bring the images to one size",
                    in_words(size),
                    in_words(first)
                ));
            }
            _ => {}
        }
        news
    }
}

fn alike(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a / b - 1.0).abs() <= ALIKE,
        (None, None) => true,
        _ => false,
    }
}

/// An error about the scale of an image whose file stated its size: nobody typed it.
pub(crate) fn stated_by_file(error: mdm::Error, image: &Image, mpp: Option<f64>) -> mdm::Error {
    match (error, image.microns_per_pixel, mpp) {
        (mdm::Error::Invalid { what: "microns per pixel", reason }, Some(_), None) => {
            mdm::Error::Image(format!("{reason} The file says so; if it is wrong, give the size with --mpp"))
        }
        (error, ..) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_images::Pixels;

    fn image(microns: Option<f64>) -> Image {
        Image { microns_per_pixel: microns, ..Image::new(1, 1, 1, Pixels::U8(vec![0])) }
    }

    #[test]
    fn each_kind_of_news_is_told_once() {
        let count = |notes: &ImageNotes, image: &Image| notes.news(Path::new("a.tif"), image).len();
        let stack = Image { left_out: Some("plane 1 of 3".to_owned()), ..image(Some(0.5)) };
        let notes = ImageNotes::for_fitting(Some(0.5));
        assert_eq!((count(&notes, &stack), count(&notes, &stack)), (1, 0));
        assert_eq!((count(&notes, &image(None)), count(&notes, &image(None))), (1, 0));
        let notes = ImageNotes::for_fitting(None);
        assert_eq!([None, None, Some(1.0), Some(2.0)].map(|size| count(&notes, &image(size))), [0, 0, 1, 0]);
        let notes = ImageNotes::for_training(None);
        let sizes = [Some(1.0), Some(1.01), Some(2.0)];
        assert_eq!(sizes.map(|size| count(&notes, &image(size))), [0, 0, 1]);
        let notes = ImageNotes::for_segmenting();
        assert_eq!([None, Some(1.0), Some(2.0)].map(|size| count(&notes, &image(size))), [0, 0, 0]);
    }

    #[test]
    fn a_network_takes_one_channel_or_all() {
        let named = |channels: &[&str]| PlaneArguments {
            channels: channels.iter().map(|channel| (*channel).to_owned()).collect(),
            ..PlaneArguments::default()
        };
        assert!(named(&["2"]).check(3).is_ok() && named(&["1", "2", "DAPI"]).check(3).is_ok());
        assert!(named(&[]).check(1).is_ok() && named(&["1", "2", "3"]).check(1).is_err());
        assert!(named(&["1", "2"]).check(3).unwrap_err().to_string().contains("1 or 3"));
    }
}
