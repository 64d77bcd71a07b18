//! What a model has to do for a token: which bytes it must read, and how often it must multiply.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::encoding::Rows;
use crate::family::{Architecture, Part, Slot, Transformer};
use crate::loader::{Checkpoint, Fetch, Piece};
use crate::runtime::kernels::roof::Arithmetic;
use crate::runtime::linear::from_rows;
use crate::runtime::{Error, Method};

use super::Peaks;

/// What a model has to do for a token, at the least.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Work {
    /// Bytes of the weights that one token touches: of embeddings one row, of experts those that see a token, everything else
    /// as a whole.
    pub weight_bytes: u64,
    /// Multiplications and additions for each token, by the arithmetic that its matrices are multiplied in.
    operations: BTreeMap<Arithmetic, f64>,
    /// The same for the output projection, which only the last token of a prompt goes through.
    head: BTreeMap<Arithmetic, f64>,
    /// The encodings of matrices, and how they are multiplied.
    pub methods: Vec<Multiplied>,
}

/// How the matrices of one encoding are multiplied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Multiplied {
    /// The encoding.
    pub encoding: String,
    /// The loop that decodes.
    pub decode: &'static str,
    /// The loop for many tokens.
    pub prefill: &'static str,
    /// The kind of numbers.
    pub arithmetic: String,
}

impl Work {
    /// What a checkpoint of a known family asks for.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let mut work = Self::default();
        let Some(family) = checkpoint.family() else { return Ok(work) };
        let transformer = match &family.architecture {
            Architecture::Transformer(t) => Some(&**t),
            Architecture::Chain(_) => None,
        };
        let mut methods: BTreeMap<String, Method> = BTreeMap::new();
        let mut bytes = 0.0;
        for ((slot, _, expert, part), pieces) in checkpoint.slots() {
            let Some(use_) = Use::of(slot, expert, part, transformer) else { continue };
            let elements: u64 = pieces.iter().map(|piece| elements(checkpoint, piece)).sum();
            let stored: f64 = pieces.iter().map(|piece| stored_bytes(checkpoint, piece)).sum();
            let row = pieces.iter().map(|piece| piece.rows.end - piece.rows.start).sum::<u64>().max(1) as f64;
            bytes += stored * use_.share + if use_.looked_up { stored / row } else { 0.0 };
            if use_.share == 0.0 || part == Part::Bias || !use_.multiplied {
                continue;
            }
            let weight = &checkpoint.weights()[pieces[0].weight];
            let method = match methods.get(&weight.encoding.name()) {
                Some(method) => *method,
                None => {
                    let view = checkpoint.view(pieces, Fetch::Now).map_err(|e| Error::Weights(Box::new(e)))?;
                    let method = from_rows(Arc::new(view) as Arc<dyn Rows>).method();
                    methods.insert(weight.encoding.name(), method);
                    method
                }
            };
            let is_head = slot == Slot::Head || slot == Slot::TokenEmbedding;
            let side = if is_head { &mut work.head } else { &mut work.operations };
            *side.entry(method.arithmetic).or_default() += 2.0 * elements as f64 * use_.share;
        }
        work.weight_bytes = bytes.round() as u64;
        work.methods = methods
            .into_iter()
            .map(|(encoding, Method { one, many, arithmetic })| Multiplied {
                encoding,
                decode: one,
                prefill: many,
                arithmetic: arithmetic.to_string(),
            })
            .collect();
        Ok(work)
    }

    /// The shortest time, by the machine's peak arithmetic, for `sequences` of `tokens` each, in seconds. `heads` of the tokens
    /// go through the output projection. Attention's products are f32.
    pub fn least_seconds(
        &self,
        transformer: Option<&Transformer>,
        sequences: usize,
        tokens: usize,
        heads: usize,
        peaks: &Peaks,
    ) -> f64 {
        let seconds = |operations: &BTreeMap<Arithmetic, f64>, times: usize| -> f64 {
            operations.iter().map(|(kind, n)| n * times as f64 / peaks.operations(*kind)).sum()
        };
        let attention = transformer.map_or(0.0, |t| {
            let seen = |window: &Option<usize>| -> f64 {
                let of = |i: usize| if t.causal { (i + 1).min(window.unwrap_or(usize::MAX)) } else { tokens };
                (0..tokens).map(of).sum::<usize>() as f64
            };
            let pairs: f64 = t.windows.iter().map(seen).sum();
            // q · k and the sum of values, a multiplication and an addition each.
            4.0 * pairs * (t.heads * t.head_dim) as f64 * sequences as f64
        });
        seconds(&self.operations, sequences * tokens)
            + seconds(&self.head, heads)
            + attention / peaks.operations(Arithmetic::Float)
    }

    /// Bytes that a token touches when it is decoded, with `past` positions in a cache of 16 bits a number.
    pub fn decode_bytes(&self, transformer: &Transformer, past: f64) -> f64 {
        let t = transformer;
        let position = (2 * 2 * t.kv_heads * t.head_dim) as f64;
        let seen = |window: &Option<usize>| window.map_or(past, |window| past.min(window as f64));
        self.weight_bytes as f64 + t.windows.iter().map(seen).sum::<f64>() * position
    }
}

/// What a token does with a slot.
#[derive(Debug, Clone, Copy)]
struct Use {
    /// The share of it that a token reads as a whole.
    share: f64,
    /// Whether one row is looked up.
    looked_up: bool,
    /// Whether it is a matrix that multiplies.
    multiplied: bool,
}

impl Use {
    /// `None` where a token does not touch the slot.
    fn of(slot: Slot, expert: Option<usize>, part: Part, t: Option<&Transformer>) -> Option<Self> {
        let whole = Self { share: 1.0, looked_up: false, multiplied: part == Part::Weight };
        let tied = t.is_some_and(|t| t.tied && t.causal);
        Some(match slot {
            Slot::Pooler => return None,
            Slot::Head if tied && part == Part::Weight => return None,
            Slot::TokenEmbedding => Self { share: if tied { 1.0 } else { 0.0 }, looked_up: true, multiplied: tied },
            Slot::PositionEmbedding | Slot::TypeEmbedding => Self { share: 0.0, looked_up: true, multiplied: false },
            Slot::EmbeddingNorm
            | Slot::AttnNorm
            | Slot::AttnQNorm
            | Slot::AttnKNorm
            | Slot::AttnOutNorm
            | Slot::FfnNorm
            | Slot::FfnOutNorm
            | Slot::FinalNorm => Self { multiplied: false, ..whole },
            _ => match (expert, t.and_then(|t| t.experts)) {
                (Some(_), Some(experts)) => {
                    Self { share: experts.per_token as f64 / experts.count.max(1) as f64, ..whole }
                }
                _ => whole,
            },
        })
    }
}

fn elements(checkpoint: &Checkpoint, piece: &Piece) -> u64 {
    let weight = &checkpoint.weights()[piece.weight];
    (piece.rows.end - piece.rows.start) * if piece.transpose { weight.rows } else { weight.cols }
}

fn stored_bytes(checkpoint: &Checkpoint, piece: &Piece) -> f64 {
    let all = checkpoint.weights()[piece.weight].elements().max(1) as f64;
    checkpoint.stored_bytes(piece.weight) as f64 * elements(checkpoint, piece) as f64 / all
}
