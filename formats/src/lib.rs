//! Weight file containers: reading them memory-mapped, and writing them through a staged, sealed and published sink.
//!
//! A container is bytes and names. It knows no model and no meaning of a block's bytes: see the crate `modelpress`.

#![deny(unsafe_code)]

pub mod bitmask;
mod checksums;
mod dtype;
mod error;
mod gather;
pub mod gguf;
mod layout;
mod limits;
#[allow(unsafe_code)]
mod map;
pub mod npz;
pub mod onnx;
pub mod pytorch;
pub mod safetensors;
mod sink;
mod source;
mod tensor;
mod unpacked;
mod writeback;
mod zip;

use std::path::Path;
use std::sync::Arc;

pub use dtype::Dtype;
pub use error::{Error, Kind, Result};
pub use layout::{Checksum, Layout};
pub use limits::Limits;
pub use map::Floats;
pub use sink::{FilePlan, Shape, Sink};
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
    /// ONNX's graph.
    Onnx(onnx::Model),
}

/// Opens a weight file of any known format, recognised by its content; ONNX, which has no mark, also by its name.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if its content breaks its format's rules.
pub fn open(path: &Path, access: Access, limits: &Limits) -> Result<Arc<Source>> {
    let data = source::Data::open(path, access)?;
    let mut magic = [0u8; 16];
    let known = data.len().min(magic.len() as u64) as usize;
    data.read_at(0, &mut magic[..known]).map_err(Error::io(path, "read"))?;
    let (format, contents) = if magic.starts_with(b"GGUF") {
        (Format::Gguf, gguf::read(path, &data, limits)?)
    } else if magic.starts_with(npz::MAGIC) {
        (Format::Npz, npz::read_array(path, &data, limits)?)
    } else if zip::FIRST.iter().any(|first| magic.starts_with(first)) {
        let archive = zip::Archive::open(path, &data, limits)?;
        if pytorch::is_one(&archive) {
            (Format::Pytorch, pytorch::read(path, &data, &archive, limits)?)
        } else {
            (Format::Npz, npz::read_archive(path, &data, &archive, limits)?)
        }
    } else if magic[0] == 0x80 && magic[2..].starts_with(pytorch::MAGIC) {
        (Format::Pytorch, pytorch::read_legacy(path, &data, limits)?)
    } else if onnx::is_one(path, &magic) {
        (Format::Onnx, onnx::read(path, &data, limits)?)
    } else {
        let contents = safetensors::read(path, &data, limits)?;
        (Format::Safetensors, bitmask::unpack(path, &data, contents, limits)?)
    };
    Ok(Arc::new(Source::new(path, format, contents, data)))
}
