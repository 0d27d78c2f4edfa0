//! Shaders for matrix units where there are none: their matrices are emulated by what every GPU has, so that all else that
//! they do is tested on every machine.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use mdm::Control;
use mdm::engine::Precision;
use mdm::engine::gpu::GpuEngine;
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::shader::{
    BindingKind, Cooperative, Fragments, Permutation, Shader, ShaderFile, Tile, ValueType,
};
use mdm::engine::gpu::submit::{Bound, Dispatch, Encoder, map};
use mdm::engine::gpu::weights::{decode, upload};
use support::{gpus, image, manifest_folder, relative_error};

/// Every thread has half a row of a matrix of sums. Left factors are whole rows; right ones stay where they are.
const MATRICES: &str = "
const SIZE: u32 = 16u;
const SUBGROUP: u32 = 32u;
var<private> lane: u32;

struct Left { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }
struct Right { at: u32, stride: u32, is_transposed: bool }
struct Sums { a: vec4<f32>, b: vec4<f32> }

fn half_of(word: u32, odd: u32) -> f32 { return unpack2x16float(word)[odd]; }
fn in_exchange(at: u32, i: u32) -> f32 { return half_of(bitcast<u32>(exchange[at + i / 8u][i % 8u / 2u]), i % 2u); }
fn in_tile(at: u32, i: u32) -> f32 { return half_of(bitcast<u32>(tile[at + i / 8u][i % 8u / 2u]), i % 2u); }

fn left_rows(at: u32, stride: u32) -> Left {
    let row = at + lane / 2u * stride;
    var values: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) {
        values[i] = vec4(in_exchange(row, 4u * i), in_exchange(row, 4u * i + 1u), in_exchange(row, 4u * i + 2u), in_exchange(row, 4u * i + 3u));
    }
    return Left(values[0], values[1], values[2], values[3]);
}
fn right_rows(at: u32, stride: u32) -> Right { return Right(at, stride, false); }
fn right_columns(at: u32, stride: u32) -> Right { return Right(at, stride, true); }
fn right_at(right: Right, row: u32, column: u32) -> f32 {
    let place = select(vec2(row, column), vec2(column, row), right.is_transposed);
    return in_tile(right.at + place.x * right.stride, place.y);
}
fn coopMultiplyAdd(left: Left, right: Right, sums: Sums) -> Sums {
    var result = sums;
    let column = lane % 2u * 8u;
    var values = array<vec4<f32>, 4>(left.a, left.b, left.c, left.d);
    // Not a constant: compilers for CPUs would unroll it, and take long.
    for (var k = 0u; k < 16u * min(p.heads, 1u); k++) {
        let value = values[k / 4u][k % 4u];
        result.a += value * vec4(right_at(right, k, column), right_at(right, k, column + 1u), right_at(right, k, column + 2u), right_at(right, k, column + 3u));
        result.b += value * vec4(right_at(right, k, column + 4u), right_at(right, k, column + 5u), right_at(right, k, column + 6u), right_at(right, k, column + 7u));
    }
    return result;
}
fn store_rows(sums: Sums, at: u32, stride: u32) {
    let to = at + lane / 2u * stride + lane % 2u * 2u;
    exchange[to] = sums.a;
    exchange[to + 1u] = sums.b;
}
";

/// A shader without matrix units, with its `TERMS`.
fn emulated(shader: Shader, terms: u32) -> Permutation {
    let file = manifest_folder().join(format!("shaders/{}.wgsl", shader.name()));
    let mut text = std::fs::read_to_string(file).unwrap() + MATRICES;
    for (from, to) in [
        ("coopLoadT<Left>(&exchange[", "left_rows(("),
        ("coopLoadT<Right>(&tile[", "right_rows(("),
        ("coopLoad<Right>(&tile[", "right_columns(("),
        ("    @builtin(subgroup_id) subgroup: u32,\n", ""),
        (
            ") {\n    // Not by",
            ") {\n    let subgroup = thread / SUBGROUP;\n    lane = thread % SUBGROUP;\n    // Not by",
        ),
    ] {
        text = text.replace(from, to);
    }
    for stride in ["TILE", "SCORE", "WEIGHT", "RESULT", "LEFT", "RIGHT"] {
        text = text.replace(&format!("], {stride}_STRIDE)"), &format!("), {stride}_STRIDE)"));
    }
    // coopStoreT(sums, &exchange[at], stride)
    text = text.replace("coopStoreT(", "store_rows(").replace(", &exchange[", ", (");
    for left in ["coopLoad", "coopStore", "&exchange", "&tile", "subgroup_id"] {
        assert!(!text.contains(left), "{}: {left} is not emulated", shader.name());
    }
    let file = ShaderFile { name: "emulated", text: text.leak(), shared: &[] };
    let tile = Tile { terms, ..Tile::SMALL };
    Permutation { tile, ..Permutation::plain(Shader::Foreign(Box::leak(Box::new(file))), ValueType::F16) }
}

