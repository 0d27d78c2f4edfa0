//! Names and shapes of a UNet's parameters.

use super::UnetConfig;

impl UnetConfig {
    /// Every parameter of the network: name and shape, in the order of its layers. The configuration must be
    /// [valid](Self::validate).
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.model_channels;
        let embedding = 4 * width;
        let mut list = List { config: self, embedding, parameters: Vec::new() };
        list.linear("time_embed.0", embedding, width);
        list.linear("time_embed.2", embedding, embedding);
        if let Some(classes) = self.num_classes {
            list.parameters.push(("label_emb.weight".into(), vec![classes, embedding]));
        }

        let levels = self.channel_mult.len();
        let mut channels = width * self.channel_mult[0];
        list.conv("input_blocks.0.0", channels, self.in_channels, 3);
        let mut skips = vec![channels];
        for (level, mult) in self.channel_mult.iter().enumerate() {
            for _ in 0..self.num_res_blocks {
                let block = format!("input_blocks.{}", skips.len());
                list.residual(&format!("{block}.0"), mult * width, channels);
                channels = mult * width;
                if self.attention_ds.contains(&(1 << level)) {
                    list.attention(&format!("{block}.1"), channels);
                }
                skips.push(channels);
            }
            if level + 1 < levels {
                let block = format!("input_blocks.{}.0", skips.len());
                if self.resblock_updown {
                    list.residual(&block, channels, channels);
                } else {
                    list.conv(&format!("{block}.op"), channels, channels, 3);
                }
                skips.push(channels);
            }
        }

        list.residual("middle_block.0", channels, channels);
        list.attention("middle_block.1", channels);
        list.residual("middle_block.2", channels, channels);

        let mut index = 0;
        for (level, mult) in self.channel_mult.iter().enumerate().rev() {
            for i in 0..=self.num_res_blocks {
                let block = format!("output_blocks.{index}");
                list.residual(&format!("{block}.0"), mult * width, channels + skips.pop().unwrap_or(0));
                channels = mult * width;
                let mut part = 1;
                if self.attention_ds.contains(&(1 << level)) {
                    list.attention(&format!("{block}.1"), channels);
                    part += 1;
                }
                if level > 0 && i == self.num_res_blocks {
                    if self.resblock_updown {
                        list.residual(&format!("{block}.{part}"), channels, channels);
                    } else {
                        list.conv(&format!("{block}.{part}.conv"), channels, channels, 3);
                    }
                }
                index += 1;
            }
        }
        list.norm("out.0", channels);
        list.conv("out.2", self.out_channels, channels, 3);
        list.parameters
    }

    /// Number of trained values.
    pub fn parameter_count(&self) -> u64 {
        self.parameters()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&size| size as u64).product::<u64>())
            .sum()
    }
}

struct List<'a> {
    config: &'a UnetConfig,
    embedding: usize,
    parameters: Vec<(String, Vec<usize>)>,
}

impl List<'_> {
    fn layer(&mut self, name: &str, weight: &[usize]) {
        self.parameters.push((format!("{name}.weight"), weight.to_vec()));
        self.parameters.push((format!("{name}.bias"), vec![weight[0]]));
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) {
        self.layer(name, &[outputs, inputs]);
    }

    fn conv(&mut self, name: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.layer(name, &[outputs, inputs, kernel, kernel]);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.layer(name, &[channels]);
    }

    fn residual(&mut self, name: &str, outputs: usize, inputs: usize) {
        let time = if self.config.use_scale_shift_norm { 2 * outputs } else { outputs };
        self.norm(&format!("{name}.in_layers.0"), inputs);
        self.conv(&format!("{name}.in_layers.2"), outputs, inputs, 3);
        self.linear(&format!("{name}.emb_layers.1"), time, self.embedding);
        self.norm(&format!("{name}.out_layers.0"), outputs);
        self.conv(&format!("{name}.out_layers.3"), outputs, outputs, 3);
        if inputs != outputs {
            self.conv(&format!("{name}.skip_connection"), outputs, inputs, 1);
        }
    }

    fn attention(&mut self, name: &str, channels: usize) {
        self.norm(&format!("{name}.norm"), channels);
        self.layer(&format!("{name}.qkv"), &[3 * channels, channels, 1]);
        self.layer(&format!("{name}.proj_out"), &[channels, channels, 1]);
    }
}
