//! How an ecosystem spells a model: tensor names, row order, config, tokenizer. Hugging Face's dialect is the canonical one
//! inside; others are read into it and written from it.

pub mod huggingface;
pub mod llama_cpp;
pub mod onnx;
