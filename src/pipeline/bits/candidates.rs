//! What can be stored how: for each tensor of an output the types that its container has for it, with their bytes. From headers
//! alone.

use std::collections::BTreeMap;
use std::path::Path;

use formats::Format;
use regex::Regex;

use super::knapsack::{self, Cost};
use crate::calibration::shared_input;
use crate::family::{Part, Slot};
use crate::loader::Checkpoint;
use crate::pipeline::Result;
use crate::quantizer::Method;
use crate::quantizer::ggml::mixture::FileType;
use crate::recipe::{BlockOptions, Plan, Recipe, Rule, Scheme, Target};
use crate::runtime::Place;

/// The tensors of an output that can be stored in several ways.
#[derive(Debug)]
pub struct Candidates {
    /// Things of which one way is chosen.
    pub things: Vec<Thing>,
    /// How codes will be looked for.
    method: Method,
    /// Bytes of what has one way only, by tensor; and numbers.
    rest: [u64; 2],
    target: Target,
}

/// Tensors that are stored in the same way.
#[derive(Debug, Clone)]
pub struct Thing {
    /// Their names.
    pub names: Vec<String>,
    /// What their rows serve.
    pub places: Vec<Place>,
    /// Numbers in all of them.
    pub elements: u64,
    /// How they can be stored, by rising bytes.
    pub ways: Vec<Way>,
}

/// A way to store tensors.
#[derive(Debug, Clone)]
pub struct Way {
    /// The scheme; `None` if they are kept as they are.
    pub scheme: Option<Scheme>,
    /// What it makes of them, in words.
    pub encoding: String,
    /// What makes it.
    pub form: Form,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// What it adds to the divergence, if that is known.
    pub harm: f64,
}

/// What makes codes or numbers.
pub type Form = crate::recipe::Treatment;

/// The schemes that tensors can be given, the smallest first.
fn schemes(target: Target) -> Vec<Scheme> {
    use FileType::{IQ4_NL, IQ4_XS, Q2_K, Q3_K_S, Q4_K_S, Q5_0, Q5_K_S, Q6_K, Q8_0};
    match target {
        Target::File(Format::Gguf) => [Q2_K, Q3_K_S, IQ4_XS, Q4_K_S, IQ4_NL, Q5_0, Q5_K_S, Q6_K, Q8_0]
            .map(Scheme::Ggml)
            .into_iter()
            .chain([Scheme::F16])
            .collect(),
        _ => vec![Scheme::W4A16, Scheme::W8A16, Scheme::BF16],
    }
}

/// The recipe that gives everything this scheme.
fn uniform(scheme: Scheme) -> Recipe {
    let blocks = BlockOptions { pure: true, ..BlockOptions::default() };
    Recipe { rules: vec![Rule::scheme(scheme)], blocks, ..Recipe::default() }
}

/// Whether it is known what errors of this slot's matrix do.
fn is_matrix(slot: Slot) -> bool {
    use Slot::{AttnK, AttnOut, AttnQ, AttnV, FfnDown, FfnGate, FfnUp, Head, TokenEmbedding};
    matches!(slot, AttnQ | AttnK | AttnV | AttnOut | FfnGate | FfnUp | FfnDown | Head | TokenEmbedding)
}

