//! Qwen3 (Yang et al., 2025): llama with a normalisation of each query and key head.

use super::config::Fields;
use super::table::Table;
use super::{Definition, Error, Kind, Transformer, decoder, qwen2};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    gguf: "qwen3",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: decoder::BASES,
    sections: &[
        decoder::EMBEDDING,
        decoder::NORMS,
        decoder::ATTENTION,
        decoder::HEAD_NORMS,
        decoder::FEED_FORWARD,
        decoder::END,
    ],
    rope_pairs: false,
    ignored: decoder::IGNORED,
};

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::read(fields)?;
    let t = decoder::defaults(fields, t, 32_768, 1e-6)?;
    Ok(Transformer { qk_norm: true, windows: qwen2::windows(fields, t.layers)?, ..t })
}
