//! From a path to weight files: a file, a folder, or a sharded index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::{Payload, Source};
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
const EXTENSIONS: [&[&str]; 2] = [&["safetensors", "gguf", "onnx"], &["npz", "pt", "pth", "bin"]];

/// The weight files of a model.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
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
        if let Some(part) = Part::of(&name) {
            return Ok(Self { folder: folder.clone(), whole_folder: false, names: part.all(&folder)?, index: None });
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
                [first, rest @ ..] => match Part::of(first) {
                    Some(part) if rest.iter().all(|other| Part::of(other).as_ref() == Some(&part)) => {
                        return whole(part.all(folder)?);
                    }
                    None if rest.is_empty() => return whole(vec![(*first).clone()]),
                    _ => break,
                },
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

/// Missing parts that an error names.
const MOST: usize = 100;

/// A part of a GGUF file that is split, by its name: `BASE-00002-of-00003.gguf`.
#[derive(PartialEq)]
struct Part<'a> {
    base: &'a str,
    count: u32,
}

impl<'a> Part<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| if text.len() == 5 { text.parse::<u32>().ok() } else { None };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then_some(Self { base, count })
    }

    /// The names of all parts.
    fn all(&self, folder: &Path) -> Result<Vec<String>> {
        let Self { base, count } = self;
        let names: Vec<String> = (1..=*count).map(|i| format!("{base}-{i:05}-of-{count:05}.gguf")).collect();
        let mut missing: Vec<String> = names.iter().filter(|name| !folder.join(name).exists()).cloned().collect();
        if missing.len() > MOST {
            let more = missing.len() - MOST;
            missing.truncate(MOST);
            missing.push(format!("and {more} more"));
        }
        if missing.is_empty() { Ok(names) } else { Err(Error::MissingParts { folder: folder.to_owned(), missing }) }
    }
}

/// The name of a whole of which `name` is a part, or the name itself; without extension.
pub fn whole_name(name: &str) -> String {
    Part::of(&format!("{name}.gguf")).map_or(name, |_| &name[..name.len() - "-00001-of-00001".len()]).to_owned()
}

/// Holds the parts of a split GGUF file against what each says of itself: its number, how many there are, and how many tensors
/// all of them have together. A file that is none of a split must not say that it is.
pub fn check_parts(files: &WeightFiles, sources: &[Arc<Source>]) -> Result<()> {
    let parts = sources.len() as u64;
    let tensors: u64 = sources.iter().map(|source| source.tensors().len() as u64).sum();
    for (i, source) in sources.iter().enumerate() {
        let Payload::Gguf(metadata) = source.payload() else {
            if Part::of(&files.names[i]).is_none() {
                return Ok(());
            }
            let found = format!("a {} file", source.format().name());
            return Err(wrong_part(source, found, "a part of a split GGUF file, as its name says".to_owned()));
        };
        let Some(count) = metadata.get_u64("split.count").or((parts > 1).then_some(0)) else { continue };
        let number = metadata.get_u64("split.no");
        if count != parts && (count, parts) != (0, 1) {
            let found = if count == 0 { "no split.count".into() } else { format!("split.count {count}") };
            let expected = match parts {
                1 => format!("all {count} parts by their names, BASE-00001-of-{count:05}.gguf"),
                _ => format!("{parts}, as its name says"),
            };
            return Err(wrong_part(source, found, expected));
        }
        if parts > 1 && number != Some(i as u64) {
            let found = number.map_or("no split.no".into(), |number| format!("split.no {number}"));
            return Err(wrong_part(source, found, format!("{i}, as its name says; is it a copy of another part?")));
        }
    }
    for source in sources.iter().filter(|_| parts > 1) {
        let Payload::Gguf(metadata) = source.payload() else { continue };
        if let Some(all) = metadata.get_u64("split.tensors.count").filter(|all| *all != tensors) {
            let expected = format!("{tensors}, which is what all parts have together");
            return Err(wrong_part(source, format!("split.tensors.count {all}"), expected));
        }
    }
    Ok(())
}

fn wrong_part(source: &Source, found: String, expected: String) -> Error {
    Error::Part { file: source.path().to_owned(), found, expected }
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

    #[test]
    fn parts_are_known_by_their_names() {
        let part = |name| Part::of(name).map(|part| (part.base.to_owned(), part.count));
        assert_eq!(part("a-b-00002-of-00003.gguf"), Some(("a-b".into(), 3)));
        for other in
            ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00002.bin"]
        {
            assert_eq!(part(other), None, "{other}");
        }
        assert_eq!((whole_name("a-00001-of-00002"), whole_name("a-of-b")), ("a".into(), "a-of-b".into()));
    }
}
