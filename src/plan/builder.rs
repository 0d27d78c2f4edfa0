//! Builds the plan of a UNet, block by block as guided-diffusion's `UNetModel` does.

use std::collections::HashMap;

use super::{
    Conv, HEAD_PREFIX, HeadShape, Norm, Op, Param, ParamId, Plan, Resample, Source, TensorId, TensorInfo,
    memory,
};
use crate::corruption::{alphas_cumprod, hidden_patches, signal_and_spread};
use crate::model::{Corruption, CorruptionKind, UnetConfig};
use crate::{Error, Result};

/// What a plan is to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Windows at a time.
    pub batch: usize,
    /// Rows of a window; a multiple of [`UnetConfig::deepest_downsampling`].
    pub height: usize,
    /// Columns of a window; likewise.
    pub width: usize,
    /// Times that the network is run, each with timesteps of its own.
    pub timestep_slots: usize,
    /// How each slot corrupts the images; nothing is done to them without it.
    pub corruption: Option<CorruptionOptions>,
    /// Decoder blocks that are wanted, ascending.
    pub blocks: Vec<usize>,
    /// Whether the restored image is an output too. Nothing after the last block is computed without it.
    pub image: bool,
    /// With heads, the only output is their result.
    ///
    /// Their parameters are named `head.first.{i}.weight` (`[heads * hidden.0, slots * channels]`, i counting the groups
    /// of [`UnetConfig::feature_groups`], slots outermost), `head.first.bias`, `head.second.weight`, `head.second.bias`,
    /// `head.third.weight` and `head.third.bias`, shaped as [`Op::Head`] says.
    pub head: Option<HeadShape>,
}

/// How a plan corrupts images before the network sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorruptionOptions {
    /// The forward process of the diffusion model.
    pub process: Corruption,
    /// How far it goes in each timestep slot. What the network is told are the [inputs'](crate::engine::Inputs) timesteps.
    pub timesteps: Vec<u32>,
}

impl CorruptionOptions {
    fn validate(&self, slots: usize) -> Result<()> {
        self.process.validate()?;
        if self.timesteps.len() != slots {
            let reason = format!("{} are given for {slots} slots", self.timesteps.len());
            return Err(Error::invalid("timesteps of the corruption", reason));
        }
        let last = self.process.last_timestep();
        match self.timesteps.iter().find(|&&timestep| timestep > last) {
            Some(timestep) => Err(Error::invalid("timestep", format!("{timestep} is not in 0..={last}"))),
            None => Ok(()),
        }
    }
}

