//! Journeys as a user makes them, golden outputs of other people's programs, and every kind of bad input.

#![allow(missing_docs, clippy::unwrap_used)]

mod bad_input;
mod bench;
mod bits;
mod calibrated;
mod compress;
mod convert;
mod dtypes;
mod exchange;
mod export;
mod families;
mod fit;
mod fixtures;
mod floors;
mod gguf;
mod golden;
mod llama_cpp;
mod matrix;
mod memory;
mod minilm;
mod onnx;
mod others_graphs;
mod parts;
mod prune;
mod run;
mod seams;
mod session;
mod sparse;
mod support;
mod tokenizers;
