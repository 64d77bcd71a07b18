//! RoBERTa (Liu et al., 2019): BERT whose positions are counted from the padding token's number on.

use super::config::Fields;
use super::table::Table;
use super::{Definition, Error, Kind, Position, Transformer, bert};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "roberta",
    architectures: &["RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"],
    gguf: "bert",
    kind: Kind::Encoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table { bases: &["", "roberta."], ..bert::TABLE };

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = bert::encoder(fields)?;
    // The rows up to the padding token's number are never looked up for text.
    let offset = fields.whole_or("pad_token_id", 1)? + 1;
    if offset >= t.max_positions {
        let expected = format!("a row number of the {} positions", t.max_positions);
        return Err(fields.unsupported("pad_token_id", expected, (offset - 1).to_string()));
    }
    Ok(Transformer { position: Position::Learned { offset }, max_positions: t.max_positions - offset, ..t })
}
