//! Long sums that lose few bits.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use super::simd::{PANEL_VECTORS, Simd};

/// Terms of a run. Rounding errors grow with the root of this and of the number of runs, not of all terms; each run costs
/// as much as two terms.
pub const TERMS: usize = 128;

/// The same where errors are multiplied later on.
pub const FEW_TERMS: usize = 32;

/// The sums of a register tile.
pub type Sums<S, const R: usize> = [[<S as Simd>::V; PANEL_VECTORS]; R];

/// Puts the sums of a register tile aside every so many terms, and begins anew.
pub struct Runs<S: Simd, const R: usize> {
    /// Those of earlier runs, if there are any.
    earlier: MaybeUninit<Sums<S, R>>,
    any: bool,
    /// Terms of a run.
    terms: usize,
    /// Terms that this run still takes.
    room: usize,
}

impl<S: Simd, const R: usize> Runs<S, R> {
    /// No terms yet, of runs of `terms`.
    #[inline(always)]
    pub fn new(terms: usize) -> Self {
        Self { earlier: MaybeUninit::uninit(), any: false, terms, room: terms }
    }

    /// How many of `count` terms are next.
    ///
    /// # Safety
    /// The instruction set is there.
    #[inline(always)]
    pub unsafe fn next(&mut self, count: usize, sums: &mut Sums<S, R>) -> usize {
        if self.room == 0 {
            // SAFETY: promised by the caller.
            unsafe {
                self.finish(sums);
                self.earlier.write(*sums);
                *sums = [[S::splat(0.0); PANEL_VECTORS]; R];
            }
            (self.any, self.room) = (true, self.terms);
        }
        let terms = if count < self.room { count } else { self.room };
        self.room -= terms;
        terms
    }

    /// Adds the earlier runs to the last one.
    ///
    /// # Safety
    /// The instruction set is there.
    #[inline(always)]
    pub unsafe fn finish(&self, sums: &mut Sums<S, R>) {
        if !self.any {
            return;
        }
        // SAFETY: promised by the caller; earlier runs were written before `any` was set.
        unsafe {
            let earlier = self.earlier.assume_init_ref();
            let mut r = 0;
            while r < R {
                sums[r] = [S::add(sums[r][0], earlier[r][0]), S::add(sums[r][1], earlier[r][1])];
                r += 1;
            }
        }
    }
}

/// A sum with what its roundings lost (Kahan 1965).
#[derive(Clone, Copy)]
pub struct Compensated<S: Simd> {
    /// The sum.
    pub value: S::V,
    lost: S::V,
}

impl<S: Simd> Compensated<S> {
    /// Nothing yet.
    ///
    /// # Safety
    /// The instruction set is there.
    #[inline(always)]
    pub unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        let zero = unsafe { S::splat(0.0) };
        Self { value: zero, lost: zero }
    }

    /// Adds `term`.
    ///
    /// # Safety
    /// As [`zero`](Self::zero).
    #[inline(always)]
    pub unsafe fn add(&mut self, term: S::V) {
        // SAFETY: promised by the caller.
        unsafe { self.settle(S::add(term, self.lost)) }
    }

    /// Adds `a * b`.
    ///
    /// # Safety
    /// As [`zero`](Self::zero).
    #[inline(always)]
    pub unsafe fn add_product(&mut self, a: S::V, b: S::V) {
        // SAFETY: promised by the caller.
        unsafe { self.settle(S::mul_add(a, b, self.lost)) }
    }

    /// # Safety
    /// As [`zero`](Self::zero).
    #[inline(always)]
    unsafe fn settle(&mut self, term: S::V) {
        // SAFETY: promised by the caller.
        unsafe {
            let value = S::add(self.value, term);
            self.lost = S::sub(term, S::sub(value, self.value));
            self.value = value;
        }
    }
}
