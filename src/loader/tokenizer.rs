//! From text to token numbers, through the `tokenizers` crate.

use super::{Companion, Error, Result};

/// What tokenizers cut in different ways: words, contractions, numbers, code, spaces, lines, scripts, marks, emoji.
const SAMPLES: &[&str] = &[
    "In the beginning God created the heaven and the earth. And the earth was without form, and void;",
    "I'll say it's WE'VE don't they'd  two  spaces   three\tand a tab \n a line\n\n\nthree lines  \n ends ",
    " leading space",
    "1 12 123 1234 12345678901 3.14159 1,000,000 ½ ² 0x1F Ⅻ",
    "fn main() { let x: Vec<u8> = vec![1, 2]; }\n\tif (a != b && c->d) { return \"text\"; } // done\r\n",
    "camelCase snake_case SCREAMING_CASE HTMLParser iPhone https://example.org/a?b=c&d=%20#e",
    "Ünïcödé façade Größe naïve ŁÓDŹ Ελληνικά Привет мир שלום مرحبا हिन्दी ภาษาไทย 한국어 日本語のテキスト 中文，标点。",
    "🙂👍🏽 👩‍👩‍👧 €100 «quoted» — dash … ‘x’ “y” !!! ??? ... --- *** ~~~ ^^^ |||",
    "…\u{a0}…\u{3000}…\u{200b}…",
];

/// The tokens of a whole text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// The tokens, special ones included.
    pub tokens: Vec<u32>,
    /// Whether text was left out.
    pub cut: bool,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Its own truncation and padding are set aside: the caller knows its windows.
    ///
    /// # Errors
    /// What is none.
    pub fn read(file: &Companion) -> Result<Self> {
        let wrong = |found: String| Error::Companion {
            file: file.path().to_owned(),
            found,
            expected: "a tokenizer.json as the tokenizers library writes it".into(),
            next: "Download the file again".into(),
        };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(file.bytes()?).map_err(|e| wrong(format!("a problem ({e})")))?;
        inner.with_truncation(None).map_err(|e| wrong(e.to_string()))?.with_padding(None);
        Ok(Self { inner })
    }

    /// The tokens of a text, without special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
    }

    /// The tokens of a text as the model expects a whole one, with its special tokens, cut to at most `longest`. What is cut
    /// is text; the special tokens stay.
    pub fn encode_whole(&self, text: &str, longest: usize) -> Result<Whole, String> {
        let special = self.inner.encode_fast("", true).map_err(|e| e.to_string())?.len();
        let cut = self.encode(text)?.len() > longest.saturating_sub(special);
        let encode = |inner: &tokenizers::Tokenizer| {
            let tokens = inner.encode_fast(text, true).map_err(|e| e.to_string())?.get_ids().to_vec();
            Ok(Whole { tokens, cut })
        };
        if !cut {
            return encode(&self.inner);
        }
        let mut inner = self.inner.clone();
        let params = tokenizers::TruncationParams { max_length: longest, ..Default::default() };
        inner.with_truncation(Some(params)).map_err(|e| e.to_string())?;
        encode(&inner)
    }

    /// The token that the tokenizer puts before every text, if it puts one.
    pub fn bos(&self) -> Option<u32> {
        self.around().0
    }

    /// The tokens that it puts before and after every text.
    pub fn around(&self) -> (Option<u32>, Option<u32>) {
        let ids = |special| Some(self.inner.encode_fast("a", special).ok()?.get_ids().to_vec());
        let (Some(whole), Some(text)) = (ids(true), ids(false)) else { return (None, None) };
        match whole.windows(text.len().max(1)).position(|window| window == text) {
            Some(at) => (at.checked_sub(1).map(|at| whole[at]), whole.get(at + text.len()).copied()),
            None => (None, None),
        }
    }

    /// A text that another tokenizer cuts in another way, of some that tokenizers differ in.
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let ids = |of: &Self, text: &str| Some(of.inner.encode_fast(text, true).ok()?.get_ids().to_vec());
        SAMPLES.iter().find(|text| ids(self, text) != ids(other, text)).copied()
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