/// Runs a shader once and gives what it wrote to the last of `bound`.
fn dispatch(
    context: &Context,
    permutation: Permutation,
    workgroups: usize,
    mut words: Vec<u32>,
    bound: &[(u32, &Memory)],
) -> mdm::Result<Vec<u8>> {
    use wgpu::BufferUsages as Usage;
    context.pipelines.compile(&context.device, &[permutation])?;
    words.resize(words.len().next_multiple_of(4), 0);
    let params = context.buffer("params", 4 * words.len() as u64, Usage::UNIFORM | Usage::COPY_DST)?;
    context.queue.write_buffer(&params.buffer, 0, bytemuck::cast_slice(&words));
    let nothing = context.buffer("nothing", 16, Usage::STORAGE)?;
    let dispatch = Dispatch::new(context, permutation, workgroups as u32, 1.0, |number, kind| {
        let known = bound.iter().find(|(own, _)| *own == number).map(|(_, memory)| *memory);
        Bound::whole(if kind == BindingKind::Uniform { &params } else { known.unwrap_or(&nothing) })
    })?;
    let (_, output) = bound.last().unwrap();
    let staging = context.buffer("staging", output.size(), Usage::COPY_DST | Usage::MAP_READ)?;
    let control = Control::none();
    let mut encoder = Encoder::new(context, &control, None);
    encoder.operation(std::iter::once(&dispatch), None)?;
    encoder.submit(|commands| {
        commands.copy_buffer_to_buffer(&output.buffer, 0, &staging.buffer, 0, Some(output.size()));
    })?;
    encoder.wait()?;
    Ok(map(context, &staging.buffer)?.to_vec())
}

/// Devices with f16.
fn contexts() -> impl Iterator<Item = Arc<Context>> {
    let halves = gpus().iter().filter(|(_, precision, _)| *precision == Precision::F16);
    halves.map(|(_, _, device)| {
        let engine: &GpuEngine = device.engine().as_any().downcast_ref().unwrap();
        engine.context().unwrap()
    })
}

struct Case {
    samples: usize,
    pixels: usize,
    heads: usize,
    width: usize,
    qkv_first: bool,
}

impl Case {
    fn strides(&self) -> (usize, usize) {
        if self.qkv_first { (self.width, self.heads * self.width) } else { (3 * self.width, self.width) }
    }

    fn expected(&self, qkv: &[f32]) -> Vec<f32> {
        let &Self { samples, pixels, heads, width, .. } = self;
        let (head_stride, role_stride) = self.strides();
        let row = |sample: usize, pixel: usize, head: usize, role: usize| {
            let start =
                (sample * pixels + pixel) * 3 * heads * width + head * head_stride + role * role_stride;
            &qkv[start..start + width]
        };
        let mut expected = Vec::new();
        for sample in 0..samples {
            for query in 0..pixels {
                for head in 0..heads {
                    let own = row(sample, query, head, 0);
                    let score = |key: usize| {
                        let products = own
                            .iter()
                            .zip(row(sample, key, head, 1))
                            .map(|(&q, &k)| f64::from(q) * f64::from(k));
                        products.sum::<f64>() / (width as f64).sqrt()
                    };
                    let scores: Vec<f64> = (0..pixels).map(score).collect();
                    let highest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                    let mut mixed = vec![0.0; width];
                    for (key, score) in scores.iter().enumerate() {
                        for (sum, &value) in mixed.iter_mut().zip(row(sample, key, head, 2)) {
                            *sum += (score - highest).exp() / total * f64::from(value);
                        }
                    }
                    expected.extend(mixed.into_iter().map(|value| value as f32));
                }
            }
        }
        expected
    }

