//! The C interface of training, as `include/mdm_train.h` has it; Rust programs have no use for it.
//!
//! It goes through the boundary of the inference library: its handles, errors and structs (see `mdm::capi`). Documentation in here is the
//! header's: it speaks to C programmers.

#![allow(unsafe_code, reason = "raw pointers are what a C interface is made of")]
#![allow(non_camel_case_types, reason = "names are those of the header")]
#![allow(rustdoc::broken_intra_doc_links, reason = "[height][width] is a shape in the header")]
#![allow(clippy::missing_safety_doc, reason = "the documentation is the header's and says what is demanded")]

mod arguments;
pub mod fitters;
pub mod labels;
pub mod models;
mod runs;
pub mod trainers;
pub mod training_images;
pub mod tuning;
pub mod versions;
