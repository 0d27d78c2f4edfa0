//! The material of `mdm demo`: drawn here, so that it needs no download.

mod drawing;
mod random;
mod scribbles;

pub(crate) use drawing::{Field, draw_nuclei};
pub(crate) use random::Random;
pub(crate) use scribbles::scribble;
