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
        Ok(Self { config, tokenizer: present("tokenizer.json"), pooling })
    }

    /// These, and from `other` what these lack.
    pub fn or(self, other: &Companions) -> Self {
        Self {
            config: self.config.or_else(|| other.config.clone()),
            tokenizer: self.tokenizer.or_else(|| other.tokenizer.clone()),
            pooling: self.pooling.or(other.pooling),
        }
    }
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
