//! `compress MODEL --target-size SIZE`, `--target-bits B` and `--max-kl X` without a scheme: types are chosen for each tensor.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use formats::Format;

use super::args::{CompressArgs, RecipeArgs, To};
use super::{Failure, compress, progress, write};
use crate::calibration::{self, Calibration, Origin};
use crate::job::Job;
use crate::loader::Checkpoint;
use crate::pipeline;
use crate::pipeline::bits::{self, Budget, Candidates, Chosen};
use crate::quantizer::Method;
use crate::recipe::Target;

/// What types are chosen for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    /// The least divergence within a size.
    Within(Budget),
    /// The smallest file whose divergence is at most so much.
    Divergence(f64),
}

/// What flags ask for, if they ask for types to be chosen.
pub fn asked(args: &CompressArgs) -> Option<Wanted> {
    let size = args.budget.target_size.map(|size| Wanted::Within(Budget::Bytes(size.as_u64())));
    let bits = args.budget.target_bits.map(|bits| Wanted::Within(Budget::Bits(bits)));
    let recipe = &args.recipe;
    let scheme = recipe.scheme.is_some() || recipe.recipe.is_some();
    let flag = recipe.int8 || recipe.int4 || recipe.f16 || recipe.bf16;
    let parts = recipe.prune_heads.is_some() || recipe.prune_neurons.is_some() || recipe.prune_layers.is_some();
    // With something else to do, a largest divergence is a limit for it.
    let most = args.write.check.max_kl.filter(|_| !(scheme || flag || parts || recipe.prune.is_some()));
    size.or(bits).or(most.map(Wanted::Divergence))
}

pub fn run(args: &CompressArgs, wanted: Wanted) -> Result<(), Failure> {
    let Some(model) = &args.model else { return Err(Failure::Usage("no model given".into())) };
    refuse_others(&args.recipe)?;
    let Some(text) = &args.calibration.calibrate else {
        return Err(Failure::Usage(
            "types are chosen by what a text shows; give one with --calibrate, or choose one type with --scheme".into(),
        ));
    };
    if args.calibration.resume {
        return Err(Failure::Usage("--resume is for one scheme; types that are chosen are chosen anew".into()));
    }
    if args.recipe.method == Some(Method::Awq) {
        return Err(Failure::Usage(
            "--method awq is for one scheme; expected --method best, gptq, search or rtn where types are chosen".into(),
        ));
    }
    let original = write::open(model, &args.write.common)?;
    let (target, output) = target(&original, args.budget.to, args.output.as_deref())?;
    let method = args.recipe.method.unwrap_or(if args.recipe.search { Method::Search } else { Method::Best });
    let job = progress::job_with_sums(&args.write.common)?;
    let started = Instant::now();
    let mut candidates = Candidates::new(&original, target, method, &output)?;
    if let Wanted::Within(budget) = wanted {
        bits::refuse_unreachable(&original, &candidates, budget, target, &output)?;
    }
    pipeline::refuse_output(&original, target, &output, args.write.force || args.write.dry_run)?;
    let tokens = args.calibration.calibrate_tokens as usize;
    let options = calibration::Options { text: text.clone(), tokens, context: None };
    let windows = calibration::windows(&original, &options)?;
    bits::observe(&original, &mut candidates, &windows, &job)?;
    let calibration = Calibration { from: Origin::Text(options), record: None };
    let search = Search { args, original: &original, candidates, target, output, calibration, job, started };
    match wanted {
        Wanted::Within(budget) => {
            let chosen = bits::within(&original, &search.candidates, budget, target, &search.output)?;
            search.publish(chosen)
        }
        Wanted::Divergence(most) => search.for_divergence(most),
    }
}

/// Flags that say what becomes of weights, which is what is looked for.
fn refuse_others(args: &RecipeArgs) -> Result<(), Failure> {
    let given = [
        (args.prune.is_some(), "--prune"),
        (args.prune_heads.is_some(), "--prune-heads"),
        (args.prune_neurons.is_some(), "--prune-neurons"),
        (args.prune_layers.is_some(), "--prune-layers"),
        (!args.keep.is_empty(), "--keep"),
        (args.embeddings, "--embeddings"),
        (args.group_size.is_some(), "--group-size"),
        (args.pure, "--pure"),
        (args.imatrix.is_some(), "--imatrix"),
    ];
    match given.iter().find(|(given, _)| *given) {
        Some((_, flag)) => {
            Err(Failure::Usage(format!("{flag}: types are chosen for all tensors; give a scheme with {flag}")))
        }
        None => Ok(()),
    }
}

