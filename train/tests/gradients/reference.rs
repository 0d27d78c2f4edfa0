//! The operations of a plan and the losses on a tape.

use std::collections::HashMap;

use mdm::plan::{Op, Plan, Resample, Source, TensorId};
use mdm_train::differentiate::{Gradient, Instruction, Program};
use mdm_train::loss::{Loss, SsimForm};

use crate::engines::Given;
use crate::tape::{Tape, Var};

/// What is to come out, in f64.
pub(crate) struct Expected {
    pub(crate) loss: f64,
    pub(crate) answer: Vec<f64>,
    /// One a parameter.
    pub(crate) gradients: Vec<Vec<f64>>,
}

/// Runs the forward pass of `program` and differentiates it.
pub(crate) fn expected(program: &Program, given: &Given) -> Expected {
    let mut tape = Tape::default();
    let params: Vec<Vec<Var>> = given.params.iter().map(|values| tape.leaves(values)).collect();
    let mut reference = Reference { plan: &program.plan, params: &params, tape, maps: HashMap::new() };
    for (id, values) in &given.tensors {
        let leaves = reference.tape.leaves(values);
        reference.maps.insert(*id, leaves);
    }
    for op in &program.plan.ops {
        reference.run(op);
    }
    let loss = program.instructions.iter().find_map(|instruction| match instruction {
        Instruction::Gradient(Gradient::Loss { loss, .. }) => Some(*loss),
        _ => None,
    });
    let answer = reference.maps[&program.answers[0]].clone();
    let target = reference.maps[&program.targets[0]].clone();
    let shape = reference.shape(program.answers[0]);
    let mut tape = reference.tape;
    let loss = loss_of(&mut tape, loss.unwrap(), shape, program.plan.options.batch, &answer, &target);
    let gradient = tape.gradient(loss);
    Expected {
        loss: tape.value(loss),
        answer: answer.iter().map(|&v| tape.value(v)).collect(),
        gradients: params.iter().map(|vars| vars.iter().map(|&v| gradient[v as usize]).collect()).collect(),
    }
}

struct Reference<'a> {
    plan: &'a Plan,
    params: &'a [Vec<Var>],
    tape: Tape,
    maps: HashMap<TensorId, Vec<Var>>,
}

/// Rows, columns, channels.
type Shape = (usize, usize, usize);

