//! Image and label files: which of them are meant, how they are read, how results are written.

mod choice;
mod error;
mod find;
mod guard;
mod intensity;
mod jpeg;
mod labels;
mod memory;
mod orientation;
mod overlay;
mod pixel_size;
mod png_file;
mod read;
#[cfg(test)]
mod tests;
mod tiff;
mod whole;
mod write;

pub use choice::{ChannelChoice, ReadOptions, ZChoice};
pub use error::{FileError, Result};
pub use find::{ImageFile, Unusable, expand, is_image_name, is_system_name, same_place};
pub use intensity::{DeclaredRange, NumberKind, RangeSource, StoredType};
pub use labels::{
    LabelColours, LabelNumbers, Labels, Numbers, UNLABELLED, UNLABELLED_WIDE, read_label_numbers, read_labels,
};
pub use orientation::Orientation;
pub use overlay::write_overlay;
pub use read::{Image, Pixels, image_size, read_image};
pub use whole::{is_whole, png_note};
pub use write::{write_coloured_labels, write_grey, write_labels, write_planes, write_rgb};
