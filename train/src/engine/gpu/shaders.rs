//! The shaders of training; what they share with the engine is imported from there.

use mdm::engine::gpu::shader::{Permutation, Shader, ShaderFile, Tile, ValueType};

const SHARED: &[(&str, &str)] = &[
    ("incoming", include_str!("../../../shaders/shared/incoming.wgsl")),
    ("slope", include_str!("../../../shaders/shared/slope.wgsl")),
];

macro_rules! shaders {
    ($($name:ident $file:literal),* $(,)?) => {
        $(
            pub(super) const $name: Shader = Shader::Foreign(&ShaderFile {
                name: $file,
                text: include_str!(concat!("../../../shaders/", $file, ".wgsl")),
                shared: SHARED,
            });
        )*

        /// All of them.
        const ALL: &[Shader] = &[$($name),*];
    };
}

shaders! {
    ADAMW "adamw",
    ATTENTION_GRADIENT "attention_gradient",
    ATTENTION_STATISTICS "attention_statistics",
    AVERAGE "average",
    BLOCK_SUMS "block_sums",
    CHANNEL_SUMS "channel_sums",
    CONV_WEIGHT "conv_weight",
    CONV_WEIGHT_SUM "conv_weight_sum",
    DIFFERENCE "difference",
    LINEAR_INPUT "linear_input",
    LINEAR_WEIGHT "linear_weight",
    NORM_COEFFICIENTS_GRADIENT "norm_coefficients_gradient",
    NORM_SUMS "norm_sums",
    PACK_TAPS "pack_taps",
    PACK_WINOGRAD "pack_winograd",
    SPREAD "spread",
    SQUARE_SUMS "square_sums",
    SSIM "ssim",
    SSIM_GRADIENT "ssim_gradient",
    SUM "sum",
    SUM_VECTORS "sum_vectors",
}

/// Every permutation that the engine may compile beside those of inference.
pub fn permutations() -> Vec<Permutation> {
    let mut all = Vec::new();
    for &shader in ALL {
        let tiles: &[Tile] = if shader == CONV_WEIGHT { &Tile::ALL } else { &[Tile::SMALL] };
        all.extend(tiles.iter().map(|&tile| Permutation { tile, ..plain(shader) }));
    }
    all
}

/// A shader without a tile, in f32.
pub(super) fn plain(shader: Shader) -> Permutation {
    Permutation::plain(shader, ValueType::F32)
}