    fn run(&self, context: &Context, qkv: &[f32]) -> mdm::Result<Vec<f32>> {
        let &Self { samples, pixels, heads, width, .. } = self;
        let (head_stride, role_stride) = self.strides();
        let permutation = emulated(Shader::AttentionCooperative, if width > 64 { 128 } else { 64 });
        let input = upload(context, "qkv", qkv, ValueType::F16)?;
        let count = samples * pixels * heads * width;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let output = context.buffer("output", 2 * count as u64, usage)?;
        let mut words = [samples, pixels, heads, width, head_stride, role_stride].map(|n| n as u32).to_vec();
        words.push((1.0 / (width as f32).sqrt()).to_bits());
        let workgroups = samples * heads * pixels.div_ceil(64);
        let bytes = dispatch(context, permutation, workgroups, words, &[(1, &input), (2, &output)])?;
        Ok(decode(&bytes, count, ValueType::F16))
    }
}

#[test]
fn attention_is_that_of_the_reference() {
    let cases = [
        Case { samples: 2, pixels: 64, heads: 2, width: 64, qkv_first: true },
        Case { samples: 1, pixels: 150, heads: 2, width: 64, qkv_first: false },
        Case { samples: 2, pixels: 1, heads: 1, width: 8, qkv_first: true },
        Case { samples: 1, pixels: 65, heads: 3, width: 40, qkv_first: false },
        Case { samples: 1, pixels: 100, heads: 2, width: 128, qkv_first: true },
        Case { samples: 2, pixels: 33, heads: 1, width: 72, qkv_first: false },
    ];
    for context in contexts() {
        for case in &cases {
            let count = 3 * case.samples * case.pixels * case.heads * case.width;
            // Scores of some size, so that the softmax is not flat.
            let qkv: Vec<f32> = image("qkv", count, 1).iter().map(|v| 3.0 * v + 1.0).collect();
            let result = context.checked(|| case.run(&context, &qkv)).unwrap();
            let error = relative_error(&result, &case.expected(&qkv));
            let Case { samples, pixels, heads, width, .. } = case;
            assert!(error < 2e-3, "{error:.2e} at {samples} x {pixels} pixels, {heads} heads of {width}");
        }
    }
}

#[test]
fn heads_are_those_without_matrix_units() {
    let (samples, height, width, heads, classes, first_head) = (2, 13, 37, 3, 5, 1);
    let sizes = [(13, 37), (7, 19), (3, 8)];
    for (first, second, norm) in [(128, 32, 0), (20, 7, 1), (68, 45, 0)] {
        let rows = samples * height * width;
        let mut words =
            [rows, height, width, heads, first, second, classes, first_head, sizes.len()].to_vec();
        words.resize(12, 0);
        for size in [sizes.map(|(height, _)| height), sizes.map(|(_, width)| width)] {
            words.extend(size);
            words.resize(words.len().next_multiple_of(4) + 4, 0);
        }
        words.push(norm);
        let words: Vec<u32> = words.into_iter().map(|n| n as u32).collect();
        let weights = heads * (first + second * first + second + classes * second + classes);
        let weights: Vec<f32> = image("weights", weights, 1).iter().map(|v| 0.3 * v).collect();
        let here = heads - first_head;
        for context in contexts() {
            let run = |permutation| {
                let weights = upload(&context, "weights", &weights, ValueType::F32)?;
                let vectors = upload(&context, "vectors", &[1.5, 0.7], ValueType::F32)?;
                let maps = sizes.map(|(height, width)| {
                    let values = image("map", samples * height * width * heads * first, 2);
                    upload(&context, "map", &values, ValueType::F32)
                });
                let [a, b, c] = maps;
                let (a, b, c) = (a?, b?, c?);
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
                let logits = context.buffer("logits", (4 * here * rows * classes) as u64, usage)?;
                let bound = [(1, &weights), (2, &vectors), (3, &a), (4, &b), (5, &c), (8, &logits)];
                let workgroups = here * samples * height.div_ceil(8) * width.div_ceil(16);
                let bytes = dispatch(&context, permutation, workgroups, words.clone(), &bound)?;
                Ok(decode(&bytes, here * rows * classes, ValueType::F32))
            };
            let both = [
                emulated(Shader::HeadCooperative, 64),
                Permutation::plain(Shader::HeadPatches, ValueType::F16),
            ]
            .map(|permutation| context.checked(|| run(permutation)).unwrap());
            let error = relative_error(&both[0], &both[1]);
            assert!(error > 0.0 && error < 1e-3, "{error:.2e} at {first} and {second} activations");
        }
    }
}

