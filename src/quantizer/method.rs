//! How codes are looked for, by name.

use std::fmt;
use std::str::FromStr;

/// How codes are looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// Every number is rounded to the nearest that its scale can be.
    #[default]
    Rtn,
    /// Scales of the least squared error.
    Search,
    /// To nearest, after the columns that meet the largest inputs of a text were made larger and what makes these inputs
    /// smaller (Lin et al., 2023).
    Awq,
    /// Errors of a column are made up for by the columns after it, by what a text shows of inputs (Frantar et al., 2022).
    Gptq,
    /// The least squared error of what layers give on a text, also for errors of the layers before them.
    Best,
}

impl Method {
    /// All, from the least to the most work.
    pub const ALL: [Self; 5] = [Self::Rtn, Self::Search, Self::Awq, Self::Gptq, Self::Best];

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Search => "search",
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::Best => "best",
        }
    }

    /// Whether it looks at a text.
    pub fn calibrates(self) -> bool {
        matches!(self, Self::Awq | Self::Gptq | Self::Best)
    }

    /// Whether it chooses each code by a text, not only what is rounded.
    pub fn chooses_codes(self) -> bool {
        matches!(self, Self::Gptq | Self::Best)
    }

    /// Whether scales are searched where nothing is known of inputs.
    pub fn searches(self) -> bool {
        matches!(self, Self::Search | Self::Best)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| format!("`{text}` is no method of quantizing; expected one of {}", known()))
    }
}
