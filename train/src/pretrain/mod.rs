//! Pre-training: a backbone learns from images without labels (Pan, Chen, Shi: "Masked Diffusion as Self-supervised
//! Representation Learner", arXiv 2308.05695).
//!
//! A [`Recipe`] and [`Images`] determine a run. What becomes of sample number n (which image, where it is cropped, how it is
//! turned, its timestep, what is hidden) follows from the seed and n alone, so that a run goes on exactly where a
//! [`Checkpoint`] left it, and threads that prepare samples need not agree on anything.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use mdm::{Control, Device};
//! use mdm_train::pretrain::{FileImages, Images, Recipe, Start, Trainer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let images = Arc::new(FileImages::new(vec!["a.png".into(), "b.tif".into()]));
//! let mut trainer = Trainer::new(&Device::cpu(None)?, Start::New(Recipe::default()), images)?;
//! while !trainer.finished() {
//!     let report = trainer.step(&Control::none())?;
//!     println!("step {}: loss {:.4}", report.step, report.loss);
//! }
//! trainer.save("checkpoint.safetensors".as_ref())?;
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod crop;
mod draw;
mod error;
mod images;
mod initial;
mod loader;
mod recipe;
mod sample;
mod trainer;

pub use checkpoint::Checkpoint;
pub use error::{PretrainError, Result};
pub use images::{FileImages, Images, examine};
pub use initial::initial_parameters;
pub use recipe::{Crops, Optimiser, Recipe, Schedule};
pub use trainer::{Example, Start, StepReport, Trainer};
