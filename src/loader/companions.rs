//! The files beside the weights: config, tokenizer, pooling.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Result};

/// JSON files of a model are at most this large; a tokenizer of 250,000 tokens takes some 30 MB.
const MOST_JSON: u64 = 256 << 20;

/// What lies beside the weights.
#[derive(Debug, Clone, Default)]
pub struct Companions {
    /// The model's configuration and where it was read.
    pub config: Option<(PathBuf, Value)>,
    /// The tokenizer's file.
    pub tokenizer: Option<PathBuf>,
    /// How a sentence encoder makes one vector of many.
    pub pooling: Option<Pooling>,
    /// The types of a sentence encoder's modules, from `modules.json`.
    pub modules: Option<Vec<String>>,
    /// `generation_config.json`.
    pub generation: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`.
    pub chat_template: Option<PathBuf>,
}

/// How a sentence encoder makes one vector of its positions' vectors (sentence-transformers' `1_Pooling/config.json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all positions; what is assumed where no file says otherwise.
    Mean,
    /// The first position.
    Cls,
    /// The largest of each feature.
    Max,
    /// The last position.
    LastToken,
}

impl Pooling {
    /// llama.cpp's numbers (`llama_pooling_type`).
    const LLAMA_CPP: [(Self, u32); 3] = [(Self::Mean, 1), (Self::Cls, 2), (Self::LastToken, 3)];

    /// llama.cpp's number, if it pools so.
    pub fn llama_cpp(self) -> Option<u32> {
        Self::LLAMA_CPP.iter().find(|(pooling, _)| *pooling == self).map(|(_, number)| *number)
    }

    /// The pooling of llama.cpp's number.
    pub fn from_llama_cpp(number: u64) -> Option<Self> {
        Self::LLAMA_CPP.iter().find(|(_, known)| u64::from(*known) == number).map(|(pooling, _)| *pooling)
    }
}

impl Companions {
    /// Reads what a folder has.
    ///
    /// # Errors
    /// A file that is there and does not parse.
    pub fn read(folder: &Path) -> Result<Self> {
        let present = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
        let config =
            present("config.json").map(|path| Ok::<_, Error>((path.clone(), read_json(&path)?))).transpose()?;
        let pooling = present("1_Pooling/config.json").map(|path| read_pooling(&path)).transpose()?;
        let modules = present("modules.json").map(|path| read_modules(&path)).transpose()?;
        Ok(Self {
            config,
            tokenizer: present("tokenizer.json"),
            pooling,
            modules,
            generation: present("generation_config.json"),
            tokenizer_config: present("tokenizer_config.json"),
            chat_template: present("chat_template.jinja"),
        })
    }

    /// These, and from `other` what these lack.
    pub fn or(self, other: &Companions) -> Self {
        Self {
            config: self.config.or_else(|| other.config.clone()),
            tokenizer: self.tokenizer.or_else(|| other.tokenizer.clone()),
            pooling: self.pooling.or(other.pooling),
            modules: self.modules.or_else(|| other.modules.clone()),
            generation: self.generation.or_else(|| other.generation.clone()),
            tokenizer_config: self.tokenizer_config.or_else(|| other.tokenizer_config.clone()),
            chat_template: self.chat_template.or_else(|| other.chat_template.clone()),
        }
    }

    /// The tokens that end a text: `eos_token_id` of the generation config and of the config.
    ///
    /// # Errors
    /// A generation config that does not parse.
    pub fn stop_tokens(&self) -> Result<Vec<u32>> {
        let generation: Option<Value> = self.generation.as_deref().map(read_json).transpose()?;
        let configs = generation.iter().chain(self.config.iter().map(|(_, config)| config));
        let ids = |value: &Value| match value {
            Value::Array(ids) => ids.clone(),
            id => vec![id.clone()],
        };
        let mut stop: Vec<u32> = configs
            .filter_map(|config| config.get("eos_token_id"))
            .flat_map(ids)
            .filter_map(|id| u32::try_from(id.as_u64()?).ok())
            .collect();
        stop.sort_unstable();
        stop.dedup();
        Ok(stop)
    }
}

/// The types of a sentence encoder's modules, such as `sentence_transformers.models.Pooling`.
fn read_modules(path: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Module {
        #[serde(rename = "type")]
        kind: String,
    }
    let modules: Vec<Module> = read_json(path)?;
    Ok(modules.into_iter().map(|module| module.kind).collect())
}

fn read_pooling(path: &Path) -> Result<Pooling> {
    let config: Value = read_json(path)?;
    let modes = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_lasttoken", Pooling::LastToken),
    ];
    let on: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    let known = |key: &&str| modes.iter().find(|(name, _)| name == key).map(|(_, mode)| *mode);
    match on.as_slice() {
        [] => Ok(Pooling::Mean),
        [one] if known(one).is_some() => Ok(known(one).unwrap_or(Pooling::Mean)),
        other => Err(Error::Companion {
            file: path.to_owned(),
            found: other.join(" and "),
            expected: "one of mean, cls, max and last token pooling".into(),
            next: "Other poolings are not supported yet; use --no-check to compress without comparing outputs".into(),
        }),
    }
}

/// Reads a JSON file of bounded size.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let len = std::fs::metadata(path).map_err(formats::Error::io(path, "open"))?.len();
    let wrong = |found: String| Error::Companion {
        file: path.to_owned(),
        found,
        expected: "a JSON file as transformers writes it".into(),
        next: "Download the file again".into(),
    };
    if len > MOST_JSON {
        return Err(wrong(format!("{len} bytes")));
    }
    let bytes = std::fs::read(path).map_err(formats::Error::io(path, "read"))?;
    serde_json::from_slice(&bytes).map_err(|e| wrong(format!("something that does not parse ({e})")))
}
