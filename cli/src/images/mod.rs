//! Image and label files.

mod labels;
mod overlay;
mod read;
mod resolution;
#[cfg(test)]
mod tests;
mod tiff;
mod write;

pub(crate) use labels::{UNLABELLED, read_labels};
pub(crate) use overlay::write_overlay;
pub(crate) use read::{Image, image_size, is_image_name, read_image};
pub(crate) use write::{write_coloured_labels, write_grey, write_planes};
