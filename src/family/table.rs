//! The tensors of a family, described once: their names in each dialect, their shapes in terms of the architecture, and the
//! slots they serve.

use std::ops::Range;

use super::{Biases, Part, Position, Role, Slot, Transformer};

/// The length of an axis, in terms of the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Entries of the vocabulary.
    Vocab,
    /// Width of the residual stream.
    Hidden,
    /// All query heads: heads · head_dim.
    Queries,
    /// All key heads, or all value heads: kv_heads · head_dim.
    Keys,
    /// Queries, keys and values in one.
    QueriesKeysValues,
    /// One head.
    HeadDim,
    /// Width of the feed-forward part.
    Intermediate,
    /// Gate and up in one.
    GateUp,
    /// Rows of the position embedding.
    Positions,
    /// Rows of the token type embedding.
    TokenTypes,
    /// Experts in a layer.
    Experts,
    /// Width of one expert.
    ExpertIntermediate,
    /// Gate and up of one expert in one.
    ExpertGateUp,
}

impl Axis {
    /// The length for one architecture.
    pub fn len(self, t: &Transformer) -> usize {
        let queries = t.heads * t.head_dim;
        let keys = t.kv_heads * t.head_dim;
        match self {
            Axis::Vocab => t.vocab,
            Axis::Hidden => t.hidden,
            Axis::Queries => queries,
            Axis::Keys => keys,
            Axis::QueriesKeysValues => queries + 2 * keys,
            Axis::HeadDim => t.head_dim,
            Axis::Intermediate => t.intermediate,
            Axis::GateUp => 2 * t.intermediate,
            Axis::Positions => match t.position {
                Position::Learned { offset } => t.max_positions + offset,
                Position::Rope(_) => t.max_positions,
            },
            Axis::TokenTypes => t.token_types,
            Axis::Experts => t.experts.map_or(0, |experts| experts.count),
            Axis::ExpertIntermediate => t.experts.map_or(0, |experts| experts.intermediate),
            Axis::ExpertGateUp => 2 * Axis::ExpertIntermediate.len(t),
        }
    }
}

/// The slots that a tensor's rows serve (its logical rows, where it is stored transposed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// One, with all rows.
    One(Slot),
    /// Several, one after the other.
    Rows(&'static [(Slot, Axis)]),
}

/// When a tensor has to be there.
#[derive(Debug, Clone, Copy)]
pub enum Presence {
    /// Always.
    Required,
    /// Never: a pooler that embeddings by mean do not use.
    Optional,
    /// Where the config says so. Where it says no, the model has none; where it says nothing, a file may hold it.
    Stated(fn(Biases) -> Option<bool>),
    /// Unless the output projection is the token embedding.
    Untied,
}

/// The order of a tensor's rows in a dialect, against Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    Same,
    /// In each head, rows i and i + head_dim/2 (the two that rotate together) lie next to each other.
    RopePairs {
        /// Heads in the tensor.
        heads: usize,
    },
}

impl RowOrder {
    /// The Hugging Face row that row `row` of `rows` in the dialect holds.
    pub fn canonical(self, row: usize, rows: usize) -> usize {
        match self {
            RowOrder::Same => row,
            RowOrder::RopePairs { heads } => {
                let dim = rows / heads;
                let (head, within) = (row / dim, row % dim);
                head * dim + within % 2 * (dim / 2) + within / 2
            }
        }
    }

    /// The row in the dialect that holds Hugging Face's row `row` of `rows`.
    pub fn position(self, row: usize, rows: usize) -> usize {
        match self {
            RowOrder::Same => row,
            RowOrder::RopePairs { heads } => {
                let dim = rows / heads;
                let (head, within) = (row / dim, row % dim);
                head * dim + within % (dim / 2) * 2 + within / (dim / 2)
            }
        }
    }
}

/// One line of a family's table. Patterns know `{base}`, `{layer}` and `{expert}`.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    serves: Serves,
    part: Part,
    role: Role,
    name: &'static str,
    older: Option<&'static str>,
    shape: &'static [Axis],
    presence: Presence,
    transposed: bool,
    gguf: Option<&'static str>,
    shift: f32,
}

impl Entry {
    const fn new(serves: Serves, part: Part, role: Role, name: &'static str, shape: &'static [Axis]) -> Self {
        Self {
            serves,
            part,
            role,
            name,
            older: None,
            shape,
            presence: Presence::Required,
            transposed: false,
            gguf: None,
            shift: 0.0,
        }
    }

    /// A matrix of this role, `shape` as Hugging Face stores it.
    pub const fn matrix(slot: Slot, role: Role, name: &'static str, shape: &'static [Axis]) -> Self {
        Self::new(Serves::One(slot), Part::Weight, role, name, shape)
    }