impl Reference<'_> {
    fn batch(&self) -> usize {
        self.plan.options.batch
    }

    fn shape(&self, id: TensorId) -> Shape {
        let tensor = &self.plan.tensors[id];
        (tensor.height, tensor.width, tensor.channels)
    }

    /// What is read, as one map.
    fn read(&mut self, source: &Source) -> (Shape, Vec<Var>) {
        let (height, width, _) = self.shape(source.parts[0]);
        let widths: Vec<usize> = source.parts.iter().map(|&id| self.shape(id).2).collect();
        let channels = widths.iter().sum::<usize>();
        let mut whole = Vec::new();
        for pixel in 0..self.batch() * height * width {
            let mut c = 0;
            for (part, own) in source.parts.iter().zip(&widths) {
                for index in 0..*own {
                    let mut value = self.maps[part][pixel * own + index];
                    if let Some(norm) = source.norm {
                        let row = pixel / (height * width) * 2 * channels;
                        let coefficients = &self.maps[&norm.coefficients];
                        let (scale, shift) = (coefficients[row + c], coefficients[row + channels + c]);
                        value = self.tape.dot([(value, scale)].into_iter(), &[shift]);
                        value = if norm.silu { self.tape.silu(value) } else { value };
                    }
                    whole.push(value);
                    c += 1;
                }
            }
        }
        let at = |sample: usize, y: usize, x: usize, c: usize| {
            whole[((sample * height + y) * width + x) * channels + c]
        };
        let size = match source.resample {
            Resample::None => return ((height, width, channels), whole),
            Resample::NearestUp => (2 * height, 2 * width),
            Resample::AverageDown => (height / 2, width / 2),
        };
        let mut values = Vec::new();
        for sample in 0..self.plan.options.batch {
            for y in 0..size.0 {
                for x in 0..size.1 {
                    for c in 0..channels {
                        values.push(if source.resample == Resample::NearestUp {
                            at(sample, y / 2, x / 2, c)
                        } else {
                            let quarter = |dy, dx| (at(sample, 2 * y + dy, 2 * x + dx, c), 0.25);
                            self.tape
                                .linear(&[quarter(0, 0), quarter(0, 1), quarter(1, 0), quarter(1, 1)], 0.0)
                        });
                    }
                }
            }
        }
        ((size.0, size.1, channels), values)
    }

    fn run(&mut self, op: &Op) {
        let result = match op {
            Op::Conv(conv) => self.conv(conv),
            Op::Moments { input, .. } => self.moments(*input),
            Op::NormCoefficients { moments, weight, bias, scale_shift, .. } => {
                self.coefficients(moments, *weight, *bias, *scale_shift)
            }
            Op::Linear { input, silu, weight, bias, .. } => self.linear(*input, *silu, *weight, *bias),
            Op::Attention { qkv, heads, qkv_first, .. } => self.attention(*qkv, *heads, *qkv_first),
            Op::Sinusoid { timesteps, output } => {
                let half = self.shape(*output).2 / 2;
                let mut values = Vec::new();
                for sample in 0..self.batch() {
                    let t = self.tape.value(self.maps[timesteps][sample]);
                    let angle = |k: usize| t * (-(10_000f64.ln()) * k as f64 / half as f64).exp();
                    values.extend((0..half).map(|k| self.tape.node(angle(k).cos(), &[])));
                    values.extend((0..half).map(|k| self.tape.node(angle(k).sin(), &[])));
                }
                values
            }
            other => panic!("no reference for {other:?}"),
        };
        self.maps.insert(op.output(), result);
    }

    fn conv(&mut self, conv: &mdm::plan::Conv) -> Vec<Var> {
        let ((height, width, inputs), x) = self.read(&conv.source);
        let added = conv.residual.as_ref().map(|residual| self.read(residual).1);
        let (out_height, out_width, outputs) = self.shape(conv.output);
        let (kernel, weight) = (conv.kernel, &self.params[conv.weight]);
        let mut result = Vec::new();
        for sample in 0..self.plan.options.batch {
            for y in 0..out_height {
                for x_out in 0..out_width {
                    for out in 0..outputs {
                        let mut extra: Vec<Var> = conv.bias.iter().map(|&id| self.params[id][out]).collect();
                        extra.extend(conv.sample_bias.map(|id| self.maps[&id][sample * outputs + out]));
                        extra.extend(added.as_ref().map(|added| added[result.len()]));
                        let taps = (0..kernel * kernel).filter_map(|tap| {
                            let row = (y * conv.stride + tap / kernel).checked_sub(kernel / 2)?;
                            let column = (x_out * conv.stride + tap % kernel).checked_sub(kernel / 2)?;
                            let inside = row < height && column < width;
                            inside.then_some((tap, ((sample * height + row) * width + column) * inputs))
                        });
                        let pairs = taps.flat_map(|(tap, pixel)| {
                            let at = move |i: usize| (out * inputs + i) * kernel * kernel + tap;
                            let x = &x;
                            (0..inputs).map(move |i| (x[pixel + i], weight[at(i)]))
                        });
                        result.push(self.tape.dot(pairs, &extra));
                    }
                }
            }
        }
        result
    }

    fn moments(&mut self, input: TensorId) -> Vec<Var> {
        let (height, width, channels) = self.shape(input);
        let (pixels, x) = (height * width, self.maps[&input].clone());
        let mut result = Vec::new();
        for sample in 0..self.batch() {
            let mut variances = Vec::new();
            for c in 0..channels {
                let of = |pixel: usize| x[(sample * pixels + pixel) * channels + c];
                let share = 1.0 / pixels as f64;
                let terms: Vec<(Var, f64)> = (0..pixels).map(|pixel| (of(pixel), share)).collect();
                let mean = self.tape.linear(&terms, 0.0);
                let deviations: Vec<Var> = (0..pixels)
                    .map(|pixel| self.tape.linear(&[(of(pixel), 1.0), (mean, -1.0)], 0.0))
                    .collect();
                let sum = self.tape.dot(deviations.iter().map(|&d| (d, d)), &[]);
                variances.push(self.tape.linear(&[(sum, share)], 0.0));
                result.push(mean);
            }
            result.extend(variances);
        }
        result
    }

    fn coefficients(
        &mut self,
        moments: &[TensorId],
        weight: usize,
        bias: usize,
        scale_shift: Option<TensorId>,
    ) -> Vec<Var> {
        let channels = self.params[weight].len();
        let per_group = channels / 32;
        let mut result = Vec::new();
        for sample in 0..self.batch() {
            let (mut means, mut variances) = (Vec::new(), Vec::new());
            for id in moments {
                let own = self.shape(*id).2 / 2;
                let row = &self.maps[id][sample * 2 * own..][..2 * own];
                means.extend_from_slice(&row[..own]);
                variances.extend_from_slice(&row[own..]);
            }
            let mut shifts = Vec::new();
            for c in 0..channels {
                let group = c / per_group * per_group..(c / per_group + 1) * per_group;
                let share = 1.0 / per_group as f64;
                let terms: Vec<(Var, f64)> = means[group.clone()].iter().map(|&m| (m, share)).collect();
                let mean = self.tape.linear(&terms, 0.0);
                let mut terms: Vec<(Var, f64)> =
                    variances[group.clone()].iter().map(|&v| (v, share)).collect();
                for member in group {
                    let deviation = self.tape.linear(&[(means[member], 1.0), (mean, -1.0)], 0.0);
                    terms.push((self.tape.mul(deviation, deviation), share));
                }
                let variance = self.tape.linear(&terms, 1e-5);
                let inverse = self.tape.map(variance, |v| (v.sqrt().recip(), -0.5 * v.powf(-1.5)));
                let mut scale = self.tape.mul(self.params[weight][c], inverse);
                let product = self.tape.mul(mean, scale);
                let mut shift = self.tape.linear(&[(self.params[bias][c], 1.0), (product, -1.0)], 0.0);
                if let Some(id) = scale_shift {
                    let row = sample * 2 * channels;
                    let (factor, offset) = (self.maps[&id][row + c], self.maps[&id][row + channels + c]);
                    let factor = self.tape.linear(&[(factor, 1.0)], 1.0);
                    scale = self.tape.mul(scale, factor);
                    shift = self.tape.dot([(shift, factor)].into_iter(), &[offset]);
                }
                result.push(scale);
                shifts.push(shift);
            }
            result.extend(shifts);
        }
        result
    }

    fn linear(&mut self, input: TensorId, silu: bool, weight: usize, bias: usize) -> Vec<Var> {
        let inputs = self.shape(input).2;
        let mut x = self.maps[&input].clone();
        if silu {
            x = x.into_iter().map(|x| self.tape.silu(x)).collect();
        }
        let (weight, bias) = (&self.params[weight], &self.params[bias]);
        let mut result = Vec::new();
        for row in x.chunks(inputs) {
            for (weights, &bias) in weight.chunks(inputs).zip(bias) {
                let pairs = row.iter().copied().zip(weights.iter().copied());
                result.push(self.tape.dot(pairs, &[bias]));
            }
        }
        result
    }

    fn attention(&mut self, qkv: TensorId, heads: usize, qkv_first: bool) -> Vec<Var> {
        let (height, width, tripled) = self.shape(qkv);
        let (pixels, channels) = (height * width, tripled / 3);
        let own = channels / heads;
        let values = self.maps[&qkv].clone();
        // Channel `c` of query (0), key (1) or value (2) of a head.
        let at = |sample: usize, pixel: usize, head: usize, role: usize, c: usize| {
            let channel =
                if qkv_first { role * channels + head * own + c } else { (head * 3 + role) * own + c };
            values[(sample * pixels + pixel) * tripled + channel]
        };
        let scale = 1.0 / (own as f64).sqrt();
        let mut result = Vec::new();
        for sample in 0..self.plan.options.batch {
            for query in 0..pixels {
                for head in 0..heads {
                    let scores: Vec<Var> = (0..pixels)
                        .map(|key| {
                            let pairs = (0..own)
                                .map(|c| (at(sample, query, head, 0, c), at(sample, key, head, 1, c)));
                            let score = self.tape.dot(pairs, &[]);
                            self.tape.map(score, |s| ((s * scale).exp(), scale * (s * scale).exp()))
                        })
                        .collect();
                    let terms: Vec<(Var, f64)> = scores.iter().map(|&score| (score, 1.0)).collect();
                    let sum = self.tape.linear(&terms, 0.0);
                    let inverse = self.tape.inverse(sum);
                    for c in 0..own {
                        let pairs = scores.iter().enumerate().map(|(i, &p)| (p, at(sample, i, head, 2, c)));
                        let weighted = self.tape.dot(pairs, &[]);
                        result.push(self.tape.mul(weighted, inverse));
                    }
                }
            }
        }
        result
    }
}

