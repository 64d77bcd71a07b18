//! Every dtype in every rank, to every container, by every scheme: written whole, or refused in words. Nothing panics.

use std::path::Path;

use formats::gguf::{Metadata, Value as Meta};
use formats::{Dtype, Format, Kind, Layout, TensorMeta};
use modelpress::check::values;
use modelpress::job::Job;
use modelpress::loader::{Checkpoint, Options};
use modelpress::pipeline;
use modelpress::recipe::{Plan, Recipe, Rule, Scheme, Target};
use regex::Regex;

use crate::support::{copy_folder, fixture, tensors, write_safetensors};

fn all_dtypes() -> Vec<Dtype> {
    let plain = ["BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "U16", "U32", "C64", "U64"];
    let plain = plain.iter().map(|name| Dtype::from_name(name).unwrap());
    plain.chain((0..64).filter_map(Dtype::from_ggml_id)).collect()
}

/// Lengths that fill blocks, none, one, odd ones.
fn shapes(dtype: Dtype) -> Vec<Vec<u64>> {
    let n = dtype.block_elements();
    let mut all = vec![vec![], vec![0], vec![n], vec![3 * n], vec![8 * n], vec![0, n], vec![4, 0], vec![1, n]];
    all.extend([vec![2, 3 * n], vec![4, 2 * n], vec![3, 5 * n], vec![2, 4, n], vec![2, 0, n], vec![2, 3, 2, 2 * n]]);
    all.retain(|shape| dtype.bytes_of(shape.iter().product()).is_some());
    all
}

/// A file with one tensor, if the container has its dtype.
fn write_one(path: &Path, format: Format, meta: &TensorMeta) -> Option<()> {
    let metas = std::slice::from_ref(meta);
    let layout: Layout = match format {
        Format::Gguf => {
            let mut keys = Metadata::default();
            keys.push("general.architecture", Meta::String("other".into()));
            formats::gguf::layout(path, metas, &keys).ok()?
        }
        _ if meta.dtype.is_block() => return None,
        _ => formats::safetensors::layout(path, metas, &Default::default()).ok()?,
    };
    // A pattern that is a finite number in every dtype, and a truth value.
    let mut bytes = vec![if meta.dtype == Dtype::Bool { 1 } else { 0x11 }; layout.bytes as usize];
    for (at, header) in &layout.fixed {
        bytes[*at as usize..][..header.len()].copy_from_slice(header);
    }
    std::fs::write(path, bytes).unwrap();
    Some(())
}

/// What conversions and schemes make of a tensor: the latter also where it is not of a role that they take by themselves.
fn recipes() -> Vec<Recipe> {
    let mut all = vec![Recipe::conversion(None, false), Recipe::conversion(None, true)];
    all.extend([Scheme::F32, Scheme::F16, Scheme::BF16].map(|to| Recipe::conversion(Some(to), true)));
    let every_name = Regex::new("").unwrap();
    for scheme in Scheme::all() {
        all.push(Recipe::from_flags(scheme, &[], true).unwrap());
        let mut named = Recipe::from_flags(scheme, &[], true).unwrap();
        named.rules.insert(0, Rule { name: Some(every_name.clone()), ..Rule::scheme(scheme) });
        all.push(named);
    }
    all
}

/// Plans, and writes if `write`; whether there is such a plan. What is written has to be whole, and the original's numbers where
/// nothing was to be rounded.
fn meets(model: &Checkpoint, recipe: &Recipe, target: Target, out: &Path, write: bool, what: &str) -> bool {
    let name = match target {
        Target::File(format) => out.join(format!("x.{}", format.name().to_lowercase())),
        Target::Folder => out.join("x"),
    };
    let plan = match Plan::new(model, recipe, target, &name) {
        Ok(plan) => plan,
        Err(refused) => {
            assert!([Kind::Input, Kind::Usage].contains(&refused.kind()), "{what}: {refused}");
            return false;
        }
    };
    for step in &plan.steps {
        for (part, at) in step.parts.iter().zip(&step.outputs) {
            let meta = &plan.files[at.file].tensors[at.tensor];
            // A form's record of the shape is no part of any row.
            if meta.name.ends_with("_shape") {
                continue;
            }
            assert_eq!(Some(part.bytes_of(&(0..step.lines())).end), meta.bytes(), "{what}: {meta:?}");
        }
    }
    if write {
        let job = Job::new(1);
        let (sink, _) = pipeline::write(model, &plan, &name, false, &job).unwrap_or_else(|e| panic!("{what}: {e}"));
        if recipe.is_conversion() {
            let options = Options { companions: Some(model.companions().clone()), ..Options::default() };
            let written = Checkpoint::open(sink.staging(), &options).unwrap_or_else(|e| panic!("{what}: {e}"));
            let found = values::compare(model, &written, &plan, &job).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(found.is_none_or(|found| found.outputs.passed()), "{what}");
        }
    }
    true
}

#[test]
fn every_dtype_and_rank_meets_every_scheme_and_container() {
    let out = tempfile::tempdir().unwrap();
    let recipes = recipes();
    let (mut planned, mut refused) = (0, 0);
    for format in [Format::Safetensors, Format::Gguf] {
        for dtype in all_dtypes() {
            for shape in shapes(dtype) {
                let meta = TensorMeta::new("layer.weight", dtype, shape.clone());
                let path = out.path().join(format!("in.{}", format.name().to_lowercase()));
                if write_one(&path, format, &meta).is_none() {
                    continue;
                }
                let model = Checkpoint::open(&path, &Options::default());
                let model = model.unwrap_or_else(|e| panic!("{dtype} {shape:?}: {e}"));
                for (i, recipe) in recipes.iter().enumerate() {
                    for to in [Format::Safetensors, Format::Gguf, Format::Npz, Format::Pytorch] {
                        let what = format!("{format:?} {dtype} {shape:?} → {to:?}: {}", recipe.describe());
                        let write = i == 0 || dtype.is_float() && shape.len() == 2 && i % 2 == 0;
                        match meets(&model, recipe, Target::File(to), out.path(), write, &what) {
                            true => planned += 1,
                            false => refused += 1,
                        }
                    }
                }
            }
        }
    }
    println!("{planned} plans, {refused} refusals");
    assert!(planned > 10_000 && refused > 1_000, "{planned} {refused}");
}

/// A model of a known family of which one tensor is of a dtype that it should not have: turned, reordered, stacked and shifted
/// tensors included.
#[test]
fn a_tensor_of_an_odd_dtype_is_written_or_refused() {
    use safetensors::Dtype as Theirs;
    let out = tempfile::tempdir().unwrap();
    let (mut planned, mut refused) = (0, 0);
    for family in ["llama", "gpt2", "gemma3", "mixtral", "phi3", "bert"] {
        let model = out.path().join(family);
        copy_folder(&fixture("golden").join(family), &model);
        let kind = if family == "bert" { "wordpiece" } else { "bpe" };
        std::fs::copy(fixture(&format!("llama-cpp/{kind}.json")), model.join("tokenizer.json")).unwrap();
        let all = tensors(&model.join("model.safetensors"));
        let first = |name: &&String| !name.chars().any(|c| ('1'..='9').contains(&c));
        for odd in all.keys().filter(first) {
            for (dtype, size) in [(Theirs::I64, 8), (Theirs::I8, 1), (Theirs::F8_E4M3, 1), (Theirs::F64, 8)] {
                let list: Vec<_> = all
                    .iter()
                    .map(|(name, (_, shape, bytes))| match name == odd {
                        true => (name.as_str(), dtype, shape.clone(), vec![0x11; size * bytes.len() / 4]),
                        false => (name.as_str(), Theirs::F32, shape.clone(), bytes.clone()),
                    })
                    .collect();
                write_safetensors(&model.join("model.safetensors"), &list);
                let Ok(model) = Checkpoint::open(&model, &Options::default()) else {
                    refused += 1;
                    continue;
                };
                for (recipe, target) in [
                    (Recipe::conversion(None, false), Target::File(Format::Gguf)),
                    (Recipe::conversion(Some(Scheme::F16), false), Target::File(Format::Gguf)),
                    (
                        Recipe::from_flags(Scheme::from_name("q4_k_m").unwrap(), &[], false).unwrap(),
                        Target::File(Format::Gguf),
                    ),
                    (Recipe::from_flags(Scheme::W4A16, &[], false).unwrap(), Target::Folder),
                ] {
                    let what = format!("{family}: {odd} as {dtype:?}: {}", recipe.describe());
                    match meets(&model, &recipe, target, out.path(), true, &what) {
                        true => planned += 1,
                        false => refused += 1,
                    }
                }
            }
        }
    }
    println!("{planned} plans, {refused} refusals");
    assert!(planned > 100, "{planned} {refused}");
}
