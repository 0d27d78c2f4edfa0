//! Differentiation of scalars in f64, one by one: as naive as can be.

/// A number on the tape.
pub(crate) type Var = u32;

/// Every number that was computed, and how.
#[derive(Default)]
pub(crate) struct Tape {
    values: Vec<f64>,
    /// For each number, where its products and its slopes end.
    ends: Vec<(usize, usize)>,
    /// What is multiplied and added up.
    products: Vec<(Var, Var)>,
    /// Derivatives with respect to others.
    slopes: Vec<(Var, f64)>,
}

impl Tape {
    pub(crate) fn value(&self, of: Var) -> f64 {
        self.values[of as usize]
    }

    /// A number whose derivatives with respect to others are known.
    pub(crate) fn node(&mut self, value: f64, slopes: &[(Var, f64)]) -> Var {
        self.slopes.extend_from_slice(slopes);
        self.finish(value)
    }

    fn finish(&mut self, value: f64) -> Var {
        self.values.push(value);
        self.ends.push((self.products.len(), self.slopes.len()));
        Var::try_from(self.values.len() - 1).unwrap()
    }

    pub(crate) fn leaves(&mut self, values: &[f32]) -> Vec<Var> {
        values.iter().map(|&value| self.node(value.into(), &[])).collect()
    }

    /// The sum of products, and of `added`.
    pub(crate) fn dot(&mut self, pairs: impl Iterator<Item = (Var, Var)>, added: &[Var]) -> Var {
        let first = self.products.len();
        self.products.extend(pairs);
        let products = self.products[first..].iter().map(|&(a, b)| self.value(a) * self.value(b));
        let sum: f64 = products.chain(added.iter().map(|&a| self.value(a))).sum();
        self.slopes.extend(added.iter().map(|&a| (a, 1.0)));
        self.finish(sum)
    }

    pub(crate) fn mul(&mut self, a: Var, b: Var) -> Var {
        self.dot([(a, b)].into_iter(), &[])
    }

    /// `sum of factor * a + constant`.
    pub(crate) fn linear(&mut self, terms: &[(Var, f64)], constant: f64) -> Var {
        let value = terms.iter().map(|&(a, factor)| factor * self.value(a)).sum::<f64>() + constant;
        self.node(value, terms)
    }

    /// `f(a)`, given its value and slope at any point.
    pub(crate) fn map(&mut self, a: Var, f: impl Fn(f64) -> (f64, f64)) -> Var {
        let (value, slope) = f(self.value(a));
        self.node(value, &[(a, slope)])
    }

    pub(crate) fn silu(&mut self, a: Var) -> Var {
        self.map(a, |x| {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        })
    }

    /// `1 / a`.
    pub(crate) fn inverse(&mut self, a: Var) -> Var {
        self.map(a, |x| (1.0 / x, -1.0 / (x * x)))
    }

    /// Derivatives of `of` with respect to every number before it.
    pub(crate) fn gradient(&self, of: Var) -> Vec<f64> {
        let mut gradient = vec![0.0; of as usize + 1];
        gradient[of as usize] = 1.0;
        for index in (0..=of as usize).rev() {
            let own = gradient[index];
            if own == 0.0 {
                continue;
            }
            let start = if index == 0 { (0, 0) } else { self.ends[index - 1] };
            let end = self.ends[index];
            for &(a, b) in &self.products[start.0..end.0] {
                gradient[a as usize] += own * self.value(b);
                gradient[b as usize] += own * self.value(a);
            }
            for &(a, slope) in &self.slopes[start.1..end.1] {
                gradient[a as usize] += own * slope;
            }
        }
        gradient
    }
}
