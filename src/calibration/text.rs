//! From a calibration text to windows of tokens.

use std::path::PathBuf;

use super::{Error, Result};
use crate::family::{Architecture, Kind};
use crate::loader::Checkpoint;

/// The text that a model is calibrated on.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file: for encoders, one text a line.
    pub text: PathBuf,
    /// The most tokens.
    pub tokens: usize,
    /// The longest window, special tokens included; the smaller of 512 and the model's if absent.
    pub context: Option<usize>,
}

impl Options {
    /// Tokens where nothing else is asked for.
    pub const DEFAULT_TOKENS: usize = 32_768;
}

/// The longest window where nothing else is asked for, if the model takes as much.
const CONTEXT: usize = 512;

/// Cuts the beginning of a text into windows: for decoders of one length, one after the other, each after the token that
/// stands before every text if there is one; for encoders a line each.
///
/// # Errors
/// A text that cannot be read or is shorter than a window, a model without a tokenizer or that is no transformer.
pub fn windows(checkpoint: &Checkpoint, options: &Options) -> Result<Vec<Vec<u32>>> {
    let unfit = |why: &str| Error::Model { file: checkpoint.path().to_owned(), why: why.to_owned() };
    let Some(family) = checkpoint.family() else {
        return Err(unfit(checkpoint.no_family().unwrap_or("its family is not known")));
    };
    let Architecture::Transformer(shape) = &family.architecture else {
        return Err(unfit("it is no transformer; expected one through which text can be led"));
    };
    let tokenizer = checkpoint.tokenizer()?.ok_or_else(|| unfit("there is no tokenizer.json beside the weights"))?;
    let wrong = |found: String, expected: String| Error::Text { file: options.text.clone(), found, expected };
    let bytes = std::fs::read(&options.text).map_err(formats::Error::io(&options.text, "read"))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| wrong("bytes that are not UTF-8".to_owned(), "plain text in UTF-8".to_owned()))?;
    let refused = |e: String| wrong(format!("text that the tokenizer refuses: {e}"), "text".to_owned());
    let context = options.context.unwrap_or(CONTEXT).min(shape.max_positions);
    let mut windows = Vec::new();
    let mut left = options.tokens;
    if family.kind == Kind::Encoder {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let ids = tokenizer.encode_whole(line, context).map_err(refused)?.tokens;
            if ids.len() > left {
                break;
            }
            left -= ids.len();
            windows.push(ids);
        }
        windows.retain(|ids| !ids.is_empty());
        if windows.is_empty() {
            return Err(wrong("no line within the budget of tokens".to_owned(), "one text a line".to_owned()));
        }
        return Ok(windows);
    }
    let bos = tokenizer.bos();
    let step = context - usize::from(bos.is_some()).min(context - 1);
    // No more text than the budget can need is tokenized: a token stands for at most a few dozen bytes in any language.
    let most = options.tokens.saturating_mul(64);
    let end = (most.min(text.len())..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let tokens = tokenizer.encode(&text[..end]).map_err(refused)?;
    for chunk in tokens.chunks_exact(step).take((left / context).max(1)) {
        windows.push(bos.iter().copied().chain(chunk.iter().copied()).collect());
    }
    if windows.is_empty() {
        return Err(wrong(format!("{} tokens", tokens.len()), format!("at least one window of {step}")));
    }
    Ok(windows)
}
