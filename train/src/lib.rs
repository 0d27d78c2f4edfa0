//! Training for libmdm: heads fitted on a few labelled images, and measures of what they achieve.

pub mod metrics;
pub mod fit;