/// `conv_cooperative` without matrix units.
fn emulated_convolution(fragments: Fragments, result: ValueType) -> Permutation {
    let plain = Permutation::plain(Shader::ConvCooperative, ValueType::F16);
    let own = Permutation { result, fragments, cooperative: Some(Cooperative::VULKAN), ..plain };
    let source = own.with_own_terms().source();
    let lines = source.lines().filter(|line| {
        let names = ["Value", "Result", "Left", "Right", "Sums"].map(|name| format!("alias {name} "));
        let others = ["enable ", "const LEFT_LOADS", "const RIGHT_LOADS"].map(str::to_owned);
        !names.iter().chain(&others).any(|start| line.starts_with(start.as_str()))
    });
    let mut text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let matrices = MATRICES
        .replace("const SIZE: u32 = 16u;\nconst SUBGROUP: u32 = 32u;\n", "")
        .replace("exchange[", "tiles[")
        .replace("(tile[", "(tiles[")
        .replace("p.heads", "p.rows");
    for (from, to) in [
        ("TERMS", "OWN_TERMS"),
        ("coopLoadT<Left>(&tiles[", "left_rows(("),
        ("coopLoadT<Right>(&tiles[", "right_rows(("),
        ("], LEFT_STRIDE)", "), LEFT_STRIDE)"),
        ("], RIGHT_STRIDE)", "), RIGHT_STRIDE)"),
        ("], STRIP_STRIDE)", "), STRIP_STRIDE)"),
        ("coopStoreT(", "store_rows("),
        (", &tiles[", ", ("),
        ("    @builtin(subgroup_id) subgroup: u32,\n    @builtin(subgroup_invocation_id) lane: u32,\n", ""),
        (
            ") {\n    // Not by",
            ") {\n    let subgroup = thread / SUBGROUP;\n    lane = thread % SUBGROUP;\n    // Not by",
        ),
    ] {
        text = text.replace(from, to);
    }
    text += &matrices;
    for left in ["coopLoad", "coopStore", "&tiles", "subgroup_id"] {
        assert!(!text.contains(left), "{left} is not emulated");
    }
    let file = ShaderFile { name: "emulated", text: text.leak(), shared: &[] };
    let shader = Shader::Foreign(Box::leak(Box::new(file)));
    Permutation { result, ..Permutation::plain(shader, ValueType::F16) }
}

/// A convolution of two maps with bias and a residual.
struct Convolution {
    samples: usize,
    size: (usize, usize),
    channels: (usize, usize),
    columns: usize,
    kernel: usize,
    stride: usize,
    upsampled: bool,
}

impl Convolution {
    fn out_size(&self) -> (usize, usize) {
        let (height, width) = self.size;
        let side = |side: usize| if self.upsampled { 2 * side } else { side.div_ceil(self.stride) };
        (side(height), side(width))
    }

    /// In f64, without the residual; `maps` and `weight` (`[taps][channels][columns]`) as they are rounded.
    fn expected(&self, maps: [&[f32]; 2], weight: &[f32], bias: &[f32]) -> Vec<f64> {
        let ((in_height, in_width), (height, width)) = (self.size, self.out_size());
        let (all, reach, shift) =
            (self.channels.0 + self.channels.1, self.kernel as isize / 2, usize::from(self.upsampled));
        let mut expected = Vec::new();
        for (sample, y, x) in
            (0..self.samples).flat_map(|s| (0..height).flat_map(move |y| (0..width).map(move |x| (s, y, x))))
        {
            let mut sums: Vec<f64> = bias.iter().map(|&bias| bias.into()).collect();
            for (dy, dx) in (0..self.kernel).flat_map(|dy| (0..self.kernel).map(move |dx| (dy, dx))) {
                let at = |place: usize, tap: usize, side: usize| {
                    let at = (place * self.stride + tap) as isize - reach;
                    usize::try_from(at).ok().filter(|&at| at < side << shift).map(|at| at >> shift)
                };
                let (Some(v), Some(u)) = (at(y, dy, in_height), at(x, dx, in_width)) else { continue };
                let pixel = (sample * in_height + v) * in_width + u;
                for channel in 0..all {
                    let value = match channel.checked_sub(self.channels.0) {
                        None => maps[0][pixel * self.channels.0 + channel],
                        Some(second) => maps[1][pixel * self.channels.1 + second],
                    };
                    let row = ((dy * self.kernel + dx) * all + channel) * self.columns;
                    for (sum, &weight) in sums.iter_mut().zip(&weight[row..row + self.columns]) {
                        *sum += f64::from(value) * f64::from(weight);
                    }
                }
            }
            expected.extend(sums);
        }
        expected
    }
}

