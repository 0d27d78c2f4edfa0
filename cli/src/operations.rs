//! What the operations of a plan are and how much work they do.

use mdm::plan::{Op, ParamId, Plan, Resample, Source, TensorId};
use serde::Serialize;

/// An operation, or several of the same kind and shape.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OperationReport {
    pub(crate) kind: String,
    /// Output size and channels; for convolutions also those of the input.
    pub(crate) shape: String,
    pub(crate) count: usize,
    /// Absent where the device has no clock for operations.
    pub(crate) ms: Option<f64>,
    /// Multiplications and additions of the textbook method, for a whole batch; absent where they do not matter.
    pub(crate) gflop: Option<f64>,
    /// 10^9 bytes that have to be read and written at least: inputs, parameters and the result, each once.
    pub(crate) gigabytes: f64,
}

/// All operations in the order in which they are executed, their times still unknown. Maps and weights are stored in
/// `value_bytes` bytes a value.
pub(crate) fn operations(plan: &Plan, value_bytes: usize) -> Vec<OperationReport> {
    let exact = exact(plan);
    plan.ops.iter().map(|op| operation(plan, op, bytes(plan, op, &exact, value_bytes))).collect()
}

/// Which tensors are kept in f32 whatever the precision: vectors, and what heads read and write.
fn exact(plan: &Plan) -> Vec<bool> {
    let mut exact: Vec<bool> = plan.tensors.iter().map(|tensor| tensor.height * tensor.width == 1).collect();
    for op in &plan.ops {
        if let Op::Head { partial_sums, output, .. } = op {
            partial_sums.iter().chain([output]).for_each(|id| exact[*id] = true);
        }
    }
    exact
}

fn bytes(plan: &Plan, op: &Op, exact: &[bool], value_bytes: usize) -> usize {
    let mut tensors = op.inputs();
    tensors.push(op.output());
    tensors.sort_unstable();
    tensors.dedup();
    let of_tensor = |id: &TensorId| {
        plan.tensors[*id].sample_len()
            * plan.options.batch
            * if exact[*id] { size_of::<f32>() } else { value_bytes }
    };
    // Biases and the like are kept in f32.
    let of_param = |id: &ParamId| {
        let shape = &plan.params[*id].shape;
        shape.iter().product::<usize>() * if shape.len() == 1 { size_of::<f32>() } else { value_bytes }
    };
    let params: Vec<ParamId> = match op {
        Op::Conv(conv) => [Some(conv.weight), conv.bias].into_iter().flatten().collect(),
        // Of a table of embeddings a row is read.
        Op::Linear { weight, bias, .. } | Op::NormCoefficients { weight, bias, .. } => vec![*weight, *bias],
        Op::Head { params, .. } => params.to_vec(),
        Op::Mask { .. }
        | Op::AddNoise { .. }
        | Op::Sinusoid { .. }
        | Op::Moments { .. }
        | Op::Attention { .. }
        | Op::FeatureNorm { .. } => Vec::new(),
    };
    tensors.iter().map(of_tensor).chain(params.iter().map(of_param)).sum()
}

fn operation(plan: &Plan, op: &Op, bytes: usize) -> OperationReport {
    let output = &plan.tensors[op.output()];
    let samples = plan.options.batch;
    let size = format!("{}x{}", output.height, output.width);
    let pixels = (samples * output.height * output.width) as f64;
    let (kind, shape, flop) = match op {
        Op::Conv(conv) => {
            let input: usize = conv.source.parts.iter().map(|part| plan.tensors[*part].channels).sum();
            let flop = 2.0 * pixels * (conv.kernel * conv.kernel * input * output.channels) as f64;
            let kind = format!("convolution {0}x{0}{1}", conv.kernel, manner(&conv.source, conv.stride));
            (kind, format!("{size} {input}->{}", output.channels), Some(flop))
        }
        Op::Attention { heads, .. } => {
            let positions = (output.height * output.width) as f64;
            let flop = 4.0 * pixels * positions * output.channels as f64;
            (format!("attention, {heads} heads"), format!("{size} {}", output.channels), Some(flop))
        }
        Op::Linear { input, .. } => {
            let inputs = plan.tensors[*input].channels;
            let flop = 2.0 * (samples * inputs * output.channels) as f64;
            ("linear".to_owned(), format!("{inputs}->{}", output.channels), Some(flop))
        }
        Op::Head { shape, .. } => {
            let weights = shape.heads * (shape.hidden.0 * shape.hidden.1 + shape.hidden.1 * shape.classes);
            ("head".to_owned(), format!("{size} {}", output.channels), Some(2.0 * pixels * weights as f64))
        }
        Op::Moments { input, .. } => {
            let input = &plan.tensors[*input];
            let shape = format!("{}x{} {}", input.height, input.width, input.channels);
            ("moments".to_owned(), shape, None)
        }
        Op::NormCoefficients { .. } => ("norm coefficients".to_owned(), output.channels.to_string(), None),
        Op::Mask { .. } => ("mask".to_owned(), format!("{size} {}", output.channels), None),
        Op::AddNoise { .. } => ("noise".to_owned(), format!("{size} {}", output.channels), None),
        Op::Sinusoid { .. } => ("time embedding".to_owned(), output.channels.to_string(), None),
        Op::FeatureNorm { .. } => ("feature norm".to_owned(), String::new(), None),
    };
    OperationReport {
        kind,
        shape,
        count: 1,
        ms: None,
        gflop: flop.map(|flop| flop / 1e9),
        gigabytes: bytes as f64 / 1e9,
    }
}

/// How a convolution reads its input, where that is out of the ordinary.
fn manner(source: &Source, stride: usize) -> &'static str {
    match (source.resample, stride) {
        (Resample::NearestUp, _) => ", upsampling",
        (Resample::AverageDown, _) => ", averaging",
        (Resample::None, 2) => ", stride 2",
        (Resample::None, _) => "",
    }
}

#[cfg(test)]
mod tests {
    use mdm::model::UnetConfig;
    use mdm::plan::PlanOptions;

    use super::*;

    #[test]
    fn the_papers_features_take_342_billion_multiplications() {
        let options = PlanOptions {
            batch: 1,
            height: 256,
            width: 256,
            timestep_slots: 1,
            corruption: None,
            blocks: (8..=12).collect(),
            image: false,
            head: None,
        };
        let plan = Plan::new(&UnetConfig::mdm_paper(), options).unwrap();
        let of_cpu = operations(&plan, 4);
        let gflop: f64 = of_cpu.iter().filter_map(|operation| operation.gflop).sum();
        assert!((gflop / 2.0 - 341.9).abs() < 0.1, "{} GMAC", gflop / 2.0);

        // The first convolution, of which biases and those of the sample are f32.
        let bytes = |operations: &[OperationReport]| {
            let first = operations.iter().find(|operation| operation.kind == "convolution 3x3").unwrap();
            (first.gigabytes * 1e9).round() as usize
        };
        let values = 256 * 256 * (3 + 192) + 192 * 3 * 9;
        assert_eq!(bytes(&of_cpu), 4 * (values + 192));
        assert_eq!(bytes(&operations(&plan, 2)), 2 * values + 4 * 192);
    }
}
