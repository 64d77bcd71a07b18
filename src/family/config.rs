//! Reads `config.json` field by field and accounts for each: honoured, known to be without effect on inference, or unknown.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Activation, Error, Rope, RopeScaling};

/// Larger numbers are no dimensions; the bound keeps products of three of them within 64 bits.
const LARGEST: u64 = 1 << 20;

/// Vocabularies may be larger than other dimensions, but not by much.
const LARGEST_VOCAB: u64 = 1 << 24;

/// More layers, or experts in all layers together, than any model has.
pub(super) const MOST_MATRICES: usize = 1 << 15;

/// Fields of any family that training, sampling or other tools read, but no forward pass.
const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "architectures",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "min_length",
    "model_type",
    "num_beams",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
];

/// Fields that other rooms honour: how weights are stored.
const ELSEWHERE: &[&str] = &["quantization_config", "compression_config", "sparsity_config"];

/// What became of each field of a config, by name, nested fields with the path to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fate {
    /// Fields that decide what is computed, and do.
    pub honoured: Vec<String>,
    /// Fields that no forward pass depends on.
    pub without_effect: Vec<String>,
    /// Fields that this version does not know; worth a line in a report.
    pub unknown: Vec<String>,
}

/// A config being read. Absent and `null` are the same.
#[derive(Debug)]
pub struct Fields<'a> {
    family: &'static str,
    path: String,
    map: &'a Map<String, Value>,
    /// The object that this one is in.
    outer: Option<&'a Map<String, Value>>,
    honoured: BTreeSet<String>,
    without_effect: BTreeSet<String>,
    nested: Fate,
}

impl<'a> Fields<'a> {
    /// Begins to read `config`, which is an object.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not.
    pub fn new(config: &'a Value, family: &'static str) -> Result<Self, Error> {
        Self::at(config, family, String::new())
    }

    fn at(value: &'a Value, family: &'static str, path: String) -> Result<Self, Error> {
        let map = value.as_object().ok_or_else(|| Error::Invalid {
            field: if path.is_empty() { "(the whole)".into() } else { path.clone() },
            expected: "an object".into(),
            found: brief(value),
        })?;
        let (honoured, without_effect) = Default::default();
        Ok(Self { family, path, map, outer: None, honoured, without_effect, nested: Fate::default() })
    }

