//! The levels that codes stand for, for loops that are compiled for each kind of them.

use crate::encoding::fp8;
use crate::quantizer::ggml::nonlinear as table;
use crate::simd::lanes::W;
use crate::simd::{Lanes, Simd};

/// Finds the level nearest to a number; the first or the last of them for NaN.
pub trait Nearest: Copy + Send + Sync {
    /// Of one number.
    fn one(self, x: f32) -> f32;

    /// Of sixteen.
    fn lanes<S: Simd>(self, simd: S, x: S::Lanes) -> S::Lanes;
}

/// 1.5 · 2²³: added to a number of less than 2²² and subtracted, it leaves the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;

/// The integers from the first to the last.
#[derive(Debug, Clone, Copy)]
pub struct Integers(pub f32, pub f32);

impl Nearest for Integers {
    #[inline(always)]
    fn one(self, x: f32) -> f32 {
        (x.max(self.0).min(self.1) + MAGIC) - MAGIC
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::Lanes) -> S::Lanes {
        let magic = simd.splat(MAGIC);
        (x.clamp(simd.splat(self.0), simd.splat(self.1)) + magic) - magic
    }
}

/// The levels of IQ4_NL.
#[derive(Debug, Clone, Copy)]
pub struct Table;

impl Nearest for Table {
    #[inline(always)]
    fn one(self, x: f32) -> f32 {
        table::level(x)
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::Lanes) -> S::Lanes {
        table::levels(simd, x)
    }
}

/// The numbers of FP8 E4M3.
#[derive(Debug, Clone, Copy)]
pub struct Fp8;

impl Nearest for Fp8 {
    #[inline(always)]
    fn one(self, x: f32) -> f32 {
        if x.is_nan() { 0.0 } else { fp8::decode(fp8::encode(x)) }
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::Lanes) -> S::Lanes {
        let mut nearest = [0.0; W];
        nearest.iter_mut().zip(x.store()).for_each(|(nearest, x)| *nearest = self.one(x));
        simd.load(&nearest)
    }
}