fn loss_of(
    tape: &mut Tape,
    loss: Loss,
    (height, width, channels): Shape,
    batch: usize,
    answer: &[Var],
    target: &[Var],
) -> Var {
    let share = 1.0 / answer.len() as f64;
    let mut terms = Vec::new();
    let Loss::Ssim { window, sigma, dynamic_range, form } = loss else {
        for (&a, &b) in answer.iter().zip(target) {
            let difference = tape.linear(&[(a, 1.0), (b, -1.0)], 0.0);
            let f = |d: f64| if loss == Loss::MeanSquare { (d * d, 2.0 * d) } else { (d.abs(), d.signum()) };
            terms.push((tape.map(difference, f), share));
        }
        return tape.linear(&terms, 0.0);
    };
    let centre = (window / 2) as f64;
    let bell = |i: usize| (-(i as f64 - centre).powi(2) / (2.0 * sigma * sigma)).exp();
    let sum: f64 = (0..window).map(bell).sum();
    let [c1, c2] = [0.01, 0.03].map(|factor: f64| (factor * dynamic_range).powi(2));
    for sample in 0..batch {
        for y in 0..height {
            for x in 0..width {
                for c in 0..channels {
                    let mut seen = Vec::new();
                    for tap in 0..window * window {
                        let row = (y + tap / window).checked_sub(window / 2).filter(|&row| row < height);
                        let column = (x + tap % window).checked_sub(window / 2).filter(|&x| x < width);
                        if let (Some(row), Some(column)) = (row, column) {
                            let at = ((sample * height + row) * width + column) * channels + c;
                            let weight = bell(tap / window) * bell(tap % window) / (sum * sum);
                            seen.push((answer[at], target[at], weight));
                        }
                    }
                    let mean = |tape: &mut Tape, of: &dyn Fn(&mut Tape, Var, Var) -> Var| {
                        let terms: Vec<(Var, f64)> =
                            seen.iter().map(|&(a, b, w)| (of(tape, a, b), w)).collect();
                        tape.linear(&terms, 0.0)
                    };
                    let (mx, my) = (mean(tape, &|_, a, _| a), mean(tape, &|_, _, b| b));
                    let xx = mean(tape, &|tape, a, _| tape.mul(a, a));
                    let yy = mean(tape, &|tape, _, b| tape.mul(b, b));
                    let xy = mean(tape, &|tape, a, b| tape.mul(a, b));
                    let (mxx, myy, mxy) = (tape.mul(mx, mx), tape.mul(my, my), tape.mul(mx, my));
                    let a1 = tape.linear(&[(mxy, 2.0)], c1);
                    let a2 = tape.linear(&[(xy, 2.0), (mxy, -2.0)], c2);
                    let b1 = tape.linear(&[(mxx, 1.0), (myy, 1.0)], c1);
                    let b2 = tape.linear(&[(xx, 1.0), (mxx, -1.0), (yy, 1.0), (myy, -1.0)], c2);
                    let (above, below) = (tape.mul(a1, a2), tape.mul(b1, b2));
                    let inverse = tape.inverse(below);
                    let ssim = tape.mul(above, inverse);
                    let one = tape.map(ssim, |s| match form {
                        SsimForm::OneMinus => (1.0 - s, -1.0),
                        SsimForm::ClampedHalf if (0.0..=1.0).contains(&(1.0 - s)) => ((1.0 - s) / 2.0, -0.5),
                        SsimForm::ClampedHalf => ((1.0 - s).clamp(0.0, 1.0) / 2.0, 0.0),
                    });
                    terms.push((one, share));
                }
            }
        }
    }
    tape.linear(&terms, 0.0)
}
