//! From an image to its label image.
