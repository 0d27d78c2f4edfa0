//! Random numbers as their papers describe them, once more and plainly.

use mdm::corruption::NoiseKey;

/// Philox 4x32-10 (Salmon et al. 2011): the 32 random bits number `index` of a window at a timestep.
fn bits(key: NoiseKey, timestep: u32, index: usize) -> u32 {
    let mut counter = [(index / 4) as u32, key.top as u32, key.left as u32, timestep];
    for round in 0..10u32 {
        let (low, high) = (key.seed as u32, (key.seed >> 32) as u32);
        let keys = [
            low.wrapping_add(round.wrapping_mul(0x9E37_79B9)),
            high.wrapping_add(round.wrapping_mul(0xBB67_AE85)),
        ];
        let products = [0xD251_1F53 * u64::from(counter[0]), 0xCD9E_8D57 * u64::from(counter[2])];
        counter = [
            (products[1] >> 32) as u32 ^ counter[1] ^ keys[0],
            products[1] as u32,
            (products[0] >> 32) as u32 ^ counter[3] ^ keys[1],
            products[0] as u32,
        ];
    }
    counter[index % 4]
}

/// The uniform number of one patch.
pub(crate) fn uniform(key: NoiseKey, timestep: u32, index: usize) -> f64 {
    f64::from(bits(key, timestep, index) >> 8) / f64::from(1 << 24)
}

/// The normal number of one value (Box and Muller 1958).
pub(crate) fn normal(key: NoiseKey, timestep: u32, index: usize) -> f64 {
    let unit = |index| (f64::from(bits(key, timestep, index)) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * f64::ln(unit(index / 2 * 2))).sqrt();
    let angle = std::f64::consts::TAU * unit(index / 2 * 2 + 1);
    radius * if index.is_multiple_of(2) { angle.cos() } else { angle.sin() }
}
