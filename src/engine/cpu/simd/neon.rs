//! NEON.

use std::arch::aarch64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub struct Neon;

/// # Safety
/// NEON is there, and the kernel's fields keep their promises.
#[target_feature(enable = "neon")]
pub unsafe fn neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the feature is enabled for this function.
    unsafe { kernel.run::<Neon>() }
}

/// Each method is one or a few intrinsics; their safety is the trait's.
macro_rules! methods {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $type),*) -> $result {
            // SAFETY: the instruction set is there and pointers are valid, as the trait requires.
            unsafe { $body }
        }
    )*};
}

/// # Safety
/// As [`neon`].
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn neon_outlined<K: Kernel<Output = ()>>(kernel: K) {
    // SAFETY: the feature is enabled for this function.
    unsafe { kernel.run::<Neon>() }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const ROWS: usize = 12;
    type V = float32x4_t;

    #[inline(always)]
    unsafe fn outlined<K: Kernel<Output = ()>>(kernel: K) {
        // SAFETY: promised by the caller.
        unsafe { neon_outlined(kernel) }
    }

    methods! {
        splat(value: f32) -> float32x4_t = vdupq_n_f32(value);
        load(from: *const f32) -> float32x4_t = vld1q_f32(from);
        store(to: *mut f32, value: float32x4_t) -> () = vst1q_f32(to, value);
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
        sub(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32(a, b);
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
        mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
        max(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmaxq_f32(a, b);
        min(a: float32x4_t, b: float32x4_t) -> float32x4_t = vminq_f32(a, b);
        reciprocal(a: float32x4_t) -> float32x4_t = vdivq_f32(vdupq_n_f32(1.0), a);
        round(a: float32x4_t) -> float32x4_t = vrndnq_f32(a);
        scale_by_power_of_two(a: float32x4_t, n: float32x4_t) -> float32x4_t = {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)))
        };
        sum(a: float32x4_t) -> f32 = vaddvq_f32(a);
    }
}
