//! From a path to weight files: a file, a folder, or a sharded index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::companions::read_json;
use super::{Error, Result};

/// The name of a folder's only weight file.
pub const SINGLE: &str = "model.safetensors";
/// The name of the file that lists shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// What folders hold their weights in, best first: the only file, and the file that lists shards.
const NAMES: [(&str, &str); 2] = [(SINGLE, INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json")];
/// Extensions of weight files, those first that hold nothing else.
const EXTENSIONS: [&[&str]; 2] = [&["safetensors", "gguf"], &["npz", "pt", "pth", "bin"]];

/// The weight files of a model.
#[derive(Debug)]
pub struct WeightFiles {
    /// The folder that holds the model's other files.
    pub folder: PathBuf,
    /// Whether the user named the folder; else one file.
    pub whole_folder: bool,
    /// The weight files, by name within the folder.
    pub names: Vec<String>,
    /// The index, if there is one.
    pub index: Option<Index>,
}

/// A sharded model's table of contents.
#[derive(Debug)]
pub struct Index {
    /// Its path.
    pub path: PathBuf,
    /// The shard of each tensor.
    pub weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Finds the weight files behind a path. Symbolic links are followed, and the files beside a link, not beside what it
    /// points to, are the model's.
    pub fn find(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(formats::Error::io(path, "open"))?;
        if meta.is_dir() {
            return Self::in_folder(path);
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".index.json") {
            return Self::sharded(&folder, path.to_owned());
        }
        Ok(Self { folder, whole_folder: false, names: vec![name], index: None })
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let whole = |names| Ok(Self { folder: folder.to_owned(), whole_folder: true, names, index: None });
        for (single, index) in NAMES {
            if folder.join(single).exists() {
                return whole(vec![single.to_owned()]);
            }
            let index = folder.join(index);
            if index.symlink_metadata().is_ok() {
                return Self::sharded(folder, index);
            }
        }
        let entries = std::fs::read_dir(folder).map_err(formats::Error::io(folder, "list"))?;
        let names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        for extensions in EXTENSIONS {
            let is_one = |name: &&String| name.rsplit_once('.').is_some_and(|(_, ext)| extensions.contains(&ext));
            match names.iter().filter(is_one).collect::<Vec<_>>().as_slice() {
                [] => {}
                [one] => return whole(vec![(*one).clone()]),
                _ => break,
            }
        }
        Err(Error::NoWeights { folder: folder.to_owned() })
    }

    fn sharded(folder: &Path, path: PathBuf) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            weight_map: BTreeMap<String, String>,
        }
        let raw: Raw = read_json(&path)?;
        let names: BTreeSet<&String> = raw.weight_map.values().collect();
        if let Some(bad) = names.iter().find(|name| !is_plain_name(name)) {
            return Err(Error::Companion {
                file: path,
                found: format!("the shard `{bad}`"),
                expected: "names of files in the same folder".into(),
                next: "This index points outside its folder; do not use it".into(),
            });
        }
        let missing: Vec<String> =
            names.iter().filter(|name| !folder.join(name.as_str()).exists()).map(|name| (*name).clone()).collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards { index: path, missing });
        }
        let names = names.into_iter().cloned().collect();
        let index = Some(Index { path, weight_map: raw.weight_map });
        Ok(Self { folder: folder.to_owned(), whole_folder: true, names, index })
    }
}

/// Whether a name from a stranger's file stays within its folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None)) && !name.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for bad in ["../a", "/etc/passwd", "a/b", "..", ".", "", "a\\b"] {
            assert!(!is_plain_name(bad), "{bad}");
        }
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
    }
}
