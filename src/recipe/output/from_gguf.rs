//! What a GGUF file carries inside and a Hugging Face folder has in files of its own: the tokenizer, its config, how to
//! generate. And what of it no such file holds.

use std::borrow::Cow;
use std::path::PathBuf;

use formats::gguf::Metadata;

use super::huggingface::pretty;
use crate::dialect::llama_cpp::{self as dialect, tokenizer};
use crate::loader::Checkpoint;
use crate::recipe::{Error, Result};

const TOKENIZER: &str = "tokenizer.json";

/// What the target does not hold, in words.
///
/// # Errors
/// An architecture that cannot be read, for a folder.
pub fn notes(checkpoint: &Checkpoint, metadata: &Metadata, folder: bool) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if let Some(why) = checkpoint.no_family() {
        if folder {
            return Err(Error::Dialect {
                file: checkpoint.path().to_owned(),
                target: "a Hugging Face folder",
                problem: why.to_owned(),
                next: "Its tensors alone, by llama.cpp's names, can be written as one file: NAME.safetensors"
                    .to_owned(),
            });
        }
        notes.push(format!("tensors keep llama.cpp's names, since {why}"));
    }
    if !folder {
        notes.push("config and tokenizer are left out; a folder has them: give a name without extension".to_owned());
        return Ok(notes);
    }
    if files(checkpoint, metadata)?.iter().all(|(name, _)| name.as_os_str() != TOKENIZER) {
        let why = tokenizer::tokenizer_json(metadata).err().unwrap_or_else(|| "the file has no tokenizer".to_owned());
        notes.push(format!("without tokenizer.json: {why}"));
    }
    let lost = dialect::left_out(metadata);
    if !lost.is_empty() {
        notes.push(format!("metadata that a Hugging Face folder has no place for, left out: {}", lost.join(", ")));
    }
    Ok(notes)
}

/// The files, by name: those that our own files carry as they are, and others made from the keys. What lies beside the file may
/// belong to another model, and serves only where a tokenizer cannot be rebuilt.
///
/// # Errors
/// A tokenizer beside the file that cannot be read.
pub fn files(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let own = tokenizer::companions(metadata).into_iter();
    let mut files: Vec<(PathBuf, Vec<u8>)> = own.map(|(name, text)| (name.into(), text.into_bytes())).collect();
    if files.iter().all(|(name, _)| name.as_os_str() != TOKENIZER) {
        let beside = || checkpoint.companions().file(TOKENIZER).map(|file| file.bytes()).transpose();
        let bytes = match tokenizer::tokenizer_json(metadata) {
            Ok(Some(json)) => Some(pretty(&json)),
            Ok(None) | Err(_) => beside()?.map(Cow::into_owned),
        };
        files.extend(bytes.map(|bytes| (TOKENIZER.into(), bytes)));
    }
    Ok(files)
}
