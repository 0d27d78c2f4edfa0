//! One vector interface over the instruction sets, chosen at run time.
//!
//! Kernels are generic over [`Simd`] and run through [`InstructionSet::run`], which compiles them once for each
//! instruction set. Everything below a [`Kernel`] must be `#[inline(always)]` to be compiled for the right one.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod portable;
#[cfg(target_arch = "x86_64")]
pub mod x86;

/// Vectors of f32.
///
/// # Safety
/// All methods require the instruction set they are implemented for; pointers must be valid for [`LANES`](Self::LANES)
/// values, of any alignment.
#[allow(clippy::missing_safety_doc, reason = "stated for the trait")]
pub trait Simd: Copy + 'static {
    /// Values in a vector.
    const LANES: usize;
    /// Rows of a matrix product's register tile, which is [`PANEL_VECTORS`] vectors wide.
    const ROWS: usize;
    /// Whether there are products of bf16 values.
    const BF16: bool = false;
    type V: Copy;

    /// Runs `kernel` in a function of its own: inlined into a larger one, compilers run out of registers and keep sums in
    /// memory.
    unsafe fn outlined<K: Kernel<Output = ()>>(kernel: K);

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the hardware can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Accurate to the last bit or two.
    unsafe fn reciprocal(a: Self::V) -> Self::V;
    /// The nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for integral n in -126..=127.
    unsafe fn scale_by_power_of_two(a: Self::V, n: Self::V) -> Self::V;
    /// Brings the cache line at `at` nearer, which may be any address. Nothing where the instruction set has no such hint.
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        let _ = at;
    }
    /// Stores the values rounded to bf16. Only where [`BF16`](Self::BF16) says so.
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, value: Self::V) {
        let _ = (to, value);
    }
    /// `sum` with the products of both bf16 values that each lane of `a` and `b` holds. Only where [`BF16`](Self::BF16) says so.
    #[inline(always)]
    unsafe fn dot_bf16(a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        let _ = (a, b);
        sum
    }
    /// Sum of all values, in a fixed order.
    unsafe fn sum(a: Self::V) -> f32;

    /// `e^x` within 2 ulp for x in [-87, 88]; clamped outside.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // SAFETY: as the trait says.
        unsafe {
            // In this order, what is not a number stays that.
            let x = Self::min(Self::splat(88.0), Self::max(Self::splat(-87.0), x));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln 2 in two parts, so that the reduced argument keeps its bits.
            let r = Self::mul_add(n, Self::splat(-0.693_359_4), x);
            let r = Self::mul_add(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::mul_add(p, r, Self::splat(c));
            }
            let e = Self::add(Self::mul_add(p, Self::mul(r, r), r), Self::splat(1.0));
            Self::scale_by_power_of_two(e, n)
        }
    }

    /// `x / (1 + e^-x)`.
    #[inline(always)]
    unsafe fn silu(x: Self::V) -> Self::V {
        // SAFETY: as the trait says.
        unsafe {
            let e = Self::exp(Self::sub(Self::splat(0.0), x));
            Self::mul(x, Self::reciprocal(Self::add(e, Self::splat(1.0))))
        }
    }
}

/// Vectors in a row of a packed panel.
pub const PANEL_VECTORS: usize = 2;

/// Columns of a packed panel.
pub const fn panel<S: Simd>() -> usize {
    PANEL_VECTORS * S::LANES
}

/// A computation that is compiled for every instruction set.
pub trait Kernel {
    type Output;
    /// # Safety
    /// The instruction set of `S` is there, and whatever the kernel's own fields promise.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// The instruction sets this build knows for this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with products of bf16 values, which convolutions use.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl InstructionSet {
    /// All in f32 that this machine can run, best first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                sets.push(Self::Avx512);
            }
            if avx2 {
                sets.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Self::Neon);
        }
        sets.push(Self::Portable);
        sets
    }

    /// The one with products of bf16 values, if this machine can run it.
    pub fn with_bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::available().contains(&Self::Avx512)
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            return Some(Self::Avx512Bf16);
        }
        None
    }

    /// Whether it has products of bf16 values.
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2+fma",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512+bf16",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
        }
    }

    /// Columns of a packed panel.
    pub fn panel(self) -> usize {
        match self {
            Self::Portable => panel::<portable::Portable>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => panel::<x86::Avx2>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => panel::<x86::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => panel::<x86::Avx512Bf16>(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => panel::<neon::Neon>(),
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Safety
    /// `self` is one of [`available`](Self::available) or [`with_bf16`](Self::with_bf16), and the kernel's fields keep their promises.
    pub unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::Portable => kernel.run::<portable::Portable>(),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => x86::avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => x86::avx512_bf16(kernel),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => neon::neon(kernel),
            }
        }
    }
}