#[test]
fn convolutions_are_those_of_the_reference() {
    let rounded = |name: &str, count: usize| -> Vec<f32> {
        image(name, count, 3).iter().map(|&value| half::f16::from_f32(value).to_f32()).collect()
    };
    let cases = [
        Convolution {
            samples: 2,
            size: (9, 7),
            channels: (40, 8),
            columns: 56,
            kernel: 3,
            stride: 1,
            upsampled: false,
        },
        Convolution {
            samples: 1,
            size: (5, 6),
            channels: (24, 0),
            columns: 200,
            kernel: 3,
            stride: 1,
            upsampled: true,
        },
        Convolution {
            samples: 3,
            size: (10, 9),
            channels: (72, 0),
            columns: 64,
            kernel: 3,
            stride: 2,
            upsampled: false,
        },
        Convolution {
            samples: 1,
            size: (13, 11),
            channels: (64, 32),
            columns: 104,
            kernel: 1,
            stride: 1,
            upsampled: false,
        },
    ];
    for context in contexts() {
        let all = Fragments::ALL.into_iter().enumerate();
        for (index, fragments) in all.filter(|(_, own)| own.fits(Cooperative::VULKAN, &context.limits)) {
            // Each with some of the problems, all together with all; the widest tiles with those of many columns.
            for case in cases.iter().skip((index + 1) % 2).step_by(2) {
                for splits in [1, 3] {
                    let error = context.checked(|| convolve(&context, case, fragments, splits, &rounded));
                    let error = error.unwrap();
                    assert!(error < 1e-3, "{error:.1e} with {fragments:?} in {splits} parts");
                }
            }
        }
    }
}

/// The error of an emulated convolution whose terms are divided into `splits`.
fn convolve(
    context: &Context,
    case: &Convolution,
    fragments: Fragments,
    splits: usize,
    rounded: &dyn Fn(&str, usize) -> Vec<f32>,
) -> mdm::Result<f64> {
    let &Convolution { samples, size, channels, columns, kernel, stride, upsampled } = case;
    let (height, width) = case.out_size();
    let rows = samples * height * width;
    let (taps, all) = (kernel * kernel, channels.0 + channels.1);
    let map = |name: &str, channels: usize| rounded(name, samples * size.0 * size.1 * channels.max(8));
    let (first, second) = (map("first", channels.0), map("second", channels.1));
    let weight = rounded("weight", taps * all * columns);
    let bias = image("bias", columns, 1);
    let residual = rounded("residual", rows * columns);
    let mut expected = case.expected([&first, &second], &weight, &bias);
    for (sum, &residual) in expected.iter_mut().zip(&residual) {
        *sum += f64::from(residual);
    }
    let result = if splits == 1 { ValueType::F16 } else { ValueType::F32 };
    let permutation = emulated_convolution(fragments, result);
    let half = |values: &[f32]| upload(context, "values", values, ValueType::F16);
    let (a, b, weights, residual) = (half(&first)?, half(&second)?, half(&weight)?, half(&residual)?);
    let exact = |values: &[f32]| upload(context, "values", values, ValueType::F32);
    let (bias_values, vectors, other) = (exact(&bias)?, exact(&[0.0; 4])?, exact(&[0.0; 4])?);
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let values = splits * rows * columns;
    let output = context.buffer("output", (result.size() * values) as u64, usage)?;
    let words = [height, width, columns, 1, 0, 1, columns, 0, rows, size.0, size.1];
    let words =
        words.into_iter().chain([channels.0, channels.1, kernel, stride, usize::from(upsampled), splits]);
    let words = words.map(|word| word as u32).collect();
    let (tile_rows, tile_columns) = fragments.tile(Cooperative::VULKAN);
    let tiles = rows.div_ceil(tile_rows as usize) * columns.div_ceil(tile_columns as usize);
    let bound = [
        (1, &a),
        (2, &b),
        (3, &weights),
        (4, &bias_values),
        (5, &vectors),
        (6, &residual),
        (7, &other),
        (8, &output),
    ];
    let bytes = dispatch(context, permutation, tiles * splits, words, &bound)?;
    let found = decode(&bytes, values, result);
    let found: Vec<f32> = if splits == 1 {
        found
    } else {
        // What `conv_sum` does.
        let sum = |at: usize| (0..splits).map(|part| found[part * rows * columns + at]).sum::<f32>();
        let plain = expected.iter().zip(0..).map(|(_, at)| at % columns);
        let residual = rounded("residual", rows * columns);
        plain.enumerate().map(|(at, column)| sum(at) + bias[column] + residual[at]).collect()
    };
    let expected: Vec<f32> = expected.into_iter().map(|value| value as f32).collect();
    Ok(relative_error(&found, &expected))
}
