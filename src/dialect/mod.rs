//! How an ecosystem spells a model: tensor names, row order, config, tokenizer. Hugging Face's dialect is the canonical one
//! inside; others are read into it and written from it.

pub mod huggingface;
pub mod llama_cpp;
pub mod onnx;

/// What a dialect cannot say of a model, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsayable {
    /// What it is.
    pub problem: String,
    /// What to do about it.
    pub next: String,
}
