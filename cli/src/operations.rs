//! What the operations of a plan are and how much work they do.

use mdm::plan::{Op, Plan, Resample, Source};
use serde::Serialize;

/// An operation, or several of the same kind and shape.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OperationReport {
    pub(crate) kind: String,
    /// Output size and channels; for convolutions also those of the input.
    pub(crate) shape: String,
    pub(crate) count: usize,
    pub(crate) ms: f64,
    /// Multiplications and additions of the textbook method, for a whole batch; absent where they do not matter.
    pub(crate) gflop: Option<f64>,
}

/// All operations in the order in which they are executed, their times still zero.
pub(crate) fn operations(plan: &Plan) -> Vec<OperationReport> {
    plan.ops.iter().map(|op| operation(plan, op)).collect()
}

fn operation(plan: &Plan, op: &Op) -> OperationReport {
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
    OperationReport { kind, shape, count: 1, ms: 0.0, gflop: flop.map(|flop| flop / 1e9) }
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
        let gflop: f64 = operations(&plan).iter().filter_map(|operation| operation.gflop).sum();
        assert!((gflop / 2.0 - 341.9).abs() < 0.1, "{} GMAC", gflop / 2.0);
    }
}
