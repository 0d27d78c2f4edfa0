//! Attention on matrix units where there are none: the matrices of the shader are emulated by what every GPU has, so that
//! all else that it does is tested on every machine.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::Control;
use mdm::engine::Precision;
use mdm::engine::gpu::GpuEngine;
use mdm::engine::gpu::context::Context;
use mdm::engine::gpu::shader::{Permutation, Shader, ShaderFile, Tile, ValueType};
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
fn in_tile(at: u32, i: u32) -> f32 { return half_of(tile[at + i / 8u][i % 8u / 2u], i % 2u); }

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
    if right.is_transposed { return in_tile(right.at + column * right.stride, row); }
    return in_tile(right.at + row * right.stride, column);
}
fn coopMultiplyAdd(left: Left, right: Right, sums: Sums) -> Sums {
    var result = sums;
    let column = lane % 2u * 8u;
    var values = array<vec4<f32>, 4>(left.a, left.b, left.c, left.d);
    for (var k = 0u; k < 16u; k++) {
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

/// The shader without matrix units, for heads of up to `channels` channels.
fn emulated(channels: u32) -> Permutation {
    let file = manifest_folder().join("shaders/attention_cooperative.wgsl");
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
        assert!(text.contains(from), "the shader has no {from}");
        text = text.replace(from, to);
    }
    for stride in ["TILE_STRIDE", "SCORE_STRIDE", "WEIGHT_STRIDE", "RESULT_STRIDE"] {
        text = text.replace(&format!("], {stride})"), &format!("), {stride})"));
    }
    // coopStoreT(sums, &exchange[at], stride)
    text = text.replace("coopStoreT(", "store_rows(").replace(", &exchange[", ", (");
    assert!(!text.contains("coopLoad") && !text.contains("&exchange") && !text.contains("&tile"));
    let file = ShaderFile { name: "attention_emulated", text: text.leak(), shared: &[] };
    let tile = Tile { terms: channels, ..Tile::SMALL };
    Permutation { tile, ..Permutation::plain(Shader::Foreign(Box::leak(Box::new(file))), ValueType::F16) }
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
        let permutation = emulated(if width > 64 { 128 } else { 64 });
        context.pipelines.compile(&context.device, &[permutation])?;
        use wgpu::BufferUsages as Usage;
        let input = upload(context, "qkv", qkv, ValueType::F16)?;
        let count = samples * pixels * heads * width;
        let output = context.buffer("output", 2 * count as u64, Usage::STORAGE | Usage::COPY_SRC)?;
        let staging = context.buffer("staging", 2 * count as u64, Usage::COPY_DST | Usage::MAP_READ)?;
        let mut words = [samples, pixels, heads, width, head_stride, role_stride].map(|n| n as u32).to_vec();
        words.extend([(1.0 / (width as f32).sqrt()).to_bits(), 0]);
        let params = context.buffer("params", 32, Usage::UNIFORM | Usage::COPY_DST)?;
        context.queue.write_buffer(&params.buffer, 0, bytemuck::cast_slice(&words));
        let workgroups = (samples * heads * pixels.div_ceil(64)) as u32;
        let dispatch = Dispatch::new(context, permutation, workgroups, 1.0, |number, _| {
            Bound::whole([&params, &input, &output][number as usize])
        })?;
        let control = Control::none();
        let mut encoder = Encoder::new(context, &control, None);
        encoder.operation(std::iter::once(&dispatch), None)?;
        encoder.submit(|commands| {
            commands.copy_buffer_to_buffer(&output.buffer, 0, &staging.buffer, 0, Some(2 * count as u64));
        })?;
        encoder.wait()?;
        Ok(decode(&map(context, &staging.buffer)?, count, ValueType::F16))
    }
}

#[test]
fn matrices_of_attention_fit_together() {
    let cases = [
        Case { samples: 2, pixels: 64, heads: 2, width: 64, qkv_first: true },
        Case { samples: 1, pixels: 150, heads: 2, width: 64, qkv_first: false },
        Case { samples: 2, pixels: 1, heads: 1, width: 8, qkv_first: true },
        Case { samples: 1, pixels: 65, heads: 3, width: 40, qkv_first: false },
        Case { samples: 1, pixels: 100, heads: 2, width: 128, qkv_first: true },
        Case { samples: 2, pixels: 33, heads: 1, width: 72, qkv_first: false },
    ];
    for (name, precision, device) in gpus() {
        if *precision != Precision::F16 {
            continue;
        }
        let engine: &GpuEngine = device.engine().as_any().downcast_ref().unwrap();
        let context = engine.context().unwrap();
        for case in &cases {
            let count = 3 * case.samples * case.pixels * case.heads * case.width;
            // Scores of some size, so that the softmax is not flat.
            let qkv: Vec<f32> = image("qkv", count, 1).iter().map(|v| 3.0 * v + 1.0).collect();
            let result = context.checked(|| case.run(&context, &qkv)).unwrap();
            let error = relative_error(&result, &case.expected(&qkv));
            let Case { samples, pixels, heads, width, .. } = case;
            assert!(
                error < 2e-3,
                "{name}: {error:.2e} at {samples} x {pixels} pixels, {heads} heads of {width}"
            );
        }
    }
}