    /// A matrix that multiplies activations.
    pub const fn linear(slot: Slot, name: &'static str, shape: &'static [Axis]) -> Self {
        Self::matrix(slot, Role::Linear, name, shape)
    }

    /// A normalisation's gain over the residual stream.
    pub const fn gain(slot: Slot, name: &'static str) -> Self {
        Self::new(Serves::One(slot), Part::Weight, Role::Norm, name, &[Axis::Hidden])
    }

    /// A normalisation's shift over the residual stream.
    pub const fn shift(slot: Slot, name: &'static str) -> Self {
        Self::new(Serves::One(slot), Part::Bias, Role::Norm, name, &[Axis::Hidden])
    }

    /// A bias.
    pub const fn bias(slot: Slot, name: &'static str, shape: &'static [Axis]) -> Self {
        Self::new(Serves::One(slot), Part::Bias, Role::Bias, name, shape)
    }

    /// Rows for several slots, one after the other.
    pub const fn fused(mut self, slots: &'static [(Slot, Axis)]) -> Self {
        self.serves = Serves::Rows(slots);
        self
    }

    /// Another shape than the constructor's.
    pub const fn shaped(mut self, shape: &'static [Axis]) -> Self {
        self.shape = shape;
        self
    }

    /// A name that older files use.
    pub const fn older(mut self, name: &'static str) -> Self {
        self.older = Some(name);
        self
    }

    /// May be missing.
    pub const fn optional(mut self) -> Self {
        self.presence = Presence::Optional;
        self
    }

    /// Is there if the config says so, and may be if it says nothing.
    pub const fn if_biased(mut self, stated: fn(Biases) -> Option<bool>) -> Self {
        self.presence = Presence::Stated(stated);
        self
    }

    /// Whether a model of this architecture cannot have it.
    fn is_absent(&self, t: &Transformer) -> bool {
        matches!(self.presence, Presence::Stated(stated) if stated(t.biases) == Some(false))
    }

    /// May be missing if the token embedding is the output projection.
    pub const fn untied(mut self) -> Self {
        self.presence = Presence::Untied;
        self
    }

    /// Hugging Face stores it `[in, out]`.
    pub const fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }

    /// llama.cpp's name. Without `{expert}` where Hugging Face's has it, that tensor stacks the experts.
    pub const fn gguf(mut self, name: &'static str) -> Self {
        self.gguf = Some(name);
        self
    }

    /// llama.cpp stores the value plus this.
    pub const fn plus(mut self, shift: f32) -> Self {
        self.shift = shift;
        self
    }
}

/// All tensors of a family.
#[derive(Debug)]
pub struct Table {
    /// What `{base}` stands for: the canonical spelling first, then others that files have.
    pub bases: &'static [&'static str],
    /// The tensors: those before the layers, those of a layer, those after; in sections, which families share.
    pub sections: &'static [&'static [Entry]],
    /// Whether llama.cpp stores the rows of queries and keys that rotate together next to each other: the families that its
    /// converter derives from llama.
    pub rope_pairs: bool,
    /// Patterns of tensors that files hold and no forward pass reads.
    pub ignored: &'static [&'static str],
}

/// The rows of a tensor that a slot is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The slot.
    pub slot: Slot,
    /// The expert, if the slot is one of a mixture's.
    pub expert: Option<usize>,
    /// Its rows, in Hugging Face's order; of the logical matrix where the tensor is stored transposed.
    pub rows: Range<usize>,
}

/// How llama.cpp stores a tensor. Never transposed: rows are output features.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// The name.
    pub name: String,
    /// Whether the tensor of that name stacks all experts and this is the one at [`Expected::expert`].
    pub stacked: bool,
    /// The order of rows.
    pub rows: RowOrder,
    /// Stored value − Hugging Face's value.
    pub value_shift: f32,
}

/// A tensor that a model of the family has.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// Spellings of the name in Hugging Face's dialect, the canonical one first. A file has one of them.
    pub names: Vec<String>,
    /// The layer, 0 where there is none.
    pub layer: usize,
    /// The expert, if the tensor belongs to a single one.
    pub expert: Option<usize>,
    /// Weight or bias.
    pub part: Part,
    /// What it is for.
    pub role: Role,
    /// The shape as Hugging Face stores it.
    pub shape: Vec<usize>,
    /// Whether it is stored `[in, out]`.
    pub transposed: bool,
    /// Whether a file is broken that has neither it nor other tensors that serve its slots.
    pub required: bool,
    /// The slots that it serves: one, or several by ranges of rows. A stack of experts has its dimensions but the last for
    /// rows.
    pub pieces: Vec<Piece>,
    /// How llama.cpp stores it; `None` where llama.cpp has no use for it.
    pub gguf: Option<Gguf>,
}

