//! Weight file containers: reading them memory-mapped, and writing them through a staged, sealed and published sink.
//!
//! A container is bytes and names. It knows no model and no meaning of a block's bytes: see the crate `modelpress`.

#![deny(unsafe_code)]

mod dtype;
mod error;
pub mod gguf;
mod layout;
mod limits;
#[allow(unsafe_code)]
mod map;
mod source;
mod tensor;

pub use dtype::Dtype;
pub use error::{Error, Kind, Result};
pub use layout::{Checksum, Layout};
pub use limits::Limits;
pub use source::{Access, Format, Source, TensorBytes};
pub use tensor::TensorMeta;

/// What a container carries beside tensors and strings: opaque here, understood by a dialect.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    None,
    /// GGUF's typed key-value pairs.
    Gguf(gguf::Metadata),
}