    /// The family that is read, for messages.
    pub fn family(&self) -> &'static str {
        self.family
    }

    fn full(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    fn get(&mut self, name: &str) -> Option<&'a Value> {
        if self.map.contains_key(name) {
            self.honoured.insert(name.into());
        }
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn invalid(&self, name: &str, expected: impl Into<String>, found: &Value) -> Error {
        Error::Invalid { field: self.full(name), expected: expected.into(), found: brief(found) }
    }

    /// An error that says that a field's value is not supported.
    pub fn unsupported(&self, name: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Unsupported { field: self.full(name), expected: expected.into(), found: found.into() }
    }

    /// A positive number of things, if the field is there.
    pub fn maybe_count(&mut self, name: &str) -> Result<Option<usize>, Error> {
        let most = match name {
            "vocab_size" => LARGEST_VOCAB,
            "num_hidden_layers" | "n_layer" | "n_layers" => MOST_MATRICES as u64,
            _ => LARGEST,
        };
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.invalid(name, format!("a whole number from 1 to {most}"), value)),
        }
    }

    /// A positive number of things.
    pub fn count(&mut self, name: &str) -> Result<usize, Error> {
        let missing = Error::Missing { field: self.full(name), family: self.family };
        self.maybe_count(name)?.ok_or(missing)
    }

    /// A positive number of things, or the family's default.
    pub fn count_or(&mut self, name: &str, default: usize) -> Result<usize, Error> {
        Ok(self.maybe_count(name)?.unwrap_or(default))
    }

    /// A positive number of things, `None` if the field is null, or the family's default if it is not there.
    pub fn count_or_null(&mut self, name: &str, default: usize) -> Result<Option<usize>, Error> {
        if self.map.contains_key(name) { self.maybe_count(name) } else { Ok(Some(default)) }
    }

    /// A whole number, zero among them, or the family's default.
    pub fn whole_or(&mut self, name: &str, default: usize) -> Result<usize, Error> {
        let Some(value) = self.get(name) else { return Ok(default) };
        match value.as_u64() {
            Some(n) if n <= LARGEST => Ok(n as usize),
            _ => Err(self.invalid(name, format!("a whole number up to {LARGEST}"), value)),
        }
    }

    /// A finite number, if the field is there.
    pub fn maybe_number(&mut self, name: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if (x as f32).is_finite() => Ok(Some(x)),
            _ => Err(self.invalid(name, "a finite number", value)),
        }
    }

    /// A number above zero, or the family's default.
    pub fn positive_or(&mut self, name: &str, default: f64) -> Result<f32, Error> {
        match self.maybe_number(name)? {
            None => Ok(default as f32),
            Some(x) if x as f32 > 0.0 => Ok(x as f32),
            Some(x) => Err(self.invalid(name, "a number above 0", &Value::from(x))),
        }
    }

    /// A number above zero.
    pub fn positive(&mut self, name: &str) -> Result<f32, Error> {
        if self.maybe_number(name)?.is_none() {
            return Err(Error::Missing { field: self.full(name), family: self.family });
        }
        self.positive_or(name, 1.0)
    }

    /// A flag, if the field is there.
    pub fn maybe_flag(&mut self, name: &str) -> Result<Option<bool>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.invalid(name, "true or false", value)),
        }
    }

    /// A flag, or the family's default.
    pub fn flag_or(&mut self, name: &str, default: bool) -> Result<bool, Error> {
        Ok(self.maybe_flag(name)?.unwrap_or(default))
    }

    /// A text, if the field is there.
    pub fn maybe_text(&mut self, name: &str) -> Result<Option<&'a str>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.invalid(name, "a text", value)),
        }
    }

    /// An array, if the field is there.
    pub fn maybe_array(&mut self, name: &str) -> Result<Option<&'a [Value]>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(value) => Err(self.invalid(name, "an array", value)),
        }
    }

    /// An activation function, or the family's default.
    pub fn activation_or(&mut self, name: &str, default: Activation) -> Result<Activation, Error> {
        match self.maybe_text(name)? {
            None => Ok(default),
            Some(text) => Activation::from_name(text).ok_or_else(|| {
                self.unsupported(name, "relu, gelu, gelu_new, gelu_pytorch_tanh, silu, tanh, sigmoid, identity", text)
            }),
        }
    }

    /// A field that may be absent, but if it is there, must have this value.
    pub fn only(&mut self, name: &str, value: impl Into<Value>) -> Result<(), Error> {
        let value = value.into();
        match self.get(name) {
            Some(found) if *found != value => Err(self.unsupported(name, brief(&value), brief(found))),
            _ => Ok(()),
        }
    }

    /// A field that must be absent or null.
    pub fn absent(&mut self, name: &str) -> Result<(), Error> {
        match self.get(name) {
            Some(found) => Err(self.unsupported(name, "null", brief(found))),
            None => Ok(()),
        }
    }

    /// Fields of the family that no forward pass depends on.
    pub fn without_effect(&mut self, names: &[&str]) {
        self.without_effect.extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// A nested object, to be given back to [`Fields::close`].
    pub fn object(&mut self, name: &str) -> Result<Option<Fields<'a>>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        Ok(Some(Self { outer: Some(self.map), ..Self::at(value, self.family, self.full(name))? }))
    }

    /// Takes account of a nested object's fields.
    pub fn close(&mut self, nested: Fields<'a>) {
        let fate = nested.fate();
        self.nested.honoured.extend(fate.honoured);
        self.nested.without_effect.extend(fate.without_effect);
        self.nested.unknown.extend(fate.unknown);
    }

    /// The rotary embedding of heads of `head_dim`, in the spelling of transformers 5 (`rope_parameters`) or in the older one
    /// (`rope_theta`, `rope_scaling`).
    pub fn rope(&mut self, head_dim: usize, theta: f64) -> Result<Rope, Error> {
        let theta = self.positive_or("rope_theta", theta)?;
        let fraction = self.maybe_number("partial_rotary_factor")?;
        let mut rope = Rope { theta, dims: self.rotating(fraction, head_dim, head_dim)?, scaling: RopeScaling::None };
        for name in ["rope_parameters", "rope_scaling"] {
            if let Some(mut nested) = self.object(name)? {
                rope = nested.rope_here(head_dim, rope)?;
                self.close(nested);
            }
        }
        Ok(rope)
    }

    /// A rotary embedding described by this object itself; what it does not say is as in `base`.
    pub fn rope_here(&mut self, head_dim: usize, base: Rope) -> Result<Rope, Error> {
        let kind = self.maybe_text("rope_type")?.or(self.maybe_text("type")?).unwrap_or("default");
        let theta = self.positive_or("rope_theta", f64::from(base.theta))?;
        let fraction = self.maybe_number("partial_rotary_factor")?;
        let dims = self.rotating(fraction, head_dim, base.dims)?;
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.positive("factor")? },
            "llama3" => {
                let (low, high) = (self.positive("low_freq_factor")?, self.positive("high_freq_factor")?);
                if low >= high {
                    return Err(self.invalid(
                        "low_freq_factor",
                        format!("less than high_freq_factor ({high})"),
                        &low.into(),
                    ));
                }
                RopeScaling::Llama3 {
                    factor: self.positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: self.positive("original_max_position_embeddings")?,
                }
            }
            "longrope" | "su" => self.longrope(dims)?,
            other => return Err(self.unsupported("rope_type", "default, linear, llama3, longrope", other)),
        };
        Ok(Rope { theta, dims, scaling })
    }

    /// LongRoPE's factors. Where they are the same for short and for long texts and what is rotated keeps its scale, they say a
    /// factor for each wavelength in this dialect.
    fn longrope(&mut self, dims: usize) -> Result<RopeScaling, Error> {
        let (short, long) = (self.factors("short_factor", dims)?, self.factors("long_factor", dims)?);
        let stated = self.maybe_number("attention_factor")?;
        if short == long && stated == Some(1.0) {
            return Ok(RopeScaling::Each(short));
        }
        let outer = |name: &str| self.outer?.get(name)?.as_u64().filter(|n| (1..=LARGEST).contains(n));
        let outside = outer("original_max_position_embeddings");
        let longest = outer("max_position_embeddings");
        let original = self.maybe_count("original_max_position_embeddings")?;
        let Some(original) = original.or(outside.map(|n| n as usize)) else {
            return Err(Error::Missing { field: self.full("original_max_position_embeddings"), family: self.family });
        };
        let stretch = match longest {
            Some(longest) => longest as f64 / original as f64,
            None => self.positive_or("factor", 1.0)?.into(),
        };
        let derived = if stretch > 1.0 { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
        let attention_factor = stated.unwrap_or(derived) as f32;
        if !(attention_factor.is_finite() && attention_factor > 0.0) {
            return Err(self.invalid("attention_factor", "a number above 0", &attention_factor.into()));
        }
        Ok(RopeScaling::Long { short, long, original_context: original, attention_factor })
    }

    /// A factor for each pair of dimensions that rotates.
    fn factors(&mut self, name: &str, dims: usize) -> Result<Arc<[f32]>, Error> {
        let found = self.maybe_array(name)?.unwrap_or_default();
        let number = |value: &Value| Some(value.as_f64()? as f32).filter(|x| x.is_finite() && *x > 0.0);
        let factors: Option<Vec<f32>> = found.iter().map(number).collect();
        match factors {
            Some(factors) if factors.len() == dims / 2 => Ok(factors.into()),
            _ => Err(self.invalid(name, format!("{} numbers above 0", dims / 2), &found.into())),
        }
    }

    /// The dimensions of a head that rotate: this fraction of them, or `default`.
    fn rotating(&self, fraction: Option<f64>, head_dim: usize, default: usize) -> Result<usize, Error> {
        let dims = fraction.map_or(default, |fraction| (head_dim as f64 * fraction) as usize);
        if let Some(fraction) = fraction.filter(|fraction| !(*fraction > 0.0 && *fraction <= 1.0) || dims == 0) {
            return Err(self.invalid("partial_rotary_factor", "a number above 0, at most 1", &fraction.into()));
        }
        if !dims.is_multiple_of(2) {
            return Err(self.invalid("head_dim", "an even number of dimensions to rotate", &dims.into()));
        }
        Ok(dims)
    }

    /// What became of every field.
    pub fn fate(self) -> Fate {
        let mut fate = self.nested;
        let full = |name: &str| if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) };
        for name in self.map.keys() {
            let list = if self.honoured.contains(name) || ELSEWHERE.contains(&name.as_str()) {
                &mut fate.honoured
            } else if self.without_effect.contains(name) || WITHOUT_EFFECT.contains(&name.as_str()) {
                &mut fate.without_effect
            } else {
                &mut fate.unknown
            };
            list.push(full(name));
        }
        fate
    }
}

