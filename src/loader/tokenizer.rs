//! From text to token numbers, through the `tokenizers` crate.

use std::path::Path;

use super::{Error, Result};

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Its own truncation and padding are set aside: the caller knows its windows.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |found: String| Error::Companion {
            file: path.to_owned(),
            found,
            expected: "a tokenizer.json as the tokenizers library writes it".into(),
            next: "Download the file again".into(),
        };
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(|e| wrong(format!("a problem ({e})")))?;
        inner.with_truncation(None).map_err(|e| wrong(e.to_string()))?.with_padding(None);
        Ok(Self { inner })
    }

    /// The tokens of a text, without special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
    }

    /// The tokens of a text as the model expects a whole one, with its special tokens, cut to at most `longest`. What is cut
    /// is text; the special tokens stay.
    pub fn encode_whole(&self, text: &str, longest: usize) -> Result<Vec<u32>, String> {
        let special = self.inner.encode_fast("", true).map_err(|e| e.to_string())?.len();
        let ids = self.encode(text)?;
        let room = longest.saturating_sub(special);
        if ids.len() <= room {
            return Ok(self.inner.encode_fast(text, true).map_err(|e| e.to_string())?.get_ids().to_vec());
        }
        let mut inner = self.inner.clone();
        let params = tokenizers::TruncationParams { max_length: longest, ..Default::default() };
        inner.with_truncation(Some(params)).map_err(|e| e.to_string())?;
        Ok(inner.encode_fast(text, true).map_err(|e| e.to_string())?.get_ids().to_vec())
    }

    /// The token that the tokenizer puts before every text, if it puts one.
    pub fn bos(&self) -> Option<u32> {
        let ids = |special| Some(self.inner.encode_fast("a", special).ok()?.get_ids().to_vec());
        let (whole, text) = (ids(true)?, ids(false)?);
        let (first, rest) = whole.split_first()?;
        (rest.len() >= text.len() && rest.starts_with(&text)).then_some(*first)
    }

    /// The number of a token, by its text.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Turns the tokens that follow `prompt` into text, one by one. A token that is part of a character only gives its text
    /// with the one that completes it; special tokens give none.
    ///
    /// # Errors
    /// In words, why a token has no text.
    pub fn detokenizer(&self, prompt: &[u32]) -> Result<impl FnMut(u32) -> Result<String, String> + '_, String> {
        let mut stream = self.inner.decode_stream(true);
        let mut step = move |token| Ok(stream.step(token).map_err(|e| e.to_string())?.unwrap_or_default());
        // Whether a first token's space counts depends on what stands before it.
        prompt.iter().try_for_each(|token| step(*token).map(|_: String| ()))?;
        Ok(step)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}
