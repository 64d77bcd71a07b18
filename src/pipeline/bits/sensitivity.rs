//! What storing a matrix in a type does to the model's predictions, before it is done.
//!
//! To second order a change E of a matrix adds ½ tr(G E H Eᵀ) to the KL divergence of each prediction, G being the Fisher
//! information of what the matrix gives and H = E[x xᵀ] (see [`crate::calibration::fisher`]). Rounding errors of different
//! numbers do not go together, so that in the mean only the diagonals count: ½ Σ G_ii H_jj E_ij². Where codes make up for the
//! errors of those before them, what is left of an error of column j is what the columns after it cannot make up for: instead
//! of H_jj counts D_jj of H = L D Lᵀ (Frantar et al., 2022; Chee et al., 2023), and for an embedding, whose inputs are one-hot,
//! the same of G. Harms of several matrices add up.
//!
//! E is that of the type's own rounding with searched scales, seen on some rows of each matrix.

use std::collections::BTreeMap;
use std::sync::Arc;

use formats::Dtype;

use super::candidates::{Candidates, Way};
use crate::calibration::{Fisher, Gatherer, Inputs, Wanted, fisher, shared_input};
use crate::encoding::plain::{self, Real};
use crate::family::{Architecture, Part, Slot, Transformer};
use crate::job::Job;
use crate::linear_algebra;
use crate::loader::{Checkpoint, Fetch, Scratch};
use crate::pipeline::Result;
use crate::quantizer::least_squares::{self, Form};
use crate::quantizer::{Band, Blocks, Columns, Numbers};
use crate::recipe::Treatment;
use crate::runtime::{self, Model, Place, Walk};
use crate::threads::Pool;

/// Stage of progress.
const STAGE: &str = "sensitivity";

/// The most rows of a matrix that are looked at.
const ROWS: usize = 512;

/// Part of the mean diagonal that is added to it before H is factorised, as where codes are chosen.
const DAMPING: f64 = 0.05;

/// Fills in what each way of each candidate does.
///
/// # Errors
/// A model that cannot be run, weights that cannot be read, an interruption.
pub fn observe(
    checkpoint: &Arc<Checkpoint>,
    candidates: &mut Candidates,
    windows: &[Vec<u32>],
    job: &Job,
) -> Result<()> {
    let t = match checkpoint.family().map(|family| &family.architecture) {
        Some(Architecture::Transformer(t)) => t,
        _ => return Err(runtime::Error::Family { expected: "a transformer" }.into()),
    };
    let tokens = windows.iter().map(Vec::len).sum();
    let fisher = fisher::observe(checkpoint, windows, fisher::Options::affordable(t, tokens), job)?;
    let model = runtime::load(checkpoint)?;
    let feeds_back = candidates.feeds_back();
    let mut look = Look { checkpoint, candidates, fisher: &fisher, feeds_back, job };
    let models = [&model];
    let mut walk = Walk::begin(&models, windows, job)?;
    job.progress.begin(STAGE, (walk.tokens() * (t.layers + 1)) as u64);
    let looked = look.all(&mut walk, &model, t, windows);
    job.progress.end();
    looked
}

/// What is known of a matrix's inputs and results.
struct Known {
    /// How much an error of each column counts.
    columns: Vec<f64>,
    /// How much each column is worth where scales are searched.
    squares: Vec<f32>,
    /// How much an error of each row counts.
    rows: Vec<f64>,
}

struct Look<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    candidates: &'a mut Candidates,
    fisher: &'a Fisher,
    feeds_back: bool,
    job: &'a Job,
}

