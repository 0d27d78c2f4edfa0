//! Which of a file's planes are wanted.

use std::fmt;
use std::str::FromStr;

/// What is read of files that hold more than one plane, and how large pixels are whatever the files say.
///
/// By default, that is the colours of a colour image, or the first channel of others, of the first plane of a stack at the first
/// time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// Channels in the order in which the network is to get them; if there are none, the default.
    pub channels: Vec<ChannelChoice>,
    /// The plane of a stack.
    pub z: Option<ZChoice>,
    /// The time in a series, from 1 on.
    pub time: Option<usize>,
    /// Micrometres along a side of a pixel; what the file says is not even looked at then.
    pub microns_per_pixel: Option<f64>,
    /// Most bytes that the pixels of one image may take; if nothing is said, [`Self::MOST_BYTES`].
    pub most_bytes: Option<u64>,
}

impl ReadOptions {
    /// Most bytes of an image's pixels, if nothing else is said.
    pub const MOST_BYTES: u64 = 8 << 30;

    pub(crate) fn limit(&self) -> u64 {
        self.most_bytes.unwrap_or(Self::MOST_BYTES)
    }
}

/// A channel of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelChoice {
    /// Counted from 1 on.
    Number(usize),
    /// As the file calls it; case does not matter.
    Name(String),
}

impl FromStr for ChannelChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.trim(), text.trim().parse()) {
            ("", _) => Err("a channel is a number from 1 on or a name".to_owned()),
            (_, Ok(0)) => Err("channels are counted from 1 on".to_owned()),
            (_, Ok(number)) => Ok(Self::Number(number)),
            (name, Err(_)) => Ok(Self::Name(name.to_owned())),
        }
    }
}

impl fmt::Display for ChannelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A plane of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZChoice {
    /// Counted from 1 on.
    Plane(usize),
    /// The one in the middle.
    Middle,
    /// The highest value of each pixel in all planes.
    Maximum,
}

impl FromStr for ZChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("max", _) => Ok(Self::Maximum),
            ("mid", _) => Ok(Self::Middle),
            (_, Ok(plane)) if plane > 0 => Ok(Self::Plane(plane)),
            _ => Err("must be the number of a plane from 1 on, \"mid\" for the middle one or \"max\" for the maximum of all"
                .to_owned()),
        }
    }
}

impl fmt::Display for ZChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plane(plane) => write!(f, "{plane}"),
            Self::Middle => f.write_str("mid"),
            Self::Maximum => f.write_str("max"),
        }
    }
}

/// How many channels, planes and times there are, and what was asked for among them.
pub(crate) struct Extent<'a> {
    /// Names of the channels where they have one; as many as there are channels.
    pub(crate) channels: &'a [Option<String>],
    /// Channels that are read together unless others are named: three of colour images.
    pub(crate) colours: usize,
    pub(crate) z: usize,
    pub(crate) times: usize,
}

/// What is to be read, counted from 0 on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Never empty.
    pub(crate) channels: Vec<usize>,
    /// Planes of which the maximum is taken; never empty.
    pub(crate) z: std::ops::Range<usize>,
    pub(crate) time: usize,
    /// In words, what was taken of how many where nobody had chosen.
    pub(crate) left_out: Option<String>,
}

