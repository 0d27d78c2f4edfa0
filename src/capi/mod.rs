//! The C interface, as `include/mdm.h` has it; Rust programs have no use for it.
//!
//! Documentation in here is the header's: it speaks to C programmers.
//!
//! Three rules keep the boundary safe. Handles are numbers that were never given out before, looked up in a table
//! (`handles`), so that a stale, doubly freed or invented one is an error. Every entry point goes through
//! `errors::call`, out of which nothing unwinds. What a caller fills is copied with the size it states
//! (`structs`), and never borrowed as a Rust type whose values could be invalid.
//!
//! The C interface of training is a crate of its own that goes through the same door; what it needs is public and hidden.

#![allow(unsafe_code, reason = "raw pointers are what a C interface is made of")]
#![allow(non_camel_case_types, reason = "names are those of the header")]
#![allow(rustdoc::broken_intra_doc_links, reason = "[height][width] is a shape in the header")]
#![allow(clippy::missing_safety_doc, reason = "the documentation is the header's and says what is demanded")]

pub mod cancel;
pub mod devices;
pub mod errors;
pub mod features;
#[doc(hidden)]
pub mod handles;
pub mod images;
pub mod intensities;
pub mod log;
pub mod models;
pub mod runs;
pub mod segmenters;
pub mod streams;
#[doc(hidden)]
pub mod structs;
pub mod versions;