impl Look<'_> {
    fn all(&mut self, walk: &mut Walk<'_>, model: &Model, t: &Transformer, windows: &[Vec<u32>]) -> Result<()> {
        self.embedding(t, windows)?;
        for layer in 0..t.layers {
            let passes = self.passes(layer);
            for (number, wanted) in passes.iter().enumerate() {
                let mut gatherer = Gatherer::new(wanted.clone(), self.job.pool.clone());
                if number + 1 < passes.len() {
                    walk.peek(model, 0, layer, &mut gatherer)?;
                } else {
                    walk.block(layer, &mut gatherer)?;
                }
                for (place, inputs) in gatherer.finish() {
                    self.inputs(place, inputs)?;
                }
            }
            if passes.is_empty() {
                walk.block(layer, &mut runtime::Unobserved)?;
            }
        }
        // Where it is the token embedding, errors of that count twice.
        let head = Place::new(if t.tied { Slot::TokenEmbedding } else { Slot::Head }, 0);
        if t.causal && self.candidates.things.iter().any(|thing| thing.places.contains(&head)) {
            let mut inputs = Inputs::new(t.hidden, self.wanted());
            let pool = self.job.pool.clone();
            walk.outputs(|_, hidden| inputs.add(hidden[0], &pool))?;
            let rows = self.fisher.head().to_vec();
            let known = self.known(inputs, rows, 1.0);
            self.place(head, known)?;
        }
        Ok(())
    }

    fn wanted(&self) -> Wanted {
        if self.feeds_back { Wanted::Products } else { Wanted::Squares }
    }

    /// The inputs of a layer's candidates, those together that are gathered in one pass.
    fn passes(&self, layer: usize) -> Vec<BTreeMap<Place, Wanted>> {
        let mut passes: Vec<BTreeMap<Place, Wanted>> = Vec::new();
        let mut room = 0;
        let places = self.candidates.things.iter().flat_map(|thing| &thing.places);
        let of_layer = places.filter(|place| place.layer == layer && is_of_block(place.slot));
        let inputs: BTreeMap<Place, usize> =
            of_layer.filter_map(|place| Some((shared_input(*place), self.columns(*place)?))).collect();
        for (place, cols) in inputs {
            let bytes = Inputs::bytes(cols, self.wanted());
            match passes.last_mut() {
                Some(pass) if bytes <= room => {
                    room -= bytes;
                    pass.insert(place, self.wanted());
                }
                _ => {
                    room = (self.job.memory / 2).saturating_sub(bytes);
                    passes.push([(place, self.wanted())].into());
                }
            }
        }
        passes
    }

    fn columns(&self, place: Place) -> Option<usize> {
        let pieces = self.checkpoint.slot(place.slot, place.layer, place.expert, Part::Weight)?;
        let weight = &self.checkpoint.weights()[pieces.first()?.weight];
        Some((if pieces[0].transpose { weight.rows } else { weight.cols }) as usize)
    }

    /// Every matrix with this input.
    fn inputs(&mut self, input: Place, inputs: Inputs) -> Result<()> {
        let known = self.known(inputs, Vec::new(), 1.0);
        let places: Vec<Place> = self.candidates.things.iter().flat_map(|thing| thing.places.clone()).collect();
        for place in places.into_iter().filter(|place| shared_input(*place) == input && is_of_block(place.slot)) {
            let Some(g) = self.fisher.diagonal(place) else { continue };
            let share = self.fisher.share(place);
            let rows = g.iter().map(|g| g * share).collect();
            self.place(place, Known { rows, columns: known.columns.clone(), squares: known.squares.clone() })?;
        }
        Ok(())
    }

    fn known(&self, inputs: Inputs, rows: Vec<f64>, share: f64) -> Known {
        let (cols, count) = (inputs.cols, inputs.rows.max(1) as f64);
        let squares: Vec<f64> = inputs.squares().iter().map(|sum| sum / count * share).collect();
        let left = match self.feeds_back {
            true => inputs.hessian(&self.job.pool).and_then(|hessian| left_over(&hessian, cols)),
            false => None,
        };
        let narrow = squares.iter().map(|x| *x as f32).collect();
        Known { columns: left.unwrap_or(squares), squares: narrow, rows }
    }

    /// The table that tokens are looked up in: an error of a row counts as often as its token is seen.
    fn embedding(&mut self, t: &Transformer, windows: &[Vec<u32>]) -> Result<()> {
        let place = Place::new(Slot::TokenEmbedding, 0);
        if !self.candidates.things.iter().any(|thing| thing.places.contains(&place)) {
            return Ok(());
        }
        let Some(g) = self.fisher.embedding()? else { return Ok(()) };
        let diagonal: Vec<f64> = (0..t.hidden).map(|i| g[i * t.hidden + i]).collect();
        let left = if self.feeds_back { left_over(&g, t.hidden) } else { None };
        let mut rows = vec![0.0; t.vocab];
        let tokens: usize = windows.iter().map(Vec::len).sum();
        for token in windows.iter().flatten() {
            if let Some(row) = rows.get_mut(*token as usize) {
                *row += 1.0 / tokens.max(1) as f64;
            }
        }
        let squares = diagonal.iter().map(|g| *g as f32).collect();
        self.place(place, Known { columns: left.unwrap_or(diagonal), squares, rows })
    }

    /// Adds what each way does to a matrix.
    fn place(&mut self, place: Place, known: Known) -> Result<()> {
        self.job.cancel.check()?;
        let Some(pieces) = self.checkpoint.slot(place.slot, place.layer, place.expert, Part::Weight) else {
            return Ok(());
        };
        let view = self.checkpoint.view(pieces, Fetch::Bands)?;
        let (rows, cols) = (known.rows.len(), known.columns.len());
        let step = rows.div_ceil(ROWS).max(1);
        let chosen: Vec<usize> = (0..rows).step_by(step).collect();
        let mut w = vec![0f32; chosen.len() * cols];
        for (row, out) in chosen.iter().zip(w.chunks_exact_mut(cols)) {
            view.try_read(*row, out, &mut Scratch::default())?;
        }
        let input = self.checkpoint.weights()[pieces[0].weight].float_dtype().unwrap_or(Dtype::F32);
        for thing in &mut self.candidates.things {
            let times = thing.places.iter().filter(|own| **own == place).count();
            if times == 0 {
                continue;
            }
            for way in &mut thing.ways {
                let errors = errors(way, &w, &known, input, &self.job.pool);
                // Rows that were not looked at err like those that were.
                let seen: f64 = chosen.iter().zip(&errors).map(|(row, error)| known.rows[*row] * error).sum();
                let weight: f64 = chosen.iter().map(|row| known.rows[*row]).sum();
                let mean = if weight > 0.0 { seen / weight } else { 0.0 };
                way.harm += 0.5 * mean * known.rows.iter().sum::<f64>();
            }
        }
        Ok(())
    }
}

