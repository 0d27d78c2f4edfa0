//! An ensemble of heads as the parameters of a plan.

use crate::memory::{product, zeros};
use crate::model::{BatchNorm, Head, Linear, MapWeights};
use crate::plan::{Combine, HEAD_PREFIX, HeadShape};
use crate::{Error, Result};

const EPSILON: f64 = 1e-5;

/// The parameters that [`PlanOptions::head`](crate::plan::PlanOptions::head) names: batch norms folded into the layers
/// after them, the first layer split by group of decoder blocks, all heads of the ensemble one after the other.
///
/// Features are those of `slots` timesteps, each with groups of `group_channels` channels
/// ([`UnetConfig::feature_groups`](crate::model::UnetConfig::feature_groups)).
///
/// # Errors
/// [`Error::Invalid`] if there are no heads, if they do not agree with each other, or not with the features.
pub fn fold_heads(heads: &[Head], slots: usize, group_channels: &[usize]) -> Result<MapWeights> {
    let (hidden, classes, channels) = agreement(heads)?;
    let slot_channels: usize = group_channels.iter().sum();
    if slots * slot_channels != channels {
        return Err(Error::invalid(
            "heads",
            format!(
                "they take {channels} features, but {slots} timesteps of groups with {group_channels:?} \
                 channels have {}",
                slots * slot_channels
            ),
        ));
    }
    let mut weights = MapWeights::default();
    let mut offset = 0;
    for (group, &width) in group_channels.iter().enumerate() {
        let rows = heads.len() * hidden.0;
        let len = product(&[rows, slots, width], "a head's first layer")?;
        let mut first: Vec<f32> = zeros(len, "a head's first layer")?;
        let old_rows = heads.iter().flat_map(|head| head.linear[0].weight.chunks_exact(channels));
        for (new, old) in first.chunks_exact_mut(slots * width).zip(old_rows) {
            for (new, old) in new.chunks_exact_mut(width).zip(old.chunks_exact(slot_channels)) {
                new.copy_from_slice(&old[offset..][..width]);
            }
        }
        weights.insert(format!("{HEAD_PREFIX}first.{group}.weight"), &[rows, slots * width], first);
        offset += width;
    }
    let first_bias = heads.iter().flat_map(|head| head.linear[0].bias.iter().copied()).collect();
    weights.insert(format!("{HEAD_PREFIX}first.bias"), &[heads.len() * hidden.0], first_bias);
    for (layer, name, inputs, outputs) in [(1, "second", hidden.0, hidden.1), (2, "third", hidden.1, classes)]
    {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for head in heads {
            fold(&head.norm[layer - 1], &head.linear[layer], &mut weight, &mut bias);
        }
        weights.insert(format!("{HEAD_PREFIX}{name}.weight"), &[heads.len(), outputs, inputs], weight);
        weights.insert(format!("{HEAD_PREFIX}{name}.bias"), &[heads.len() * outputs], bias);
    }
    if let Some((name, _)) =
        weights.0.iter().find(|(_, tensor)| tensor.data.iter().any(|value| !value.is_finite()))
    {
        return Err(Error::tensor(name, "is not finite once the head's batch norms are folded in"));
    }
    Ok(weights)
}

/// What a plan needs to know of the ensemble.
///
/// # Errors
/// [`Error::Invalid`] if there are no heads, or if they do not agree with each other.
pub fn head_shape(heads: &[Head], normalise: bool, combine: Combine, uncertainty: bool) -> Result<HeadShape> {
    let (hidden, classes, _) = agreement(heads)?;
    Ok(HeadShape { heads: heads.len(), hidden, classes, normalise, combine, uncertainty })
}

/// Hidden widths, classes and input channels of an ensemble.
fn agreement(heads: &[Head]) -> Result<((usize, usize), usize, usize)> {
    let Some(first) = heads.first() else {
        return Err(Error::invalid("model", "has no heads: fit some to labelled images first"));
    };
    for (i, head) in heads.iter().enumerate() {
        head.validate()?;
        if (head.hidden(), head.classes(), head.channels())
            != (first.hidden(), first.classes(), first.channels())
        {
            return Err(Error::invalid("heads", format!("head {i} has other sizes than head 0")));
        }
    }
    Ok((first.hidden(), first.classes(), first.channels()))
}

/// Appends `linear` after `norm` as one linear layer.
fn fold(norm: &BatchNorm, linear: &Linear, weight: &mut Vec<f32>, bias: &mut Vec<f32>) {
    let affine: Vec<(f64, f64)> = (0..linear.inputs)
        .map(|i| {
            let scale = f64::from(norm.weight[i]) / (f64::from(norm.running_var[i]) + EPSILON).sqrt();
            (scale, f64::from(norm.bias[i]) - f64::from(norm.running_mean[i]) * scale)
        })
        .collect();
    for (row, old_bias) in linear.weight.chunks_exact(linear.inputs).zip(&linear.bias) {
        let mut sum = f64::from(*old_bias);
        for (value, (scale, shift)) in row.iter().zip(&affine) {
            weight.push((f64::from(*value) * scale) as f32);
            sum += f64::from(*value) * shift;
        }
        bias.push(sum as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(channels: usize) -> Head {
        let linear = |inputs: usize, outputs: usize| Linear {
            inputs,
            outputs,
            weight: (0..inputs * outputs).map(|i| i as f32).collect(),
            bias: (0..outputs).map(|i| i as f32).collect(),
        };
        let norm = |width: usize| BatchNorm {
            weight: vec![2.0; width],
            bias: vec![0.5; width],
            running_mean: vec![1.0; width],
            running_var: vec![1.0; width],
        };
        Head { linear: [linear(channels, 2), linear(2, 2), linear(2, 3)], norm: [norm(2), norm(2)] }
    }

    #[test]
    fn columns_of_a_group_are_gathered_from_all_timesteps() {
        // Features: timestep 0 (group 0: 2 channels, group 1: 3 channels), then timestep 1 likewise.
        let weights = fold_heads(&[head(10), head(10)], 2, &[2, 3]).unwrap();
        let first = &weights.0["head.first.0.weight"];
        assert_eq!(first.shape, [4, 4]);
        assert_eq!(first.data[..8], [0.0, 1.0, 5.0, 6.0, 10.0, 11.0, 15.0, 16.0]);
        assert_eq!(first.data[8..], first.data[..8]);
        let second = &weights.0["head.first.1.weight"];
        assert_eq!(second.shape, [4, 6]);
        assert_eq!(second.data[..6], [2.0, 3.0, 4.0, 7.0, 8.0, 9.0]);
        assert_eq!(weights.0["head.second.weight"].shape, [2, 2, 2]);
        assert_eq!(weights.0["head.third.bias"].shape, [6]);
    }

    #[test]
    fn heads_that_do_not_fit_are_errors() {
        assert!(fold_heads(&[], 1, &[10]).is_err());
        assert!(fold_heads(&[head(10)], 1, &[9]).is_err());
        assert!(fold_heads(&[head(10), head(9)], 1, &[10]).is_err());
        let mut broken = head(10);
        broken.norm[0].running_var[0] = -1.0;
        assert!(fold_heads(&[broken], 1, &[10]).is_err());
    }
}
