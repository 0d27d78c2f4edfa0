//! Convolutions with all that they read and add.

use mdm::plan::{Conv, Norm, Op, Resample, Source, TensorId};
use proptest::prelude::*;

use crate::problem::{Problem, cases, read};

/// What a generated convolution looks like.
#[derive(Clone, Debug)]
struct ConvShape {
    batch: usize,
    height: usize,
    width: usize,
    parts: Vec<usize>,
    outputs: usize,
    kernel: usize,
    stride: usize,
    norm: Option<bool>,
    resample: Resample,
    bias: bool,
    sample_bias: bool,
    residual: Option<Resample>,
}

fn check_conv(shape: &ConvShape) {
    let mut problem = Problem::new(shape.batch);
    let parts: Vec<TensorId> =
        shape.parts.iter().map(|&channels| problem.input(shape.height, shape.width, channels)).collect();
    let inputs: usize = shape.parts.iter().sum();
    let norm = shape.norm.map(|silu| Norm { coefficients: problem.input(1, 1, 2 * inputs), silu });
    let source = Source { parts, norm, resample: shape.resample };
    let x = read(&problem, &source);
    let (height, width) = (x.height.div_ceil(shape.stride), x.width.div_ceil(shape.stride));
    let (weight, weights) = problem.param(&[shape.outputs, inputs, shape.kernel, shape.kernel]);
    let bias = shape.bias.then(|| problem.param(&[shape.outputs]));
    let sample_bias = shape.sample_bias.then(|| problem.input(1, 1, shape.outputs));
    let residual = shape.residual.map(|resample| {
        let (h, w) = match resample {
            Resample::None => (height, width),
            Resample::NearestUp => (height / 2, width / 2),
            Resample::AverageDown => (2 * height, 2 * width),
        };
        Source { parts: vec![problem.input(h, w, shape.outputs)], norm: None, resample }
    });
    let added = residual.as_ref().map(|residual| read(&problem, residual));
    let shifted = sample_bias.map(|id| problem.values(id));
    let mut expected = Vec::new();
    let reach = (shape.kernel / 2) as isize;
    for sample in 0..shape.batch {
        for y in 0..height {
            for x_out in 0..width {
                for out in 0..shape.outputs {
                    let mut sum = bias.as_ref().map_or(0.0, |(_, bias)| bias[out]);
                    sum += shifted.as_ref().map_or(0.0, |bias| bias.values[sample * shape.outputs + out]);
                    sum += added.as_ref().map_or(0.0, |map| map.at(sample, y as isize, x_out as isize, out));
                    for input in 0..inputs {
                        for ky in 0..shape.kernel {
                            for kx in 0..shape.kernel {
                                let at = ((out * inputs + input) * shape.kernel + ky) * shape.kernel + kx;
                                let from_y = (y * shape.stride + ky) as isize - reach;
                                let from_x = (x_out * shape.stride + kx) as isize - reach;
                                sum += weights[at] * x.at(sample, from_y, from_x, input);
                            }
                        }
                    }
                    expected.push(sum);
                }
            }
        }
    }
    let output = problem.tensor(height, width, shape.outputs);
    let op = Op::Conv(Conv {
        source,
        weight,
        bias: bias.map(|(id, _)| id),
        sample_bias,
        residual,
        kernel: shape.kernel,
        stride: shape.stride,
        output,
    });
    problem.check(op, &expected, 3e-6);
}

/// So large that engines divide the work differently.
#[test]
fn normalised_large_maps() {
    for (batch, height, width, resample) in
        [(2, 129, 131, Resample::None), (1, 512, 258, Resample::AverageDown)]
    {
        check_conv(&ConvShape {
            batch,
            height,
            width,
            parts: vec![32, 32],
            outputs: 1,
            kernel: 1,
            stride: 1,
            norm: Some(true),
            resample,
            bias: false,
            sample_bias: false,
            residual: None,
        });
    }
}

prop_compose! {
    fn conv_shapes(large: bool)(
        batch in 1usize..3,
        (height, width) in if large { (30usize..40, 30usize..70) } else { (1usize..19, 1usize..19) },
        parts in prop::collection::vec(1usize..4, 1..3),
        wide in any::<bool>(),
        outputs in 1usize..140,
        kernel in prop::sample::select(vec![1usize, 3]),
        stride in 1usize..3,
        norm in prop::option::of(any::<bool>()),
        resample in prop::sample::select(vec![Resample::None, Resample::NearestUp, Resample::AverageDown]),
        (bias, sample_bias) in any::<(bool, bool)>(),
        residual in prop::option::of(
            prop::sample::select(vec![Resample::None, Resample::NearestUp, Resample::AverageDown])),
    ) -> ConvShape {
        // Multiples of 32 channels take the paths of the networks, others those of their edges.
        let parts = parts.into_iter().map(|n| if wide || large { 32 * n } else { 7 * n }).collect();
        let outputs = if wide || large { outputs.div_ceil(35) * 32 } else { outputs };
        let even = |size: usize| if resample == Resample::AverageDown { size.div_ceil(2) * 2 } else { size };
        let (height, width) = (even(height), even(width));
        let stride = if kernel == 1 { 1 } else { stride };
        // An upsampled residual needs an even output.
        let size = |n: usize| match resample {
            Resample::None => n, Resample::NearestUp => 2 * n, Resample::AverageDown => n / 2,
        }.div_ceil(stride);
        let odd = size(height) % 2 == 1 || size(width) % 2 == 1;
        let residual = residual.filter(|&kind| kind != Resample::NearestUp || !odd);
        ConvShape { batch, height, width, parts, outputs, kernel, stride, norm, resample, bias, sample_bias, residual }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn convolution(shape in conv_shapes(false)) {
        check_conv(&shape);
    }
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn convolution_of_large_images(shape in conv_shapes(true)) {
        check_conv(&shape);
    }
}