impl Candidates {
    /// Looks at an output's headers. Codes will be looked for by `method`.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn new(checkpoint: &Checkpoint, target: Target, method: Method, output: &Path) -> Result<Self> {
        let mut plans = Vec::new();
        for scheme in schemes(target) {
            plans.push((scheme, Plan::new(checkpoint, &uniform(scheme), target, output)?));
        }
        let serves = checkpoint.serves();
        let mut things: Vec<Thing> = Vec::new();
        let mut fused: BTreeMap<Place, usize> = BTreeMap::new();
        let mut rest = [0, 0];
        for (at, first) in plans[0].1.steps.iter().enumerate() {
            let mut ways: Vec<Way> = Vec::new();
            for (scheme, plan) in &plans {
                let step = &plan.steps[at];
                let way = Way {
                    scheme: step.decision.rule.map(|_| *scheme),
                    encoding: step.encoding.name(),
                    form: step.treatment,
                    bytes: step.output_bytes(plan),
                    harm: 0.0,
                };
                // A type that stands in for another is named by itself, if it can be.
                let stands_in = step.decision.note.is_some();
                match ways.iter_mut().find(|known| known.encoding == way.encoding) {
                    None => ways.push(way),
                    Some(known) if !stands_in => *known = way,
                    Some(_) => {}
                }
            }
            let mut places: Vec<Place> = Vec::new();
            for piece in &first.pieces {
                let within =
                    |key: &crate::loader::Piece| key.rows.start >= piece.rows.start && key.rows.end <= piece.rows.end;
                let keys =
                    serves[piece.weight].iter().filter(|((.., part), rows)| *part == Part::Weight && within(rows));
                places.extend(keys.map(|((slot, layer, expert, _), _)| Place {
                    slot: *slot,
                    layer: *layer,
                    expert: *expert,
                }));
            }
            if ways.len() < 2 || places.is_empty() || !places.iter().all(|place| is_matrix(place.slot)) {
                rest[0] += ways.first().map_or(0, |way| way.bytes);
                rest[1] += first.elements();
                continue;
            }
            ways.sort_by_key(|way| way.bytes);
            // vLLM multiplies queries, keys and values, and gate and up, as one matrix of one type.
            let together = (target == Target::Folder).then(|| shared_input(places[0]));
            let known = together.and_then(|place| fused.get(&place).copied());
            match known.map(|known| &mut things[known]) {
                Some(thing) if thing.ways.len() == ways.len() => {
                    thing.names.push(first.name.clone());
                    thing.places.append(&mut places);
                    thing.elements += first.elements();
                    thing.ways.iter_mut().zip(ways).for_each(|(all, own)| all.bytes += own.bytes);
                }
                _ => {
                    if let Some(place) = together {
                        fused.insert(place, things.len());
                    }
                    let (names, elements) = (vec![first.name.clone()], first.elements());
                    things.push(Thing { names, places, elements, ways });
                }
            }
        }
        Ok(Self { things, method, rest, target })
    }

    /// Whether codes will make up for each other's errors.
    pub fn feeds_back(&self) -> bool {
        self.method.calibrates()
    }

    /// The smallest choice.
    pub fn smallest(&self) -> Vec<usize> {
        knapsack::smallest(&self.costs())
    }

    /// The next smaller way of a thing: of equally many bytes the least harmful.
    pub fn smaller(&self, thing: usize, way: usize) -> Option<usize> {
        let ways = &self.things[thing].ways;
        let less = (0..ways.len()).filter(|other| ways[*other].bytes < ways[way].bytes);
        less.max_by(|a, b| ways[*a].bytes.cmp(&ways[*b].bytes).then(ways[*b].harm.total_cmp(&ways[*a].harm)))
    }

    /// The choice that harms least within so many bytes of these tensors.
    pub fn within(&self, bytes: u64) -> Vec<usize> {
        knapsack::within(&self.costs(), bytes)
    }

    /// The choice of the fewest bytes that adds up to so much harm.
    pub fn for_harm(&self, harm: f64) -> Vec<usize> {
        knapsack::for_harm(&self.costs(), harm)
    }

    /// Bytes of these tensors, and the harm, of a choice.
    pub fn total(&self, choice: &[usize]) -> Cost {
        knapsack::total(&self.costs(), choice)
    }

    /// Bytes that these tensors may take if all tensors shall take so many bits a number.
    pub fn bytes_of_bits(&self, bits: f64) -> u64 {
        let elements = self.rest[1] + self.things.iter().map(|thing| thing.elements).sum::<u64>();
        ((elements as f64 * bits / 8.0) as u64).saturating_sub(self.rest[0])
    }

    /// Bits a number of all tensors.
    pub fn bits(&self, choice: &[usize]) -> f64 {
        let elements = self.rest[1] + self.things.iter().map(|thing| thing.elements).sum::<u64>();
        8.0 * (self.rest[0] + self.total(choice).bytes) as f64 / elements.max(1) as f64
    }

    /// The recipe of a choice: a rule for each tensor.
    pub fn recipe(&self, choice: &[usize]) -> Recipe {
        let mut rules = Vec::new();
        for (thing, way) in self.things.iter().zip(choice) {
            for name in &thing.names {
                let pattern = Regex::new(&format!("^{}$", regex::escape(name))).ok();
                rules.push(Rule { name: pattern, role: None, scheme: thing.ways[*way].scheme, prune: None });
            }
        }
        let blocks = BlockOptions {
            pure: matches!(self.target, Target::File(Format::Gguf)),
            method: self.method,
            ..BlockOptions::default()
        };
        Recipe { rules, blocks, ..Recipe::default() }
    }

    fn costs(&self) -> Vec<Vec<Cost>> {
        let cost = |way: &Way| Cost { bytes: way.bytes, harm: way.harm };
        self.things.iter().map(|thing| thing.ways.iter().map(cost).collect()).collect()
    }
}
