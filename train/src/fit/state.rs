//! What is known of a head in training, apart from how it is trained.

use std::ops::Range;

use mdm::model::{BatchNorm, Head, Linear};

use super::parameters::{Layout, Shape};
use super::standardise::Standardisation;

/// Momentum of the running statistics.
pub(crate) const MOMENTUM: f64 = 0.1;
/// Added to variances before their root.
pub(crate) const EPS: f64 = 1e-5;

/// A head's parameters and running statistics, and the scale of the features that it is trained on.
#[derive(Clone, Debug)]
pub(crate) struct HeadState {
    pub(crate) shape: Shape,
    pub(crate) layout: Layout,
    pub(crate) standardisation: Standardisation,
    /// In the layout's order; the first layer takes standardised features.
    pub(crate) parameters: Vec<f32>,
    pub(crate) running_mean: [Vec<f32>; 2],
    pub(crate) running_var: [Vec<f32>; 2],
}

impl HeadState {
    /// A new head with `parameters` in [`Layout`]'s order.
    pub(crate) fn new(shape: Shape, standardisation: Standardisation, parameters: Vec<f32>) -> Self {
        let layout = Layout::new(&shape);
        assert_eq!(parameters.len(), layout.len, "parameters of {shape:?}");
        Self {
            running_mean: shape.hidden.map(|channels| vec![0.0; channels]),
            running_var: shape.hidden.map(|channels| vec![1.0; channels]),
            shape,
            layout,
            standardisation,
            parameters,
        }
    }

    /// A head of that shape that was fitted before.
    pub(crate) fn of(head: &Head, shape: Shape, standardisation: Standardisation) -> Self {
        let layout = Layout::new(&shape);
        let mut first = head.linear[0].clone();
        standardisation.unfold(&mut first);
        let mut parameters = vec![0.0; layout.len];
        let [_, second, third] = &head.linear;
        for (layer, linear) in [&first, second, third].into_iter().enumerate() {
            parameters[layout.weight[layer].clone()].copy_from_slice(&linear.weight);
            parameters[layout.bias[layer].clone()].copy_from_slice(&linear.bias);
        }
        for (layer, norm) in head.norm.iter().enumerate() {
            parameters[layout.scale[layer].clone()].copy_from_slice(&norm.weight);
            parameters[layout.shift[layer].clone()].copy_from_slice(&norm.bias);
        }
        Self {
            running_mean: head.norm.each_ref().map(|norm| norm.running_mean.clone()),
            running_var: head.norm.each_ref().map(|norm| norm.running_var.clone()),
            ..Self::new(shape, standardisation, parameters)
        }
    }

    /// The head for features as they come.
    pub(crate) fn head(&self) -> Head {
        let [first, second, third] = self.shape.linear();
        let values = |range: &Range<usize>| self.parameters[range.clone()].to_vec();
        let linear = |layer: usize, (inputs, outputs): (usize, usize)| Linear {
            inputs,
            outputs,
            weight: values(&self.layout.weight[layer]),
            bias: values(&self.layout.bias[layer]),
        };
        let norm = |layer: usize| BatchNorm {
            weight: values(&self.layout.scale[layer]),
            bias: values(&self.layout.shift[layer]),
            running_mean: self.running_mean[layer].clone(),
            running_var: self.running_var[layer].clone(),
        };
        let mut first = linear(0, first);
        self.standardisation.fold(&mut first);
        Head { linear: [first, linear(1, second), linear(2, third)], norm: [norm(0), norm(1)] }
    }
}
