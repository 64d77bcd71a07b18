//! Finds a model's family from its config.

use serde_json::Value;

use super::config::{Fate, Fields, MOST_MATRICES};
use super::table::{Expected, Table};
use super::{Architecture, Error, Position, Transformer};
use super::{bert, distilbert, gemma3, gpt2, llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe, roberta};

/// What a model is for, which decides how its outputs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Predicts the next token.
    Decoder,
    /// Embeds a text.
    Encoder,
    /// A chain of linear layers.
    Chain,
}

/// A family: one small file.
#[derive(Debug)]
pub struct Definition {
    /// The canonical `model_type`.
    pub name: &'static str,
    /// Names in `architectures`, for configs without `model_type`.
    pub architectures: &'static [&'static str],
    /// llama.cpp's name of the architecture.
    pub gguf: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// Its tensors.
    pub table: &'static Table,
    /// Reads its config.
    pub read: fn(&mut Fields<'_>) -> Result<Transformer, Error>,
}

/// All families of transformers.
pub const FAMILIES: &[&Definition] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &phi3::FAMILY,
    &gemma3::FAMILY,
    &gpt2::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
    &distilbert::FAMILY,
];

/// A model's family, with the model's own dimensions.
#[derive(Debug, Clone)]
pub struct Family {
    /// Its name: `model_type`, or `linear-chain`.
    pub name: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// What to compute.
    pub architecture: Architecture,
    /// The name of llama.cpp's architecture, if it has one.
    pub gguf: Option<&'static str>,
    /// What became of the config's fields.
    pub config: Fate,
    pub(super) tensors: Vec<Expected>,
    pub(super) table: Option<&'static Table>,
}

impl Family {
    /// The tensors that a model of the family has, layer by layer. A file may hold more.
    pub fn tensors(&self) -> &[Expected] {
        &self.tensors
    }

    /// Whether a tensor of this name is known to be without effect, such as a buffer that old files hold.
    pub fn ignores(&self, tensor: &str) -> bool {
        self.table.is_some_and(|table| table.ignores(tensor))
    }
}

/// The family of a model with this `config.json`.
///
/// # Errors
/// [`Error::Family`] if it is none of the supported ones; others if the config is incomplete, or asks for something that
/// is not supported.
pub fn find(config: &Value) -> Result<Family, Error> {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let classes = config.get("architectures").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let classes: Vec<&str> = classes.iter().filter_map(Value::as_str).collect();
    let is_it = |family: &&&Definition| match model_type {
        Some(name) => family.name == name,
        None => classes.iter().any(|class| family.architectures.contains(class)),
    };
    let Some(definition) = FAMILIES.iter().find(is_it) else {
        return Err(Error::Family {
            found: model_type.or(classes.first().copied()).unwrap_or("(none named)").into(),
            supported: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
        });
    };
    let mut fields = Fields::new(config, definition.name)?;
    let transformer = (definition.read)(&mut fields)?;
    validate(&transformer, &fields)?;
    Ok(Family {
        name: definition.name,
        kind: definition.kind,
        gguf: Some(definition.gguf),
        config: fields.fate(),
        tensors: definition.table.expand(&transformer),
        table: Some(definition.table),
        architecture: Architecture::Transformer(Box::new(transformer)),
    })
}

/// What the runtime takes for granted.
fn validate(t: &Transformer, fields: &Fields<'_>) -> Result<(), Error> {
    let wrong = |field: &str, expected: String, found: usize| Error::Invalid {
        field: field.into(),
        expected: format!("{expected} in a {} model", fields.family()),
        found: found.to_string(),
    };
    if !t.heads.is_multiple_of(t.kv_heads) {
        return Err(wrong("num_key_value_heads", format!("a divisor of {} heads", t.heads), t.kv_heads));
    }
    if t.head_dim == 0 {
        return Err(wrong("num_attention_heads", format!("at most hidden_size ({})", t.hidden), t.heads));
    }
    let matrices = t.layers.saturating_mul(t.experts.map_or(1, |experts| experts.count));
    if matrices > MOST_MATRICES {
        return Err(wrong("num_hidden_layers", format!("at most {MOST_MATRICES} layers and experts"), matrices));
    }
    if let Some(experts) = t.experts
        && experts.per_token > experts.count
    {
        return Err(wrong("num_experts_per_tok", format!("at most {} experts", experts.count), experts.per_token));
    }
    if let Position::Rope(ropes) = &t.position
        && let Some(rope) = ropes.iter().find(|rope| !rope.dims.is_multiple_of(2) || rope.dims > t.head_dim)
    {
        return Err(wrong("head_dim", "an even number of dimensions to rotate".into(), rope.dims));
    }
    Ok(())
}