impl Extent<'_> {
    /// What `options` choose of this.
    pub(crate) fn choose(&self, options: &ReadOptions) -> Result<Chosen, String> {
        let mut left_out = Vec::new();
        let channels = if options.channels.is_empty() {
            if self.colours < self.channels.len() {
                let name = self.channels[0].as_ref().map_or_else(String::new, |name| format!(" ({name})"));
                let which = match self.colours {
                    1 => format!("channel 1{name}"),
                    colours => format!("channels 1 to {colours}"),
                };
                left_out.push(format!("{which} of {}", self.channels.len()));
            }
            (0..self.colours).collect()
        } else {
            options.channels.iter().map(|choice| self.channel(choice)).collect::<Result<_, _>>()?
        };
        let missing = |what: &str, number: usize, count: usize, option: &str| {
            let plural = if count == 1 { "" } else { "s" };
            Err(format!("has {count} {what}{plural}, but {option} asks for number {number}"))
        };
        let z = match options.z {
            Some(ZChoice::Plane(plane)) if plane > self.z || plane == 0 => {
                return missing("plane", plane, self.z, "--z");
            }
            Some(ZChoice::Plane(plane)) => plane - 1..plane,
            Some(ZChoice::Middle) => (self.z - 1) / 2..(self.z - 1) / 2 + 1,
            Some(ZChoice::Maximum) => 0..self.z,
            None => {
                if self.z > 1 {
                    left_out.push(format!("plane 1 of {}", self.z));
                }
                0..1
            }
        };
        let time = match options.time {
            Some(time) if time > self.times || time == 0 => {
                return missing("time", time, self.times, "--time");
            }
            Some(time) => time - 1,
            None => {
                if self.times > 1 {
                    left_out.push(format!("time 1 of {}", self.times));
                }
                0
            }
        };
        let left_out = (!left_out.is_empty()).then(|| left_out.join(", "));
        Ok(Chosen { channels, z, time, left_out })
    }

    fn channel(&self, choice: &ChannelChoice) -> Result<usize, String> {
        let count = self.channels.len();
        let plural = if count == 1 { "" } else { "s" };
        match choice {
            ChannelChoice::Number(number) if (1..=count).contains(number) => Ok(number - 1),
            ChannelChoice::Number(number) => {
                Err(format!("has {count} channel{plural}, but --channels asks for number {number}"))
            }
            ChannelChoice::Name(name) => {
                let called = |known: &Option<String>| {
                    known.as_ref().is_some_and(|known| known.to_lowercase() == name.to_lowercase())
                };
                self.channels.iter().position(called).ok_or_else(|| {
                    let known: Vec<&str> = self.channels.iter().flatten().map(String::as_str).collect();
                    if known.is_empty() {
                        format!("does not name its {count} channel{plural}; --channels needs a number instead of {name:?}")
                    } else {
                        format!("has no channel {name:?}; its channels are {}", known.join(", "))
                    }
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_numbers_and_names() {
        let names = ["DAPI", "GFP", "Cy5"].map(|name| Some(name.to_owned()));
        let extent = Extent { channels: &names, colours: 1, z: 4, times: 2 };
        let choose = |channels: &str, z: &str, time| {
            extent.choose(&ReadOptions {
                channels: channels.split_terminator(',').map(|choice| choice.parse().unwrap()).collect(),
                z: z.parse().ok(),
                time,
                ..ReadOptions::default()
            })
        };
        let all = choose("3,gfp", "max", Some(2)).unwrap();
        assert_eq!((all.channels, all.z, all.time, all.left_out), (vec![2, 1], 0..4, 1, None));
        let first = choose("", "", None).unwrap();
        assert_eq!((first.channels, first.z, first.time), (vec![0], 0..1, 0));
        assert_eq!(first.left_out.unwrap(), "channel 1 (DAPI) of 3, plane 1 of 4, time 1 of 2");
        assert_eq!(choose("1", "mid", Some(1)).unwrap().z, 1..2);
        for (refused, words) in [
            (choose("4", "1", Some(1)), "has 3 channels, but --channels asks for number 4"),
            (choose("Cy3", "1", Some(1)), "no channel \"Cy3\"; its channels are DAPI, GFP, Cy5"),
            (choose("1", "5", Some(1)), "has 4 planes, but --z asks for number 5"),
            (choose("1", "1", Some(3)), "has 2 times, but --time asks for number 3"),
        ] {
            let message = refused.unwrap_err();
            assert!(message.contains(words), "{message}");
        }
        assert!("0".parse::<ChannelChoice>().is_err() && "0".parse::<ZChoice>().is_err());
    }
}
