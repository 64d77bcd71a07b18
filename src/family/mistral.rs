//! Mistral (Jiang et al., 2023): llama with a sliding window.

use super::config::Fields;
use super::{Definition, Error, Kind, Transformer, decoder, llama};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "mistral",
    architectures: &["MistralForCausalLM", "MistralModel"],
    gguf: "llama",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: super::table::Table = llama::TABLE;

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::read(fields)?;
    let t = decoder::defaults(fields, t, 131_072, 1e-6)?;
    // The first release's configs leave the window out; later ones say null.
    let window = fields.count_or_null("sliding_window", 4096)?;
    Ok(Transformer { windows: vec![window; t.layers], ..t })
}
