//! The files beside the weights: config, tokenizer, pooling.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Result};
use crate::dialect::huggingface::FILES;

/// JSON files of a model are at most this large; a tokenizer of 250,000 tokens takes some 30 MB.
const MOST_JSON: u64 = 256 << 20;

/// What lies beside the weights, or is carried by a GGUF file in its place.
#[derive(Debug, Clone, Default)]
pub struct Companions {
    /// The model's configuration and where it was read.
    pub config: Option<(PathBuf, Value)>,
    /// How a sentence encoder makes one vector of many.
    pub pooling: Option<Pooling>,
    /// The types of a sentence encoder's modules, from `modules.json`.
    pub modules: Option<Vec<String>>,
    /// `quantize_config.json`, in which GPTQ's and AWQ's own tools describe what they did.
    pub quantization: Option<Value>,
    files: BTreeMap<&'static str, Companion>,
}

/// One file beside the weights, or its text within a GGUF file.
#[derive(Debug, Clone)]
pub struct Companion {
    path: PathBuf,
    text: Option<Arc<str>>,
}

impl Companion {
    /// The file of a path.
    pub fn file(path: &Path) -> Self {
        Self { path: path.to_owned(), text: None }
    }

    /// A text within a file.
    pub fn within(path: &Path, text: impl Into<Arc<str>>) -> Self {
        Self { path: path.to_owned(), text: Some(text.into()) }
    }

    /// The file itself, or the GGUF file that carries its text.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    ///
    /// # Errors
    /// A file that cannot be read, or is too large to be what its name says.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        match &self.text {
            Some(text) => Ok(Cow::Borrowed(text.as_bytes())),
            None => read_bounded(&self.path).map(Cow::Owned),
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// As [`Companion::bytes`], or what is no text.
    pub fn text(&self) -> Result<String> {
        String::from_utf8(self.bytes()?.into_owned())
            .map_err(|e| wrong(&self.path, format!("bytes that are no text ({e})")))
    }

    /// What its JSON says.
    ///
    /// # Errors
    /// As [`Companion::bytes`], or JSON that does not parse.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        parse(&self.path, &self.bytes()?)
    }
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
    /// llama.cpp's number (`llama_pooling_type`), if it pools so.
    pub fn llama_cpp(self) -> Option<u32> {
        match self {
            Self::Mean => Some(1),
            Self::Cls => Some(2),
            Self::LastToken => Some(3),
            Self::Max => None,
        }
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
        let quantization = ["quantize_config.json", "quant_config.json"].into_iter().find_map(present);
        let quantization = quantization.map(|path| read_json(&path)).transpose()?;
        let files = FILES.iter().filter_map(|name| Some((*name, Companion::file(&present(name)?))));
        Self { config, quantization, files: files.collect(), ..Self::default() }.understood()
    }

    /// Texts by name, that the file `path` carries.
    ///
    /// # Errors
    /// JSON that does not parse.
    pub fn carried(path: &Path, texts: impl IntoIterator<Item = (&'static str, String)>) -> Result<Self> {
        let files = texts.into_iter().map(|(name, text)| (name, Companion::within(path, text)));
        Self { files: files.collect(), ..Self::default() }.understood()
    }

    fn understood(mut self) -> Result<Self> {
        self.pooling = self.file("1_Pooling/config.json").map(read_pooling).transpose()?;
        self.modules = self.file("modules.json").map(read_modules).transpose()?;
        Ok(self)
    }

    /// The file of a name.
    pub fn file(&self, name: &str) -> Option<&Companion> {
        self.files.get(name)
    }

    /// All files but the config, by their names in a model's folder.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Companion)> {
        self.files.iter().map(|(name, file)| (*name, file))
    }

    /// The same with this config, as if it stood in that file.
    pub fn with_config(mut self, file: PathBuf, config: Value) -> Self {
        self.config = Some((file, config));
        self
    }

    /// These, and from `other` what these lack.
    pub fn or(self, other: &Companions) -> Self {
        let mut files = other.files.clone();
        files.extend(self.files);
        Self {
            config: self.config.or_else(|| other.config.clone()),
            pooling: self.pooling.or(other.pooling),
            modules: self.modules.or_else(|| other.modules.clone()),
            quantization: self.quantization.or_else(|| other.quantization.clone()),
            files,
        }
    }

    /// The tokens that end a text: `eos_token_id` of the generation config and of the config.
    ///
    /// # Errors
    /// A generation config that does not parse.
    pub fn stop_tokens(&self) -> Result<Vec<u32>> {
        let generation: Option<Value> = self.file("generation_config.json").map(Companion::json).transpose()?;
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

    /// The most positions that a sentence encoder takes, special tokens included (`max_seq_length`).
    ///
    /// # Errors
    /// A `sentence_bert_config.json` that does not parse.
    pub fn max_seq_length(&self) -> Result<Option<usize>> {
        let config: Option<Value> = self.file("sentence_bert_config.json").map(Companion::json).transpose()?;
        let longest = config.as_ref().and_then(|config| config.get("max_seq_length")).and_then(Value::as_u64);
        Ok(longest.map(|longest| longest as usize))
    }
}

/// The types of a sentence encoder's modules, such as `sentence_transformers.models.Pooling`.
fn read_modules(file: &Companion) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Module {
        #[serde(rename = "type")]
        kind: String,
    }
    let modules: Vec<Module> = file.json()?;
    Ok(modules.into_iter().map(|module| module.kind).collect())
}

fn read_pooling(file: &Companion) -> Result<Pooling> {
    let config: Value = file.json()?;
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
            file: file.path().to_owned(),
            found: other.join(" and "),
            expected: "one of mean, cls, max and last token pooling".into(),
            next: "Other poolings are not supported yet; use --no-check to compress without comparing outputs".into(),
        }),
    }
}

/// Reads a JSON file of bounded size.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &read_bounded(path)?)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let len = std::fs::metadata(path).map_err(formats::Error::io(path, "open"))?.len();
    if len > MOST_JSON {
        return Err(wrong(path, format!("{len} bytes")));
    }
    Ok(std::fs::read(path).map_err(formats::Error::io(path, "read"))?)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| wrong(path, format!("something that does not parse ({e})")))
}

fn wrong(path: &Path, found: String) -> Error {
    Error::Companion {
        file: path.to_owned(),
        found,
        expected: "a JSON file as transformers writes it".into(),
        next: "Download the file again".into(),
    }
}
