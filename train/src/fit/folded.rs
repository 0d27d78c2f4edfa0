//! Linear layers that take over the affine map before them.

/// Weight and bias of a linear layer, `[outputs, inputs]` and `[outputs]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
}

/// A linear layer of `x * scale + shift` as a linear layer of x.
#[derive(Clone, Debug)]
pub(crate) struct Folded {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Folded {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        Self { weight: vec![0.0; inputs * outputs], bias: vec![0.0; outputs] }
    }

    pub(crate) fn set(&mut self, layer: Affine<'_>, scale: &[f32], shift: &[f32]) {
        let inputs = scale.len();
        let rows = layer.weight.chunks_exact(inputs).zip(self.weight.chunks_exact_mut(inputs));
        for ((from, to), (bias, folded)) in rows.zip(layer.bias.iter().zip(&mut self.bias)) {
            let mut sum = f64::from(*bias);
            for (((weight, folded), scale), shift) in from.iter().zip(to).zip(scale).zip(shift) {
                *folded = weight * scale;
                sum += f64::from(weight * shift);
            }
            *folded = sum as f32;
        }
    }

    pub(crate) fn affine(&self) -> Affine<'_> {
        Affine { weight: &self.weight, bias: &self.bias }
    }
}
