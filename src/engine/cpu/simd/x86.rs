//! AVX2 with FMA, and AVX-512.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub struct Avx2;

#[derive(Clone, Copy)]
pub struct Avx512;

/// AVX-512 with BF16.
#[derive(Clone, Copy)]
pub struct Avx512Bf16;

/// # Safety
/// AVX2 and FMA are there, and the kernel's fields keep their promises.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx2>() }
}

/// # Safety
/// As [`avx2`].
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_outlined<K: Kernel<Output = ()>>(kernel: K) {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx2>() }
}

/// # Safety
/// AVX-512 F and DQ are there, and the kernel's fields keep their promises.
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
pub unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx512>() }
}

/// # Safety
/// As [`avx512`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
unsafe fn avx512_outlined<K: Kernel<Output = ()>>(kernel: K) {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx512>() }
}

/// # Safety
/// AVX-512 F, DQ, BW, VL and BF16 are there, and the kernel's fields keep their promises.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")]
pub unsafe fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx512Bf16>() }
}

/// # Safety
/// As [`avx512_bf16`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")]
unsafe fn avx512_bf16_outlined<K: Kernel<Output = ()>>(kernel: K) {
    // SAFETY: the features are enabled for this function.
    unsafe { kernel.run::<Avx512Bf16>() }
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

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    type V = __m256;

    #[inline(always)]
    unsafe fn outlined<K: Kernel<Output = ()>>(kernel: K) {
        // SAFETY: promised by the caller.
        unsafe { avx2_outlined(kernel) }
    }

    methods! {
        splat(value: f32) -> __m256 = _mm256_set1_ps(value);
        load(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
        store(to: *mut f32, value: __m256) -> () = _mm256_storeu_ps(to, value);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        reciprocal(a: __m256) -> __m256 = _mm256_div_ps(_mm256_set1_ps(1.0), a);
        round(a: __m256) -> __m256 = _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        scale_by_power_of_two(a: __m256, n: __m256) -> __m256 = {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))
        };
        prefetch(at: *const f32) -> () = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        sum(a: __m256) -> f32 = {
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)))
        };
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 14;
    type V = __m512;

    #[inline(always)]
    unsafe fn outlined<K: Kernel<Output = ()>>(kernel: K) {
        // SAFETY: promised by the caller.
        unsafe { avx512_outlined(kernel) }
    }

    methods! {
        splat(value: f32) -> __m512 = _mm512_set1_ps(value);
        load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        store(to: *mut f32, value: __m512) -> () = _mm512_storeu_ps(to, value);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        // A Newton step on the 14-bit estimate leaves an error below that of a rounding or two, at several times the speed of a
        // division.
        reciprocal(a: __m512) -> __m512 = {
            let two = _mm512_set1_ps(2.0);
            let x = _mm512_rcp14_ps(a);
            _mm512_mul_ps(x, _mm512_fnmadd_ps(a, x, two))
        };
        round(a: __m512) -> __m512 = _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        scale_by_power_of_two(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        prefetch(at: *const f32) -> () = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        sum(a: __m512) -> f32 = {
            let half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
            Avx2::sum(half)
        };
    }
}

impl Simd for Avx512Bf16 {
    const LANES: usize = Avx512::LANES;
    const ROWS: usize = Avx512::ROWS;
    const BF16: bool = true;
    type V = __m512;

    #[inline(always)]
    unsafe fn outlined<K: Kernel<Output = ()>>(kernel: K) {
        // SAFETY: promised by the caller.
        unsafe { avx512_bf16_outlined(kernel) }
    }

    methods! {
        splat(value: f32) -> __m512 = Avx512::splat(value);
        load(from: *const f32) -> __m512 = Avx512::load(from);
        store(to: *mut f32, value: __m512) -> () = Avx512::store(to, value);
        add(a: __m512, b: __m512) -> __m512 = Avx512::add(a, b);
        sub(a: __m512, b: __m512) -> __m512 = Avx512::sub(a, b);
        mul(a: __m512, b: __m512) -> __m512 = Avx512::mul(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = Avx512::mul_add(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = Avx512::max(a, b);
        min(a: __m512, b: __m512) -> __m512 = Avx512::min(a, b);
        reciprocal(a: __m512) -> __m512 = Avx512::reciprocal(a);
        round(a: __m512) -> __m512 = Avx512::round(a);
        scale_by_power_of_two(a: __m512, n: __m512) -> __m512 = Avx512::scale_by_power_of_two(a, n);
        prefetch(at: *const f32) -> () = Avx512::prefetch(at);
        store_bf16(to: *mut u16, value: __m512) -> () = {
            _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value)));
        };
        dot_bf16(a: __m512, b: __m512, sum: __m512) -> __m512 = {
            let pairs = |v| std::mem::transmute::<__m512, __m512bh>(v);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        };
        sum(a: __m512) -> f32 = Avx512::sum(a);
    }
}