impl Expected {
    /// The canonical name.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

impl Table {
    /// The tensors of a model of this architecture, layer by layer.
    pub fn expand(&self, t: &Transformer) -> Vec<Expected> {
        let per_layer = |entry: &&Entry| entry.name.contains("{layer}");
        let entries: Vec<Entry> = self.sections.concat().into_iter().filter(|entry| !entry.is_absent(t)).collect();
        let first = entries.iter().position(|entry| per_layer(&entry)).unwrap_or(entries.len());
        let (before, rest) = entries.split_at(first);
        let mut all: Vec<Expected> = before.iter().map(|entry| self.expected(entry, t, 0, None)).collect();
        for layer in 0..t.layers {
            for entry in rest.iter().filter(per_layer) {
                if entry.name.contains("{expert}") {
                    let experts = Axis::Experts.len(t);
                    all.extend((0..experts).map(|expert| self.expected(entry, t, layer, Some(expert))));
                } else {
                    all.push(self.expected(entry, t, layer, None));
                }
            }
        }
        all.extend(rest.iter().filter(|entry| !per_layer(entry)).map(|entry| self.expected(entry, t, 0, None)));
        all
    }

    /// Whether files hold a tensor of this name that no forward pass reads.
    pub fn ignores(&self, name: &str) -> bool {
        self.bases.iter().filter_map(|base| name.strip_prefix(base)).any(|rest| {
            self.ignored.iter().filter_map(|pattern| pattern.strip_prefix("{base}")).any(|pattern| {
                match pattern.split_once("{layer}") {
                    None => rest == pattern,
                    Some((head, tail)) => rest
                        .strip_prefix(head)
                        .and_then(|middle| middle.strip_suffix(tail))
                        .is_some_and(|layer| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit())),
                }
            })
        })
    }

    fn expected(&self, entry: &Entry, t: &Transformer, layer: usize, expert: Option<usize>) -> Expected {
        let fill = |pattern: &str| {
            let name = pattern.replace("{layer}", &layer.to_string());
            expert.map_or(name.clone(), |expert| name.replace("{expert}", &expert.to_string()))
        };
        let mut names = Vec::new();
        for base in self.bases {
            for pattern in [Some(entry.name), entry.older].into_iter().flatten() {
                let name = fill(&pattern.replace("{base}", base));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let shape: Vec<usize> = entry.shape.iter().map(|axis| axis.len(t)).collect();
        // A stack of experts holds the rows of one after those of another.
        let stack = if entry.shape.first() == Some(&Axis::Experts) && shape.len() == 3 { shape[0] } else { 0 };
        let rows = match (stack, entry.transposed) {
            (0, false) => shape.first(),
            (0, true) => shape.last(),
            _ => shape.get(1),
        };
        let rows = rows.copied().unwrap_or(0);
        let slots: Vec<(Slot, usize)> = match entry.serves {
            Serves::One(slot) => vec![(slot, rows)],
            Serves::Rows(slots) => slots.iter().map(|(slot, axis)| (*slot, axis.len(t))).collect(),
        };
        let experts: Vec<Option<usize>> = if stack > 0 { (0..stack).map(Some).collect() } else { vec![expert] };
        // The first rows of some position embeddings are no position's.
        let mut next = match (&t.position, entry.serves) {
            (Position::Learned { offset }, Serves::One(Slot::PositionEmbedding)) => *offset,
            _ => 0,
        };
        let mut pieces = Vec::with_capacity(experts.len() * slots.len());
        for expert in experts {
            for &(slot, rows) in &slots {
                let end = if slot == Slot::PositionEmbedding { rows } else { next + rows };
                pieces.push(Piece { slot, expert, rows: next..end });
                next = end;
            }
        }
        let rotates = matches!(entry.serves, Serves::One(Slot::AttnQ | Slot::AttnK));
        Expected {
            names,
            layer,
            expert,
            part: entry.part,
            role: entry.role,
            transposed: entry.transposed,
            required: match entry.presence {
                Presence::Required => true,
                Presence::Optional => false,
                Presence::Untied => !t.tied,
                Presence::Stated(stated) => stated(t.biases) == Some(true),
            },
            pieces,
            gguf: entry.gguf.map(|pattern| Gguf {
                name: fill(pattern),
                stacked: expert.is_some() && !pattern.contains("{expert}"),
                rows: if self.rope_pairs && rotates {
                    RowOrder::RopePairs { heads: rows / t.head_dim }
                } else {
                    RowOrder::Same
                },
                value_shift: entry.shift,
            }),
            shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_are_a_permutation_within_heads() {
        let order = RowOrder::RopePairs { heads: 2 };
        let rows: Vec<usize> = (0..8).map(|row| order.canonical(row, 8)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(RowOrder::Same.canonical(5, 8), 5);
    }
}
