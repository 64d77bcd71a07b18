//! Whole parts of a model that are removed: layers, attention heads, neurons.

use std::fmt;
use std::str::FromStr;

use super::Fraction;

/// What is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Layers.
    pub layers: Option<Layers>,
    /// The share of every layer's key and value heads, with all query heads of each.
    pub heads: Option<Fraction>,
    /// The share of the neurons of every layer's feed-forward part, or of each of its experts.
    pub neurons: Option<Fraction>,
}

/// Which layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// So many that change their input least.
    Least(usize),
    /// Those of these numbers, from 0, in order.
    Named(Vec<usize>),
}

impl FromStr for Layers {
    type Err = String;

    /// `2` are the two that matter least, `5,6` those two, and `5,` that one.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a number of layers nor a list of them such as 5,6 or 5,");
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| wrong());
        let Some((first, rest)) = text.split_once(',') else {
            return match number(text)? {
                0 => Err(wrong()),
                count => Ok(Self::Least(count)),
            };
        };
        let mut named = vec![number(first)?];
        for part in rest.split(',').filter(|part| !part.trim().is_empty()) {
            named.push(number(part)?);
        }
        named.sort_unstable();
        named.dedup();
        Ok(Self::Named(named))
    }
}

impl Parts {
    /// Whether nothing is removed.
    pub fn is_empty(&self) -> bool {
        self.layers.is_none() && self.heads.is_none() && self.neurons.is_none()
    }

    /// Whether a text has to show which parts matter least.
    pub fn need_text(&self) -> bool {
        matches!(self.layers, Some(Layers::Least(_))) || self.heads.is_some() || self.neurons.is_some()
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.layers.as_ref().map(|layers| match layers {
            Layers::Least(count) => format!("{count} layers"),
            Layers::Named(named) => {
                format!("layers {}", named.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        });
        let share =
            |what: &str, fraction: Option<Fraction>| fraction.map(|share| format!("{} of {what}", share.to_f64()));
        let all = [layers, share("heads", self.heads), share("neurons", self.neurons)];
        write!(f, "remove {}", all.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// The numbers of the `keep` largest scores, in order; of equals the later ones stay.
pub fn largest(scores: &[f64], keep: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(a.cmp(&b)));
    let mut kept = order.split_off(scores.len() - keep);
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_or_named() {
        assert_eq!("2".parse(), Ok(Layers::Least(2)));
        assert_eq!("6,5,6".parse(), Ok(Layers::Named(vec![5, 6])));
        assert_eq!("5,".parse(), Ok(Layers::Named(vec![5])));
        for wrong in ["", "0", "x", ",", "1,x", "-1"] {
            assert!(wrong.parse::<Layers>().unwrap_err().contains("list of them"), "{wrong}");
        }
        let parts = Parts { layers: "5,".parse().ok(), heads: None, neurons: "0.25".parse().ok() };
        assert_eq!(parts.to_string(), "remove layers 5, 0.25 of neurons");
        assert!(parts.need_text() && !parts.is_empty() && Parts::default().is_empty());
    }

    #[test]
    fn the_largest_stay_in_their_order() {
        assert_eq!(largest(&[3.0, 1.0, 2.0, 5.0], 3), [0, 2, 3]);
        assert_eq!(largest(&[0.0, 0.0, 0.0], 1), [2]);
    }
}
