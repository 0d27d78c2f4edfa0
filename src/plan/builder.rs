//! Builds the plan of a UNet.

use super::HeadShape;

/// What a plan is to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Windows at a time.
    pub batch: usize,
    /// Rows of a window; a multiple of [`UnetConfig::deepest_downsampling`](crate::model::UnetConfig::deepest_downsampling).
    pub height: usize,
    /// Columns of a window; likewise.
    pub width: usize,
    /// Times that the network is run, each with an image and timesteps of its own.
    pub timestep_slots: usize,
    /// Decoder blocks that are wanted, ascending.
    pub blocks: Vec<usize>,
    /// Whether the restored image is an output too. Nothing after the last block is computed without it.
    pub image: bool,
    /// With heads, the only output is their result.
    ///
    /// Their parameters are named `head.first.{i}.weight` (`[heads * hidden.0, slots * channels]`, i counting
    /// [`blocks`](Self::blocks)), `head.first.bias`, `head.second.weight`, `head.second.bias`, `head.third.weight` and
    /// `head.third.bias`, shaped as [`Op::Head`](super::Op::Head) says.
    pub head: Option<HeadShape>,
}

pub(super) fn build(_: &crate::model::UnetConfig, _: PlanOptions) -> crate::Result<super::Plan> {
    Err(crate::Error::invalid("plan", "missing"))
}
