//! modelpress: compress model weights, prove the written file against the original, export it to the format that a server
//! loads.

#![deny(unsafe_code)]

pub mod encoding;
pub mod family;
pub mod job;
pub mod quantizer;
pub mod threads;
