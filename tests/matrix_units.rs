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
use mdm::engine::gpu::shader::{BindingKind, Permutation, Shader, ShaderFile, Tile, ValueType};
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