/// Whether text is shown to matrices of this slot in a block.
fn is_of_block(slot: Slot) -> bool {
    use Slot::{AttnK, AttnOut, AttnQ, AttnV, FfnDown, FfnGate, FfnUp};
    matches!(slot, AttnQ | AttnK | AttnV | AttnOut | FfnGate | FfnUp | FfnDown)
}

/// D of L D Lᵀ, from the last column to the first: of each column what those after it cannot make up for.
fn left_over(hessian: &[f64], n: usize) -> Option<Vec<f64>> {
    let mean = (0..n).map(|i| hessian[i * n + i]).sum::<f64>() / n.max(1) as f64;
    let factor = linear_algebra::inverse_factor(hessian, n, DAMPING * mean)?;
    Some((0..n).map(|i| (1.0 / factor[i * n + i]).powi(2)).collect())
}

/// Of each row, the sum of squared errors, weighed by column.
fn errors(way: &Way, w: &[f32], known: &Known, input: Dtype, pool: &Pool) -> Vec<f64> {
    let cols = known.columns.len();
    let error = |row: &[f32], stored: &[f32]| -> f64 {
        let terms = row.iter().zip(stored).zip(&known.columns);
        terms.map(|((w, q), weight)| (f64::from(*w) - f64::from(*q)).powi(2) * weight).sum()
    };
    let form = match way.form {
        Treatment::Copy => return vec![0.0; w.len() / cols],
        Treatment::Cast(dtype) => {
            return pool.map(w.len() / cols, |i| {
                let row = &w[i * cols..(i + 1) * cols];
                let mut bytes = vec![0; cols * (dtype.block_bits() / 8) as usize];
                let mut stored = vec![0f32; cols];
                plain::encode(row, dtype, &mut bytes);
                f32::decode(dtype, &bytes, &mut stored);
                error(row, &stored)
            });
        }
        Treatment::Int8 => Form::Int8Rows,
        Treatment::Int8Cols => unreachable!("graphs have no choice of types"),
        Treatment::Packed { bits, group } => Form::Packed { bits, group },
        Treatment::Fp8 => Form::Fp8Rows,
        Treatment::Blocks(dtype) => Form::Blocks(dtype),
    };
    let quantizer = match form {
        Form::Blocks(dtype) => {
            let importance = Some(Columns { experts: vec![known.squares.clone()], rows: u64::MAX });
            Box::new(Blocks { dtype, search: true, importance }) as Box<dyn crate::quantizer::Quantizer>
        }
        form => form.quantizer(true),
    };
    const BAND: usize = 16;
    let bands = pool.map((w.len() / cols).div_ceil(BAND), |band| {
        let w = &w[band * BAND * cols..w.len().min((band + 1) * BAND * cols)];
        let rows = (w.len() / cols) as u64;
        let parts = quantizer.encoding(input).parts("", &[rows, cols as u64], rows, cols as u64);
        let mut parts: Vec<Vec<u8>> = parts
            .iter()
            .flatten()
            .take(2)
            .map(|part| {
                let bytes = part.bytes_of(&(0..rows));
                vec![0; (bytes.end - bytes.start) as usize]
            })
            .collect();
        quantizer.encode(Band { numbers: Numbers::F32(w), first_row: 0, cols, dtype: input }, &mut parts);
        let stored = least_squares::values(form, input, cols, &parts, pool);
        w.chunks_exact(cols)
            .zip(stored.chunks_exact(cols))
            .map(|(row, stored)| error(row, stored))
            .collect::<Vec<f64>>()
    });
    bands.concat()
}