/// What is written, and where: GGUF unless something else is said.
fn target(checkpoint: &Checkpoint, to: Option<To>, output: Option<&Path>) -> Result<(Target, PathBuf), Failure> {
    let extension = output.and_then(Path::extension).and_then(|ext| ext.to_str());
    let gguf = match (to, extension) {
        (Some(To::Gguf), _) | (None, Some("gguf")) => true,
        (Some(To::Safetensors), _) | (None, Some("safetensors")) => false,
        (None, _) => output.is_none(),
    };
    let is_folder = checkpoint.files().whole_folder;
    let target = match (gguf, is_folder) {
        (true, _) => Target::File(Format::Gguf),
        (false, true) if extension != Some("safetensors") => Target::Folder,
        (false, _) => Target::File(Format::Safetensors),
    };
    if gguf && extension.is_some_and(|ext| ext != "gguf") || gguf && output.is_some() && extension.is_none() {
        return Err(Failure::Usage("--to gguf: expected an output that ends in .gguf. Change -o".into()));
    }
    let output = output.map_or_else(|| compress::beside(checkpoint, target, "mixed"), Path::to_owned);
    Ok((target, output))
}

/// A search for types.
struct Search<'a> {
    args: &'a CompressArgs,
    original: &'a Arc<Checkpoint>,
    candidates: Candidates,
    target: Target,
    output: PathBuf,
    calibration: Calibration,
    job: Job,
    started: Instant,
}

/// Files that are made at most until one is as large as it may be.
const ATTEMPTS: usize = 8;

/// How near to what is asked for a file has to come.
const NEAR: f64 = 0.95;

/// Tensors of which a smaller type is tried at the end.
const LARGEST: usize = 3;

impl Search<'_> {
    fn input(&self) -> write::Input<'_> {
        write::Input {
            original: self.original,
            reshaped: None,
            resume: false,
            without: self.args.calibration.without.iter().map(|step| (*step).into()).collect(),
            started: self.started,
        }
    }

    fn calibration(&self) -> Option<&Calibration> {
        Some(&self.calibration).filter(|_| self.candidates.feeds_back())
    }

    fn plan(&self, choice: Vec<usize>) -> Result<Chosen, Failure> {
        Ok(bits::plan(self.original, &self.candidates, choice, self.target, &self.output)?)
    }

    /// Makes the file of a choice, or shows its plan.
    fn publish(&self, Chosen { recipe, plan, .. }: Chosen) -> Result<(), Failure> {
        write::run(&self.input(), &recipe, plan, self.calibration(), &self.output, &self.args.write, &self.job)
    }

    /// The divergence of the file of a choice, which is made and removed.
    fn measure(&self, choice: &[usize]) -> Result<f64, Failure> {
        let Chosen { recipe, plan, .. } = self.plan(choice.to_vec())?;
        let (input, args) = (self.input(), &self.args.write);
        let made = write::make(&input, &recipe, plan, self.calibration(), &self.output, args, &self.job)?;
        made.divergence().ok_or_else(|| {
            Failure::Usage(
                "--max-kl without a scheme is for decoders whose predictions can be compared; give a --scheme".into(),
            )
        })
    }

    /// Makes the smallest file whose measured divergence is at most `most`.
    fn for_divergence(&self, most: f64) -> Result<(), Failure> {
        if self.args.write.dry_run {
            return self.publish(self.plan(self.candidates.for_harm(most))?);
        }
        if self.args.write.no_check {
            return Err(Failure::Usage(
                "--max-kl: without a check nobody knows the divergence; leave out --no-check".into(),
            ));
        }
        // What is foretold stands in a ratio to what is measured that differs little from choice to choice.
        let mut foretold = most;
        let mut best: Option<(Vec<usize>, u64)> = None;
        let mut tried: Vec<Vec<usize>> = Vec::new();
        for _ in 0..ATTEMPTS {
            let choice = self.candidates.for_harm(foretold);
            if tried.contains(&choice) {
                break;
            }
            let kl = self.measure(&choice)?;
            let total = self.candidates.total(&choice);
            tried.push(choice.clone());
            let holds = kl <= most;
            if holds && best.as_ref().is_none_or(|(_, bytes)| total.bytes < *bytes) {
                best = Some((choice, total.bytes));
            }
            if holds && kl >= NEAR * most {
                break;
            }
            // A little inside of it, so that the next one holds.
            foretold = total.harm * (0.98 * most / kl.max(f64::MIN_POSITIVE)).clamp(1e-3, 1e3);
        }
        let Some((mut choice, _)) = best else {
            return self.publish(self.plan(self.candidates.for_harm(0.0))?);
        };
        // No type one step smaller holds for the largest tensors.
        let mut largest: Vec<usize> = (0..self.candidates.things.len()).collect();
        largest.sort_by_key(|thing| std::cmp::Reverse(self.candidates.things[*thing].elements));
        for thing in largest.into_iter().take(LARGEST) {
            while let Some(way) = self.candidates.smaller(thing, choice[thing]) {
                let mut smaller = choice.clone();
                smaller[thing] = way;
                if self.measure(&smaller)? > most {
                    break;
                }
                choice = smaller;
            }
        }
        self.publish(self.plan(choice)?)
    }
}