/// A value in a message: short, whatever the file holds.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_is_accounted_for() {
        let config = json!({"hidden_size": 8, "use_cache": true, "novelty": 1, "gone": null,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0, "odd": 0}});
        let mut fields = Fields::new(&config, "llama").unwrap();
        assert_eq!(fields.count("hidden_size"), Ok(8));
        let rope = fields.rope(8, 10000.0).unwrap();
        assert_eq!(rope, Rope { theta: 5.0, dims: 8, scaling: RopeScaling::Linear { factor: 2.0 } });
        let fate = fields.fate();
        assert_eq!(fate.unknown, ["rope_parameters.odd", "novelty", "gone"]);
        assert_eq!(fate.without_effect, ["use_cache"]);
        assert!(fate.honoured.contains(&"rope_parameters.factor".to_owned()));
    }

    #[test]
    fn both_spellings_of_rope_agree() {
        let new = json!({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let read = |config: &Value| Fields::new(config, "llama").unwrap().rope(64, 10000.0).unwrap();
        assert_eq!(read(&new), read(&old));
        assert_eq!(read(&new).theta, 5e5);
    }

    /// As Phi-4-mini has it: a part of each head rotates, and each pair of that part has its factors.
    #[test]
    fn factors_are_those_of_the_dimensions_that_rotate() {
        let factors = |x: f64| vec![x; 6];
        let config = json!({"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_theta": 1e4,
            "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", "short_factor": factors(1.0), "long_factor": factors(2.0)}});
        let rope = Fields::new(&config, "phi3").unwrap().rope(16, 10000.0).unwrap();
        let RopeScaling::Long { short, long, .. } = rope.scaling else { panic!("{rope:?}") };
        assert_eq!((rope.dims, &short[..], &long[..]), (12, &[1.0; 6][..], &[2.0; 6][..]));
        let message = Fields::new(&config, "phi3").unwrap().rope(24, 10000.0).unwrap_err().to_string();
        assert!(message.contains("rope_scaling.short_factor") && message.contains("9 numbers"), "{message}");
    }

    #[test]
    fn values_that_matter_and_are_not_supported_name_their_field() {
        let config = json!({"rope_scaling": {"rope_type": "yarn"}, "hidden_act": "mish", "hidden_size": -1});
        let mut fields = Fields::new(&config, "llama").unwrap();
        let message = fields.rope(64, 10000.0).unwrap_err().to_string();
        assert!(message.contains("rope_scaling.rope_type") && message.contains("yarn"), "{message}");
        let message = fields.activation_or("hidden_act", Activation::Silu).unwrap_err().to_string();
        assert!(message.contains("hidden_act") && message.contains("mish"), "{message}");
        let message = fields.count("hidden_size").unwrap_err().to_string();
        assert!(message.contains("hidden_size") && message.contains("-1"), "{message}");
    }
}
