//! What can be asked for: how much is removed, by which measure, and among which weights the smallest are looked for.

use std::fmt;
use std::str::FromStr;

/// A share between 0 and 1, as it was written: a decimal number means exactly itself, so that ⌊0.29 · 100⌋ is 29.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// Billionths.
    billionths: u64,
}

/// One, in billionths.
const ONE: u64 = 1_000_000_000;

impl Fraction {
    /// ⌊share · n⌋.
    pub fn of(self, n: u64) -> u64 {
        (u128::from(n) * u128::from(self.billionths) / u128::from(ONE)) as u64
    }

    /// The nearest float.
    pub fn to_f64(self) -> f64 {
        self.billionths as f64 / ONE as f64
    }
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no fraction from 0 to 1 with at most nine decimal places");
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole)
            || !digits(decimals)
            || decimals.len() > 9
            || text.len() > 16
            || text.len() <= 1 && whole.is_empty()
        {
            return Err(wrong());
        }
        let number = |part: &str| if part.is_empty() { Ok(0) } else { part.parse::<u64>().map_err(|_| wrong()) };
        let below = number(&format!("{decimals:0<9}"))?;
        match number(whole)? {
            0 => Ok(Self { billionths: below }),
            1 if below == 0 => Ok(Self { billionths: ONE }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_f64())
    }
}

/// How much is removed, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// This share.
    Fraction(Fraction),
    /// Of every `m` neighbours along the inputs, at most `n` stay (Mishra et al., 2021: 2:4).
    Groups {
        /// How many stay.
        n: usize,
        /// Of how many.
        m: usize,
    },
}

/// The most neighbours of a group.
const MOST_NEIGHBOURS: usize = 1024;

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((n, m)) = text.split_once(':') else { return text.parse().map(Self::Fraction) };
        let number = |part: &str| part.parse::<usize>().ok();
        match (number(n), number(m)) {
            (Some(n), Some(m)) if n > m => Err(format!("{n}:{m} would keep {n} of {m}; expected N:M with N at most M")),
            (Some(0), Some(_)) => Err(format!("{text} would remove everything; expected N:M with N at least 1")),
            (Some(n), Some(m)) if m <= MOST_NEIGHBOURS => Ok(Self::Groups { n, m }),
            _ => Err(format!("`{text}` is no N:M; expected whole numbers such as 2:4, M at most {MOST_NEIGHBOURS}")),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fraction(fraction) => write!(f, "{fraction}"),
            Self::Groups { n, m } => write!(f, "{n}:{m}"),
        }
    }
}

/// A name that stands in flags, recipes and reports.
macro_rules! named {
    ($type:ident, $what:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Every one, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in flags, recipes and reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let known = || Self::ALL.iter().map(|one| one.name()).collect::<Vec<_>>().join(", ");
                let found = Self::ALL.iter().copied().find(|one| one.name() == text);
                found.ok_or_else(|| format!(concat!("`{}` is no ", $what, "; expected one of {}"), text, known()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

/// By which measure weights are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// |w| (Han et al., 2015).
    #[default]
    Magnitude,
    /// |w| · ‖x‖₂ over a calibration text, within each row (Sun et al., 2023).
    Wanda,
    /// By the inverse Hessian of the layer's squared error on a calibration text; weights that stay are changed (Frantar and
    /// Alistarh, 2023).
    SparseGpt,
}

named!(Method, "method of pruning", Magnitude = "magnitude", Wanda = "wanda", SparseGpt = "sparsegpt");

impl Method {
    /// Whether the method looks at inputs.
    pub fn calibrates(self) -> bool {
        self != Self::Magnitude
    }
}

/// Among which weights the smallest are looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those of each row: the inputs of one output.
    #[default]
    Row,
    /// Those of each matrix.
    Tensor,
    /// Those of all matrices that are pruned alike.
    Global,
}

named!(Scope, "scope of pruning", Row = "row", Tensor = "tensor", Global = "global");

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sparsity {
    /// How much.
    pub pattern: Pattern,
    /// By which measure.
    pub method: Method,
    /// Among which.
    pub scope: Scope,
}

impl Sparsity {
    /// # Errors
    /// In words, what does not go together.
    pub fn new(pattern: Pattern, method: Method, scope: Scope) -> Result<Self, String> {
        if matches!(pattern, Pattern::Groups { .. }) && scope != Scope::Row {
            return Err(format!("{pattern} is a pattern within rows; expected a fraction for the scope {scope}"));
        }
        match (method, scope) {
            (Method::Wanda, Scope::Tensor | Scope::Global) => {
                Err(format!("wanda compares the weights of a row; expected the scope row, found {scope}"))
            }
            (Method::SparseGpt, Scope::Global) => {
                Err("sparsegpt prunes layer by layer; expected the scope row or tensor, found global".to_owned())
            }
            _ => Ok(Self { pattern, method, scope }),
        }
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prune {} by {}", self.pattern, self.method)?;
        match (self.pattern, self.scope) {
            (Pattern::Groups { .. }, _) => Ok(()),
            (Pattern::Fraction(_), Scope::Row) => f.write_str(" in each row"),
            (Pattern::Fraction(_), Scope::Tensor) => f.write_str(" in each tensor"),
            (Pattern::Fraction(_), Scope::Global) => f.write_str(" among all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_what_was_written() {
        let of = |text: &str, n| text.parse::<Fraction>().unwrap().of(n);
        assert_eq!(
            (of("0.5", 7), of("0.29", 100), of(".1", 30), of("1", 9), of("0", 9), of("1.0", 3)),
            (3, 29, 3, 9, 0, 3)
        );
        assert_eq!(of("0.000000001", 2_000_000_000), 2);
        for text in ["", ".", "-0.1", "1.1", "2", "0,5", "nan", "0.1234567891", "1e-1", "50%", "99999999999999999"] {
            assert!(text.parse::<Fraction>().is_err(), "{text}");
        }
    }

    #[test]
    fn groups_keep_at_least_one_and_at_most_all() {
        assert_eq!("2:4".parse::<Pattern>(), Ok(Pattern::Groups { n: 2, m: 4 }));
        assert_eq!("4:4".parse::<Pattern>(), Ok(Pattern::Groups { n: 4, m: 4 }));
        for (text, word) in
            [("5:4", "at most"), ("0:4", "everything"), ("2:", "whole"), ("2:4:8", "whole"), ("1:9999", "1024")]
        {
            assert!(text.parse::<Pattern>().unwrap_err().contains(word), "{text}");
        }
        let sparsity = |pattern: &str, scope| Sparsity::new(pattern.parse().unwrap(), Method::Magnitude, scope);
        assert!(sparsity("2:4", Scope::Global).unwrap_err().contains("within rows"));
        assert_eq!(sparsity("0.50", Scope::Global).unwrap().to_string(), "prune 0.5 by magnitude among all");
    }
}
