//! Numbers in other files: within the model's folder, and nowhere else.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use super::proto::StringStringEntryProto;
use crate::source::Data;
use crate::{Access, Error, Result, TensorMeta};

/// Where the numbers of a tensor are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    File(Range<u64>),
    /// As [`crate::unpacked::Unpacked`] says.
    Unpacked(Range<u64>),
    /// In one of the other files.
    External(usize, Range<u64>),
}

/// Files that one model may be made of.
const MOST_FILES: usize = 10_000;

/// The other files of a model.
pub(super) struct External {
    path: PathBuf,
    access: Access,
    files: Vec<Data>,
    by_name: HashMap<String, usize>,
}

impl External {
    pub fn new(path: &Path, access: Access) -> Self {
        Self { path: path.to_owned(), access, files: Vec::new(), by_name: HashMap::new() }
    }

    pub fn is_used(&self) -> bool {
        !self.files.is_empty()
    }

    fn refuse(&self, tensor: &str, found: String, expected: &str) -> Error {
        let next = "Do not use this model, or fetch it again with all its files";
        Error::malformed(&self.path, Some(tensor), found, expected, next)
    }

    /// The place that a tensor's entries say, of so many bytes.
    pub fn place(&mut self, tensor: &str, entries: &[StringStringEntryProto], bytes: u64) -> Result<Place> {
        let entry = |key: &str| entries.iter().rfind(|entry| entry.key() == key).map(StringStringEntryProto::value);
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.refuse(tensor, format!("external data of {key} `{text}`"), "a number")),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let Some(location) = entry("location").map(str::to_owned) else {
            return Err(self.refuse(tensor, "external data without a location".into(), "a file beside the model"));
        };
        let file = self.file(tensor, &location)?;
        let len = self.files[file].len();
        if let Some(length) = length.filter(|length| *length != bytes) {
            return Err(self.refuse(
                tensor,
                format!("{length} bytes of external data"),
                &format!("{bytes} for its shape"),
            ));
        }
        match offset.checked_add(bytes).filter(|end| *end <= len) {
            Some(end) => Ok(Place::External(file, offset..end)),
            None => Err(self.refuse(
                tensor,
                format!("{bytes} bytes from byte {offset} of `{location}`, which has {len}"),
                "a place within that file",
            )),
        }
    }

    /// The file of a location, opened.
    fn file(&mut self, tensor: &str, location: &str) -> Result<usize> {
        if let Some(file) = self.by_name.get(location) {
            return Ok(*file);
        }
        let mut parts = Path::new(location).components().filter(|part| *part != Component::CurDir).peekable();
        let inside = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
        if !inside || location.contains(['\\', '\0']) {
            let found = format!("external data in `{location}`");
            return Err(self.refuse(tensor, found, "a file in the model's folder"));
        }
        if self.files.len() >= MOST_FILES {
            return Err(self.refuse(tensor, format!("more than {MOST_FILES} files of external data"), "fewer"));
        }
        let folder = |path: &Path| match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let path = folder(&self.path).join(location);
        let missing = |path: &Path, e: std::io::Error| {
            let found = format!("external data in `{location}`, which cannot be opened ({e})");
            let next = format!("Put {} there", path.display());
            Error::malformed(&self.path, Some(tensor), found, "a file beside the model", next)
        };
        // A hub's cache links the model and its data to files that lie in one folder, elsewhere.
        let real = path.canonicalize().map_err(|e| missing(&path, e))?;
        let roots = [folder(&self.path).canonicalize(), self.path.canonicalize().map(|own| folder(&own))];
        if !roots.into_iter().flatten().any(|root| real.starts_with(root)) {
            let found = format!("external data in `{location}`, which is a link to {}", real.display());
            return Err(self.refuse(tensor, found, "a file in the model's folder"));
        }
        self.files.push(Data::open(&real, self.access)?);
        self.by_name.insert(location.to_owned(), self.files.len() - 1);
        Ok(self.files.len() - 1)
    }

    /// Tensors may be the same bytes of a file, but no part of one may be part of another.
    pub fn refuse_overlaps(&self, tensors: &[TensorMeta], places: &[Place]) -> Result<()> {
        let mut outside: Vec<(usize, &Range<u64>, usize)> = Vec::new();
        for (tensor, place) in places.iter().enumerate() {
            if let Place::External(file, range) = place
                && !range.is_empty()
            {
                outside.push((*file, range, tensor));
            }
        }
        outside.sort_by_key(|(file, range, _)| (*file, range.start, range.end));
        for pair in outside.windows(2) {
            let ((first, a, before), (second, b, tensor)) = (&pair[0], &pair[1]);
            if first == second && a != b && b.start < a.end {
                let found =
                    format!("bytes {}..{}, of which tensor `{}` has some", b.start, b.end, tensors[*before].name);
                return Err(self.refuse(&tensors[*tensor].name, found, "tensors that do not overlap"));
            }
        }
        Ok(())
    }

    /// Places as a source has them, the other files one after another from `base` on; and these.
    pub fn finish(self, places: Vec<Place>, base: u64) -> (Vec<Range<u64>>, Vec<Data>) {
        let mut bases = Vec::with_capacity(self.files.len());
        let mut end = base;
        for file in &self.files {
            bases.push(end);
            end += file.len();
        }
        let place = |place| match place {
            Place::File(range) | Place::Unpacked(range) => range,
            Place::External(file, range) => bases[file] + range.start..bases[file] + range.end,
        };
        (places.into_iter().map(place).collect(), self.files)
    }
}