impl PlanOptions {
    fn validate(&self, config: &UnetConfig) -> Result<()> {
        let deepest = config.deepest_downsampling();
        for (what, size) in [("window height", self.height), ("window width", self.width)] {
            if size == 0 || !size.is_multiple_of(deepest) || size > 1 << 15 {
                return Err(Error::invalid(
                    what,
                    format!("{size} is not a multiple of {deepest} up to 32768"),
                ));
            }
        }
        if self.batch == 0 || self.batch > 1 << 12 {
            return Err(Error::invalid("batch", format!("{} is not in 1..=4096", self.batch)));
        }
        if self.timestep_slots == 0 || self.timestep_slots > 64 {
            return Err(Error::invalid("timesteps", format!("{} are not 1 to 64", self.timestep_slots)));
        }
        if let Some(corruption) = &self.corruption {
            corruption.validate(self.timestep_slots)?;
        }
        if !self.blocks.is_sorted_by(|a, b| a < b) {
            return Err(Error::invalid("blocks", "must ascend"));
        }
        if let Some(block) = self.blocks.iter().find(|&&block| block >= config.decoder_blocks()) {
            return Err(Error::invalid(
                "blocks",
                format!(
                    "there is no decoder block {block}; this network has 0..={}",
                    config.decoder_blocks() - 1
                ),
            ));
        }
        if self.blocks.is_empty() && (!self.image || self.head.is_some()) {
            return Err(Error::invalid("blocks", "at least one is needed"));
        }
        if let Some(head) = &self.head {
            let sizes = [head.heads, head.hidden.0, head.hidden.1, head.classes];
            if sizes.iter().any(|&size| size == 0 || size > 1 << 16) || self.image {
                return Err(Error::invalid(
                    "head",
                    "sizes must be 1 to 65536, and no image is restored beside it",
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn build(config: &UnetConfig, options: PlanOptions) -> Result<Plan> {
    config.validate()?;
    options.validate(config)?;
    let mut builder = Builder {
        config,
        tensors: Vec::new(),
        params: Vec::new(),
        param_ids: HashMap::new(),
        ops: Vec::new(),
        moments: HashMap::new(),
    };
    let image = builder.tensor(options.height, options.width, config.in_channels);
    let alphas_cumprod = options.corruption.as_ref().map_or_else(Vec::new, |corruption| {
        let Corruption { kind, timesteps, .. } = corruption.process;
        match kind {
            CorruptionKind::Mask { .. } => Vec::new(),
            CorruptionKind::Gaussian { schedule } => alphas_cumprod(schedule, timesteps),
        }
    });
    let (mut timesteps, mut outputs, mut restored) = (Vec::new(), Vec::new(), Vec::new());
    for slot in 0..options.timestep_slots {
        let timestep = builder.vector(1);
        timesteps.push(timestep);
        let seen = match &options.corruption {
            Some(CorruptionOptions { process, timesteps }) => {
                builder.corrupt(image, process, &alphas_cumprod, timesteps[slot])
            }
            None => image,
        };
        let (blocks, result) = builder.unet(seen, timestep, &options);
        outputs.extend(blocks);
        restored.extend(result);
    }
    if let Some(shape) = options.head {
        outputs = vec![builder.head(&outputs, shape, &options)];
    }
    outputs.extend(restored);

    let Builder { mut tensors, params, ops, .. } = builder;
    let given: Vec<TensorId> = [image].iter().chain(&timesteps).copied().collect();
    let arena_len = memory::place(&mut tensors, &ops, options.batch, &given, &outputs)?;
    Ok(Plan {
        config: config.clone(),
        options,
        tensors,
        params,
        ops,
        images: vec![image],
        timesteps,
        outputs,
        arena_len,
    })
}

struct Builder<'a> {
    config: &'a UnetConfig,
    tensors: Vec<TensorInfo>,
    params: Vec<Param>,
    param_ids: HashMap<String, ParamId>,
    ops: Vec<Op>,
    /// Moments are computed once a tensor, however many norms read it.
    moments: HashMap<TensorId, TensorId>,
}

impl Builder<'_> {
    fn tensor(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        self.tensors.push(TensorInfo::new(height, width, channels));
        self.tensors.len() - 1
    }

    fn vector(&mut self, channels: usize) -> TensorId {
        self.tensor(1, 1, channels)
    }

    fn param(&mut self, name: String, shape: &[usize]) -> ParamId {
        let params = &mut self.params;
        *self.param_ids.entry(name).or_insert_with_key(|name| {
            params.push(Param { name: name.clone(), shape: shape.to_vec() });
            params.len() - 1
        })
    }

    fn corrupt(
        &mut self,
        image: TensorId,
        process: &Corruption,
        alphas_cumprod: &[f64],
        timestep: u32,
    ) -> TensorId {
        let TensorInfo { height, width, channels, .. } = self.tensors[image];
        let output = self.tensor(height, width, channels);
        self.ops.push(match process.kind {
            CorruptionKind::Mask { patch, rule } => {
                let patches = height.div_ceil(patch) * width.div_ceil(patch);
                let hidden = hidden_patches(rule, timestep, process.timesteps, patches);
                Op::Mask { image, patch, hidden, timestep, output }
            }
            CorruptionKind::Gaussian { .. } => {
                let (signal, spread) = signal_and_spread(alphas_cumprod[timestep as usize]);
                Op::AddNoise { image, signal, spread, timestep, output }
            }
        });
        output
    }

    /// The decoder blocks that are wanted, and the restored image if it is.
    fn unet(
        &mut self,
        image: TensorId,
        timestep: TensorId,
        options: &PlanOptions,
    ) -> (Vec<TensorId>, Option<TensorId>) {
        let config = self.config;
        let embedding = self.time_embedding(timestep);
        let levels = config.channel_mult.len();
        let mut skips = Vec::new();

        let first = config.model_channels * config.channel_mult[0];
        let mut x = self.conv3(plain(&[image]), "input_blocks.0.0", first, 1);
        skips.push(x);
        for (level, mult) in config.channel_mult.iter().enumerate() {
            let channels = mult * config.model_channels;
            for _ in 0..config.num_res_blocks {
                let prefix = format!("input_blocks.{}", skips.len());
                x = self.residual(&[x], embedding, &format!("{prefix}.0"), channels, Resample::None);
                if config.attention_ds.contains(&(1 << level)) {
                    x = self.attention(x, &format!("{prefix}.1"));
                }
                skips.push(x);
            }
            if level + 1 < levels {
                let prefix = format!("input_blocks.{}.0", skips.len());
                x = if config.resblock_updown {
                    self.residual(&[x], embedding, &prefix, channels, Resample::AverageDown)
                } else {
                    self.conv3(plain(&[x]), &format!("{prefix}.op"), channels, 2)
                };
                skips.push(x);
            }
        }

        let channels = self.tensors[x].channels;
        x = self.residual(&[x], embedding, "middle_block.0", channels, Resample::None);
        x = self.attention(x, "middle_block.1");
        x = self.residual(&[x], embedding, "middle_block.2", channels, Resample::None);

        let last = if options.image { None } else { options.blocks.last().copied() };
        let mut blocks = Vec::new();
        let mut index = 0;
        for (level, mult) in config.channel_mult.iter().enumerate().rev() {
            let channels = mult * config.model_channels;
            for i in 0..=config.num_res_blocks {
                // One skip was pushed for each decoder block: the loops mirror the encoder's.
                let Some(skip) = skips.pop() else { break };
                let prefix = format!("output_blocks.{index}");
                x = self.residual(&[x, skip], embedding, &format!("{prefix}.0"), channels, Resample::None);
                let mut part = 1;
                if config.attention_ds.contains(&(1 << level)) {
                    x = self.attention(x, &format!("{prefix}.{part}"));
                    part += 1;
                }
                if level > 0 && i == config.num_res_blocks {
                    let prefix = format!("{prefix}.{part}");
                    x = if config.resblock_updown {
                        self.residual(&[x], embedding, &prefix, channels, Resample::NearestUp)
                    } else {
                        let source = Source { resample: Resample::NearestUp, ..plain(&[x]) };
                        self.conv3(source, &format!("{prefix}.conv"), channels, 1)
                    };
                }
                if options.blocks.contains(&index) {
                    blocks.push(x);
                }
                if last == Some(index) {
                    return (blocks, None);
                }
                index += 1;
            }
        }
        let source = self.normalised(&[x], "out.0", None, true);
        (blocks, Some(self.conv3(source, "out.2", config.out_channels, 1)))
    }

    fn time_embedding(&mut self, timesteps: TensorId) -> TensorId {
        let width = self.config.model_channels;
        let angles = self.vector(width);
        self.ops.push(Op::Sinusoid { timesteps, output: angles });
        let hidden = self.linear(angles, false, "time_embed.0", 4 * width, None);
        let labels = self
            .config
            .num_classes
            .map(|classes| self.param("label_emb.weight".into(), &[classes, 4 * width]));
        self.linear(hidden, true, "time_embed.2", 4 * width, labels)
    }

    fn linear(
        &mut self,
        input: TensorId,
        silu: bool,
        name: &str,
        channels: usize,
        label_embedding: Option<ParamId>,
    ) -> TensorId {
        let weight = self.param(format!("{name}.weight"), &[channels, self.tensors[input].channels]);
        let bias = self.param(format!("{name}.bias"), &[channels]);
        let output = self.vector(channels);
        self.ops.push(Op::Linear { input, silu, weight, bias, label_embedding, output });
        output
    }

    /// The concatenation of `parts` after group norm `name`.
    fn normalised(
        &mut self,
        parts: &[TensorId],
        name: &str,
        scale_shift: Option<TensorId>,
        silu: bool,
    ) -> Source {
        let channels: usize = parts.iter().map(|&part| self.tensors[part].channels).sum();
        let moments = parts.iter().map(|&part| self.moments_of(part)).collect();
        let weight = self.param(format!("{name}.weight"), &[channels]);
        let bias = self.param(format!("{name}.bias"), &[channels]);
        let coefficients = self.vector(2 * channels);
        self.ops.push(Op::NormCoefficients { moments, weight, bias, scale_shift, output: coefficients });
        Source { norm: Some(Norm { coefficients, silu }), ..plain(parts) }
    }

    fn moments_of(&mut self, input: TensorId) -> TensorId {
        if let Some(&known) = self.moments.get(&input) {
            return known;
        }
        let output = self.vector(2 * self.tensors[input].channels);
        self.ops.push(Op::Moments { input, output });
        self.moments.insert(input, output);
        output
    }

    fn conv3(&mut self, source: Source, name: &str, channels: usize, stride: usize) -> TensorId {
        self.conv(source, name, channels, 3, stride, None, None)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of Conv")]
    fn conv(
        &mut self,
        source: Source,
        name: &str,
        channels: usize,
        kernel: usize,
        stride: usize,
        sample_bias: Option<TensorId>,
        residual: Option<Source>,
    ) -> TensorId {
        let inputs: usize = source.parts.iter().map(|&part| self.tensors[part].channels).sum();
        let attention = [".qkv", ".proj_out"].iter().any(|end| name.ends_with(end));
        let shape: &[usize] =
            if attention { &[channels, inputs, 1] } else { &[channels, inputs, kernel, kernel] };
        let weight = self.param(format!("{name}.weight"), shape);
        let bias = Some(self.param(format!("{name}.bias"), &[channels]));
        let (height, width) = self.size(&source);
        // A stride of 2 with a padding of 1 keeps ceil(size / 2).
        let output = self.tensor(height.div_ceil(stride), width.div_ceil(stride), channels);
        self.ops.push(Op::Conv(Conv { source, weight, bias, sample_bias, residual, kernel, stride, output }));
        output
    }

    fn size(&self, source: &Source) -> (usize, usize) {
        let TensorInfo { height, width, .. } = self.tensors[source.parts[0]];
        match source.resample {
            Resample::None => (height, width),
            Resample::NearestUp => (2 * height, 2 * width),
            Resample::AverageDown => (height / 2, width / 2),
        }
    }

    fn residual(
        &mut self,
        parts: &[TensorId],
        embedding: TensorId,
        prefix: &str,
        channels: usize,
        resample: Resample,
    ) -> TensorId {
        let inputs: usize = parts.iter().map(|&part| self.tensors[part].channels).sum();
        let scale_shift = self.config.use_scale_shift_norm;
        let time_channels = if scale_shift { 2 * channels } else { channels };
        let time = self.linear(embedding, true, &format!("{prefix}.emb_layers.1"), time_channels, None);

        let source =
            Source { resample, ..self.normalised(parts, &format!("{prefix}.in_layers.0"), None, true) };
        let sample_bias = (!scale_shift).then_some(time);
        let hidden = self.conv(source, &format!("{prefix}.in_layers.2"), channels, 3, 1, sample_bias, None);

        let input = Source { resample, ..plain(parts) };
        let skip = if inputs == channels {
            input
        } else {
            plain(&[self.conv(input, &format!("{prefix}.skip_connection"), channels, 1, 1, None, None)])
        };
        let modulation = scale_shift.then_some(time);
        let source = self.normalised(&[hidden], &format!("{prefix}.out_layers.0"), modulation, true);
        self.conv(source, &format!("{prefix}.out_layers.3"), channels, 3, 1, None, Some(skip))
    }

    fn attention(&mut self, x: TensorId, prefix: &str) -> TensorId {
        let TensorInfo { height, width, channels, .. } = self.tensors[x];
        let source = self.normalised(&[x], &format!("{prefix}.norm"), None, false);
        let qkv = self.conv(source, &format!("{prefix}.qkv"), 3 * channels, 1, 1, None, None);
        let output = self.tensor(height, width, channels);
        let heads = self.config.heads(channels);
        self.ops.push(Op::Attention { qkv, heads, qkv_first: self.config.use_new_attention_order, output });
        self.conv(plain(&[output]), &format!("{prefix}.proj_out"), channels, 1, 1, None, Some(plain(&[x])))
    }

    /// The ensemble's answer from the blocks of all slots, slots outermost.
    fn head(&mut self, blocks: &[TensorId], shape: HeadShape, options: &PlanOptions) -> TensorId {
        let hidden = shape.heads * shape.hidden.0;
        let mut partial_sums: Vec<TensorId> = Vec::new();
        let mut first = 0;
        for (i, (group, _)) in self.config.feature_groups(&options.blocks).iter().enumerate() {
            let slots = blocks.chunks_exact(options.blocks.len());
            let parts: Vec<TensorId> =
                slots.flat_map(|slot| slot[first..first + group.len()].iter().copied()).collect();
            first += group.len();
            let TensorInfo { height, width, .. } = self.tensors[parts[0]];
            let channels: usize = parts.iter().map(|&part| self.tensors[part].channels).sum();
            let weight = self.param(format!("{HEAD_PREFIX}first.{i}.weight"), &[hidden, channels]);
            let output = self.tensor(height, width, hidden);
            self.ops.push(Op::Conv(Conv {
                source: plain(&parts),
                weight,
                bias: None,
                sample_bias: None,
                residual: None,
                kernel: 1,
                stride: 1,
                output,
            }));
            partial_sums.push(output);
        }
        let size = (options.height, options.width);
        let feature_norm = shape.normalise.then(|| {
            let output = self.vector(1);
            self.ops.push(Op::FeatureNorm { blocks: blocks.to_vec(), size, output });
            output
        });
        let params = [
            self.param("head.first.bias".into(), &[hidden]),
            self.param("head.second.weight".into(), &[shape.heads, shape.hidden.1, shape.hidden.0]),
            self.param("head.second.bias".into(), &[shape.heads * shape.hidden.1]),
            self.param("head.third.weight".into(), &[shape.heads, shape.classes, shape.hidden.1]),
            self.param("head.third.bias".into(), &[shape.heads * shape.classes]),
        ];
        let output = self.tensor(size.0, size.1, shape.classes + usize::from(shape.uncertainty));
        self.ops.push(Op::Head { partial_sums, feature_norm, shape, params, output });
        output
    }
}

fn plain(parts: &[TensorId]) -> Source {
    Source { parts: parts.to_vec(), norm: None, resample: Resample::None }
}
