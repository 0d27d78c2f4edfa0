//! How a run is watched, and how often it is saved.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arguments::positive;

/// What was asked for; a run that goes on keeps it.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[command(next_help_heading = "Watching")]
pub(crate) struct Watching {
    /// How often a checkpoint is written: after so many steps (500), minutes (10m) or hours (2h) [default: 10m]
    #[arg(long, value_name = "INTERVAL")]
    save_every: Option<Interval>,

    /// Steps between two sheets of samples; 0 draws none [default: a twentieth of the steps]
    #[arg(long, value_name = "N")]
    samples_every: Option<u64>,

    /// Images on a sheet of samples [default: 8]
    #[arg(long, value_name = "N", value_parser = positive)]
    samples: Option<usize>,
}

impl Watching {
    /// What was asked for now, or else before.
    pub(crate) fn or(self, before: Self) -> Self {
        Self {
            save_every: self.save_every.or(before.save_every),
            samples_every: self.samples_every.or(before.samples_every),
            samples: self.samples.or(before.samples),
        }
    }

    pub(crate) fn save_every(&self) -> Interval {
        self.save_every.unwrap_or(Interval::Time(Duration::from_secs(600)))
    }

    /// In a run of `steps` steps; 0 for never.
    pub(crate) fn samples_every(&self, steps: u64) -> u64 {
        self.samples_every.unwrap_or((steps / 20).max(1))
    }

    pub(crate) fn samples(&self) -> usize {
        self.samples.unwrap_or(8)
    }
}

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Interval {
    Steps(u64),
    Time(Duration),
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "must be steps (500), seconds (90s), minutes (10m) or hours (2h), 1 or more".to_owned();
        let (number, seconds) = match text.as_bytes().last() {
            Some(b's') => (&text[..text.len() - 1], 1),
            Some(b'm') => (&text[..text.len() - 1], 60),
            Some(b'h') => (&text[..text.len() - 1], 3600),
            _ => (text, 0),
        };
        match number.parse::<u32>() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(number) if seconds == 0 => Ok(Self::Steps(number.into())),
            Ok(number) => Ok(Self::Time(Duration::from_secs(u64::from(number) * seconds))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_steps_or_times() {
        assert_eq!("500".parse(), Ok(Interval::Steps(500)));
        assert_eq!("90s".parse(), Ok(Interval::Time(Duration::from_secs(90))));
        assert_eq!("10m".parse(), Ok(Interval::Time(Duration::from_secs(600))));
        assert_eq!("2h".parse(), Ok(Interval::Time(Duration::from_secs(7200))));
        for bad in ["", "m", "0", "0m", "-1", "1.5h", "ten"] {
            assert!(bad.parse::<Interval>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_is_asked_for_now_counts_before_what_was() {
        let before = Watching { save_every: Some(Interval::Steps(7)), samples_every: Some(0), samples: None };
        let now = Watching { samples_every: Some(3), ..Watching::default() };
        let both = now.or(before);
        assert_eq!((both.save_every(), both.samples_every(100), both.samples()), (Interval::Steps(7), 3, 8));
        assert_eq!(Watching::default().samples_every(100), 5);
    }
}
