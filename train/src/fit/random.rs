//! Random numbers that are the same on every machine.

/// A splitmix64 stream (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Stream number `stream` of those that belong to `seed`.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut start = Self(seed);
        let start = start.next().wrapping_add(stream.wrapping_mul(0xD1B5_4A32_D192_ED03));
        Self(Self(start).next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..limit`, to within 2^-32.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normal with mean 0 and standard deviation 1.
    ///
    /// It is computed in f64 and rounded, which hides how platforms differ in the last bit of a logarithm or cosine.
    pub(crate) fn normal(&mut self) -> f32 {
        // In (0, 1], so that its logarithm is finite.
        let mut uniform = || ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        (radius * angle.cos()) as f32
    }

    /// Brings `items` into an order of which all are equally likely.
    pub(crate) fn shuffle(&mut self, items: &mut [u32]) {
        self.shuffle_front(items, items.len());
    }

    /// Brings `count` of `items`, chosen at random, to the front.
    pub(crate) fn shuffle_front(&mut self, items: &mut [u32], count: usize) {
        for start in 0..count.min(items.len()) {
            let rest = (items.len() - start) as u32;
            items.swap(start, start + self.below(rest) as usize);
        }
    }
}
