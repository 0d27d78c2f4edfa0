//! Training for libmdm: backbones learnt from images without labels, heads fitted on a few labelled images, and measures of what
//! they achieve.

pub mod capi;
pub mod differentiate;
pub mod engine;
pub mod fit;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod optimise;
pub mod pretrain;
pub mod ranks;
pub mod tune;

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
