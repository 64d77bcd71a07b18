//! modelpress: compress model weights, prove the written file against the original, export it to the format that a server
//! loads.

#![deny(unsafe_code)]

pub mod bench;
pub mod calibration;
pub mod check;
pub mod cli;
pub mod dialect;
pub mod encoding;
pub mod family;
pub mod fit;
pub mod job;
pub mod linear_algebra;
pub mod loader;
pub mod pipeline;
pub mod pruner;
pub mod quantizer;
pub mod recipe;
pub mod report;
pub mod runtime;
#[allow(unsafe_code)]
pub mod simd;
#[allow(unsafe_code)]
pub mod threads;
