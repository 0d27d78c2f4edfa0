//! Random parameters.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mdm::Error;
use mdm::model::{Tensor, WeightSource};
use mdm::plan::Plan;

use crate::demo::Random;

/// Weights that keep activations about as large as a trained network's, the same for the same name.
pub(super) struct RandomWeights {
    shapes: HashMap<String, Vec<usize>>,
    spent: Mutex<Duration>,
}

impl RandomWeights {
    pub(super) fn of(plan: &Plan) -> Self {
        let shapes = plan.params.iter().map(|param| (param.name.clone(), param.shape.clone())).collect();
        Self { shapes, spent: Mutex::default() }
    }

    /// Time that making them took so far, which reading a file would not.
    pub(super) fn spent(&self) -> Duration {
        self.spent.lock().map_or(Duration::ZERO, |spent| *spent)
    }
}

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str) -> mdm::Result<Tensor<'_>> {
        let began = Instant::now();
        let shape = self.shapes.get(name).ok_or_else(|| Error::tensor(name, "is not in this network"))?;
        let seed =
            name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(0x100_0000_01B3) ^ u64::from(byte));
        let mut random = Random::new(seed);
        let fan_in: usize = shape[1..].iter().product();
        // Vectors are biases and norms.
        let reach = if shape.len() == 1 { 0.1 } else { (fan_in as f32).sqrt().recip() };
        let data = (0..shape.iter().product()).map(|_| random.between(-reach, reach)).collect::<Vec<_>>();
        if let Ok(mut spent) = self.spent.lock() {
            *spent += began.elapsed();
        }
        Ok(Tensor { shape: shape.clone(), data: data.into() })
    }
}
