//! The shaders of training; what they share with the engine is imported from there.

use mdm::engine::gpu::shader::{Permutation, Shader, ShaderFile, Tile, ValueType};

const SHARED: &[(&str, &str)] = &[
    ("incoming", include_str!("../../../shaders/shared/incoming.wgsl")),
    ("slope", include_str!("../../../shaders/shared/slope.wgsl")),
];

macro_rules! shaders {
    ($($name:ident $file:literal),* $(,)?) => {
        $(
            pub(crate) const $name: Shader = Shader::Foreign(&ShaderFile {
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
    HEAD_GATHER "head_gather",
    HEAD_INPUT "head_input",
    HEAD_LAYER "head_layer",
    HEAD_LOSS "head_loss",
    HEAD_MOMENTS "head_moments",
    HEAD_NORM "head_norm",
    HEAD_WEIGHT "head_weight",
    HEAD_WEIGHT_SUM "head_weight_sum",
    LINEAR_INPUT "linear_input",
    LINEAR_WEIGHT "linear_weight",
    NORM_COEFFICIENTS_GRADIENT "norm_coefficients_gradient",
    NORM_SUMS "norm_sums",
    PACK_TAPS "pack_taps",
    PACK_WINOGRAD "pack_winograd",
    SPREAD "spread",
    SQUARE_SUMS "square_sums",
    SSIM "ssim",
    SUM "sum",
    SUM_VECTORS "sum_vectors",
}

/// Every permutation that the engine may compile beside those of inference.
pub fn permutations() -> Vec<Permutation> {
    let mut all = Vec::new();
    for &shader in ALL {
        let tiles: &[Tile] = if shader == CONV_WEIGHT { &Tile::ALL } else { &[Tile::SMALL] };
        let values: &[ValueType] = if reads_maps(shader) { &ValueType::ALL } else { &[ValueType::F32] };
        for &value in values {
            // What is answered is f32 where nothing else reads it.
            let results: &[ValueType] = match shader {
                SSIM | DIFFERENCE if value == ValueType::F16 => &ValueType::ALL,
                _ => &[value],
            };
            for &result in results {
                let of_tile = |&tile| Permutation { tile, result, ..Permutation::plain(shader, value) };
                all.extend(tiles.iter().map(of_tile));
            }
        }
    }
    all
}

/// Whether it reads or writes values in the device's format; everything else is f32 always.
fn reads_maps(shader: Shader) -> bool {
    !matches!(
        shader,
        ADAMW
            | AVERAGE
            | BLOCK_SUMS
            | CONV_WEIGHT_SUM
            | HEAD_GATHER
            | HEAD_INPUT
            | HEAD_LAYER
            | HEAD_LOSS
            | HEAD_MOMENTS
            | HEAD_NORM
            | HEAD_WEIGHT
            | HEAD_WEIGHT_SUM
            | LINEAR_INPUT
            | LINEAR_WEIGHT
            | NORM_COEFFICIENTS_GRADIENT
            | PACK_WINOGRAD
            | SQUARE_SUMS
            | SUM_VECTORS
    )
}

/// A shader without a tile, in f32.
pub(crate) fn plain(shader: Shader) -> Permutation {
    Permutation::plain(shader, ValueType::F32)
}
