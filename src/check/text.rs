//! The text that outputs are computed from.

use std::path::Path;

use super::{Error, Result};

/// What a sample is called in reports.
pub const SAMPLE_NAME: &str = "the built-in sample (King James Bible, public domain)";

/// Some 24 kB of chapters from the King James Bible.
const SAMPLE: &str = include_str!("sample.txt");

/// A text and where it is from.
#[derive(Debug, Clone)]
pub struct Text {
    /// The file's name, or the sample's.
    pub name: String,
    /// The text.
    pub content: String,
}

impl Text {
    /// Why the text does not serve.
    pub(super) fn wrong(&self, found: String) -> Error {
        Error::Text {
            file: self.name.clone().into(),
            found,
            expected: "text of at least one window of two tokens".to_owned(),
            next: "Give a longer text with --text".to_owned(),
        }
    }
}

/// Reads a text file, or takes the sample.
///
/// # Errors
/// A file that cannot be read, is empty, or is not UTF-8.
pub fn load(path: Option<&Path>) -> Result<Text> {
    let Some(path) = path else {
        return Ok(Text { name: SAMPLE_NAME.to_owned(), content: SAMPLE.to_owned() });
    };
    let wrong = |found: &str| Error::Text {
        file: path.to_owned(),
        found: found.to_owned(),
        expected: "text in UTF-8".to_owned(),
        next: "Give a plain text file with --text, or leave it out to use the built-in sample".to_owned(),
    };
    let bytes = std::fs::read(path).map_err(formats::Error::io(path, "read"))?;
    let content = String::from_utf8(bytes).map_err(|_| wrong("bytes that are not UTF-8"))?;
    if content.trim().is_empty() {
        return Err(wrong("no text"));
    }
    Ok(Text { name: path.display().to_string(), content })
}

/// The non-empty lines of a text.
pub fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}
