//! Parameters before the first step.

use mdm::model::{MapWeights, UnetConfig};

use super::draw;

/// Layers whose answer starts at zero: residual blocks' last convolution, attention's projection, the output.
fn starts_at_zero(layer: &str) -> bool {
    layer.ends_with(".out_layers.3") || layer.ends_with(".proj_out") || layer == "out.2"
}

/// What a run starts from: weights and biases uniform within 1 / sqrt(inputs of an output), as PyTorch's layers are by
/// default, norms at scale 1 and shift 0, and zero where residual branches end. They follow from `seed`.
pub fn initial_parameters(unet: &UnetConfig, seed: u64) -> MapWeights {
    let mut map = MapWeights::default();
    let mut inputs = 0;
    for (index, (name, shape)) in unet.parameters().into_iter().enumerate() {
        let layer = name.rsplit_once('.').map_or(&*name, |(layer, _)| layer);
        let is_weight = name.ends_with(".weight");
        if is_weight {
            inputs = shape[1..].iter().product();
        }
        let is_norm = is_weight && shape.len() == 1 || !is_weight && inputs == 1;
        let mut values = vec![0.0; shape.iter().product()];
        if is_norm {
            values.fill(if is_weight { 1.0 } else { 0.0 });
        } else if !starts_at_zero(layer) {
            draw::parameter(seed, index, (inputs as f32).sqrt().recip(), &mut values);
        }
        map.insert(name, &shape, values);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_start_as_the_specification_says() {
        let unet = UnetConfig { model_channels: 32, ..UnetConfig::mdm_paper() };
        let parameters = initial_parameters(&unet, 5);
        let values = |name: &str| &*parameters.0[name].data;
        for name in ["input_blocks.1.0.out_layers.3", "middle_block.1.proj_out", "out.2"] {
            assert!(values(&format!("{name}.weight")).iter().all(|value| *value == 0.0), "{name}");
            assert!(values(&format!("{name}.bias")).iter().all(|value| *value == 0.0), "{name}");
        }
        for name in ["out.0", "middle_block.1.norm", "input_blocks.1.0.in_layers.0"] {
            assert!(values(&format!("{name}.weight")).iter().all(|value| *value == 1.0), "{name}");
            assert!(values(&format!("{name}.bias")).iter().all(|value| *value == 0.0), "{name}");
        }
        for (name, inputs) in [
            ("input_blocks.0.0.weight", 27),
            ("input_blocks.0.0.bias", 27),
            ("time_embed.2.weight", 128),
            ("middle_block.1.qkv.weight", 128),
        ] {
            let (values, reach) = (values(name), 1.0 / (inputs as f32).sqrt());
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert!(largest <= reach && largest > 0.8 * reach, "{name}: {largest} of {reach}");
        }
        assert_ne!(
            initial_parameters(&unet, 6).0["time_embed.0.weight"].data,
            parameters.0["time_embed.0.weight"].data
        );
    }
}
