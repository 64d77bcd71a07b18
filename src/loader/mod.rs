//! A file, a folder or a sharded index, in any format, becomes a [`Checkpoint`]: logical weights by name and role, with the
//! config and the tokenizer beside them.

mod chat;
mod companions;
mod error;
mod files;
mod tokenizer;
mod view;
mod weights;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::{Access, Format, Source};
use serde_json::Value;

use crate::dialect::huggingface::key;
use crate::dialect::{llama_cpp, onnx};
use crate::encoding::Inputs;
use crate::family::table::{self, Expected};
use crate::family::{self, Architecture, Family, Kind, Part, Role, RowOrder, Slot};

pub use chat::ChatTemplate;
pub use companions::{Companion, Companions, Pooling};
pub use error::{Error, Result};
pub use files::{INDEX, Index, SINGLE, WeightFiles, whole_name};
pub use tokenizer::{Tokenizer, Whole};
pub use view::{Fetch, Piece, Scratch, View};
pub use weights::{TensorRef, Weight, matrix};

/// A place in the model: slot, layer, expert, weight or bias.
pub type SlotKey = (Slot, usize, Option<usize>, Part);

/// A weight whose codes were chosen beside the model's own files: as it is stored there, and the slots that its rows serve.
#[derive(Debug, Clone)]
pub struct Coded {
    /// The weight. Its tensors are those of the file of codes; the sources that it names do not count.
    pub weight: Weight,
    /// The slots, with their rows.
    pub serves: Vec<(SlotKey, Range<u64>)>,
}

/// How a model is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Mapped, or read by offset.
    pub access: Access,
    /// Bounds on what a header may ask for.
    pub limits: formats::Limits,
    /// The config, tokenizer and pooling of the model that this one was made from. For a single file they come first, since
    /// what lies beside it may belong to another model; for a folder they fill in what it lacks.
    pub companions: Option<Companions>,
    /// How linear layers take their inputs, whatever the format declares.
    pub inputs: Option<Inputs>,
}

/// An opened model.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    files: WeightFiles,
    sources: Vec<Arc<Source>>,
    weights: Vec<Weight>,
    by_name: HashMap<String, usize>,
    companions: Companions,
    family: Option<Family>,
    no_family: Option<String>,
    slots: HashMap<SlotKey, Vec<Piece>>,
    foreign: Option<&'static str>,
    /// Whether it is an ONNX file of ours.
    exported: bool,
    /// How linear layers take their inputs: what the user wants, else what the config says.
    inputs: Option<Inputs>,
}

impl Checkpoint {
    /// Opens a model and checks its headers, its index and its config against each other.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let files = WeightFiles::find(path)?;
        let sources = files
            .names
            .iter()
            .map(|name| Ok(formats::open(&files.folder.join(name), options.access, &options.limits)?))
            .collect::<Result<Vec<_>>>()?;
        files::check_parts(&files, &sources)?;
        check_names(&sources)?;
        if let Some(index) = &files.index {
            check_index(index, &files.names, &sources)?;
        }
        let own = Companions::read(&files.folder);
        let companions = match (&options.companions, files.whole_folder) {
            (None, _) => own?,
            (Some(given), true) => own?.or(given),
            (Some(given), false) => given.clone().or(&own.unwrap_or_default()),
        };
        let mut checkpoint = Self {
            path: path.to_owned(),
            files,
            sources,
            weights: Vec::new(),
            by_name: HashMap::new(),
            companions,
            family: None,
            no_family: None,
            slots: HashMap::new(),
            foreign: None,
            exported: false,
            inputs: options.inputs,
        };
        checkpoint.understand()?;
        checkpoint.inputs = checkpoint.inputs.or_else(|| checkpoint.declared_inputs());
        Ok(checkpoint)
    }

    /// From tensors to weights, roles and slots.
    fn understand(&mut self) -> Result<()> {
        let metadata = self.onnx().map(formats::onnx::Model::metadata).unwrap_or_default();
        if metadata.contains_key(onnx::own::FAMILY) {
            let mut exported = Self { exported: true, ..self.clone() };
            exported.carried(&metadata)?;
            if exported.understand_tensors().is_ok() && exported.family.is_some() {
                *self = exported;
                return Ok(());
            }
            // Somebody changed it since; what it is, the graph tells.
        }
        self.understand_tensors()
    }

    /// Takes up the config and the other files that an exported ONNX file carries: those that lie beside it may belong to
    /// another model.
    fn carried(&mut self, metadata: &BTreeMap<String, String>) -> Result<()> {
        let source = self.sources[0].clone();
        let carried = Companions::carried(source.path(), onnx::own::companions(metadata))?;
        let config = metadata.get(&key("config.json")).map(|text| Companion::within(source.path(), text.as_str()));
        let carried = match config.map(|config| config.json()).transpose()? {
            Some(config) => carried.with_config(source.path().to_owned(), config),
            None => carried,
        };
        let mut beside = std::mem::take(&mut self.companions);
        beside.config = None;
        self.companions = carried.or(&beside);
        Ok(())
    }

    fn understand_tensors(&mut self) -> Result<()> {
        let declared = self.companions.quantization.as_ref().or_else(|| {
            let config = self.config()?;
            ["quantization_config", "quantization"].into_iter().find_map(|key| config.get(key))
        });
        let gathered = match self.onnx() {
            Some(model) => weights::of_graph(onnx::weights(model, self.sources[0].tensors())),
            None if self.exported => weights::of_graph(onnx::own::weights(self.sources[0].tensors())),
            None => weights::gather(&self.sources, weights::Declared(declared)),
        };
        self.weights = gathered.weights;
        self.foreign = gathered.foreign;
        if let Some(gguf) = self.gguf() {
            let carried = llama_cpp::tokenizer::companions(gguf);
            let carried = Companions::carried(self.sources[0].path(), carried)?;
            let factors = self.rope_factors()?;
            let names = self.weights.iter().map(|weight| weight.name.as_str()).collect();
            let config = llama_cpp::config(gguf, &names, &factors);
            match config {
                Ok(config) => self.companions.config = Some((self.sources[0].path().to_owned(), config)),
                Err(why) => self.no_family = Some(why),
            }
            self.companions = std::mem::take(&mut self.companions).or(&carried);
        }
        self.find_family()?;
        if let (Format::Gguf, Some(family)) = (self.format(), &self.family) {
            let known = llama_cpp::tensors(family);
            for weight in &mut self.weights {
                // Stacked experts have no name in the other dialect, and keep theirs.
                if let Some([Expected { names, gguf: Some(place), .. }]) =
                    known.get(weight.name.as_str()).map(Vec::as_slice)
                    && !place.stacked
                {
                    names[0].clone_into(&mut weight.name);
                    weight.order = place.rows;
                    weight.shift = place.value_shift;
                }
            }
        }
        self.by_name = self.weights.iter().enumerate().map(|(i, weight)| (weight.name.clone(), i)).collect();
        self.assign_slots()?;
        // A head that the file holds counts, whatever the config says, as in transformers and llama.cpp.
        let own_head = self.slots.contains_key(&(Slot::Head, 0, None, Part::Weight));
        if let Some(Family { architecture: Architecture::Transformer(t), .. }) = &mut self.family {
            t.tied &= !own_head;
        }
        Ok(())
    }

    /// The factors by which a GGUF file stretches each wavelength, if it does, by the names of their tensors.
    fn rope_factors(&self) -> Result<HashMap<&'static str, Vec<f32>>> {
        let mut all = HashMap::new();
        for name in llama_cpp::ROPE_FACTORS {
            let Some(at) = self.weights.iter().position(|weight| weight.name == name) else { continue };
            let view = self.view(&[Piece::whole(at, &self.weights[at])], Fetch::Bands)?;
            let mut factors = vec![0f32; self.weights[at].elements() as usize];
            view.try_read(0, &mut factors, &mut Scratch::default())?;
            all.insert(name, factors);
        }
        Ok(all)
    }

    fn find_family(&mut self) -> Result<()> {
        let config = self.companions.config.as_ref();
        if let Some((path, config)) = config.filter(|(_, config)| is_of_transformers(config)) {
            match family::find_for(config, self.weights.len()) {
                Ok(family) => self.family = Some(family),
                Err(e @ (family::Error::Family { .. } | family::Error::Unsupported { .. })) => {
                    self.no_family = Some(e.to_string());
                }
                Err(e) => {
                    return Err(Error::Companion {
                        file: path.clone(),
                        found: e.to_string(),
                        expected: "the config that transformers wrote for these weights".into(),
                        next: "Use the config.json that came with the model".into(),
                    });
                }
            }
            return Ok(());
        }
        if self.format() == Format::Onnx && !self.exported {
            // What lies between the layers is in its graph.
            let why = "it is an ONNX graph, and there is no config.json that names the model's family";
            self.no_family = Some(why.to_owned());
            return Ok(());
        }
        let shapes: Vec<(&str, Vec<usize>)> = self
            .weights
            .iter()
            .map(|weight| (weight.name.as_str(), weight.shape.iter().map(|&d| d as usize).collect()))
            .collect();
        let shapes: Vec<(&str, &[usize])> = shapes.iter().map(|(name, shape)| (*name, shape.as_slice())).collect();
        match family::chain::from_tensors(&shapes, config.map(|(_, config)| config)) {
            Ok(Some(family)) => self.family = Some(family),
            Ok(None) => {
                self.no_family.get_or_insert_with(|| "there is no config.json that names the model's family".into());
            }
            Err(e) => self.no_family = Some(e.to_string()),
        }
        Ok(())
    }

    /// Finds the family's tensors, and gives each weight its role and each slot its pieces.
    fn assign_slots(&mut self) -> Result<()> {
        let Some(family) = &self.family else { return Ok(()) };
        let format = self.format();
        let is_gguf = format == Format::Gguf;
        let experts = match &family.architecture {
            Architecture::Transformer(t) => t.experts.map_or(0, |experts| experts.count),
            Architecture::Chain(_) => 0,
        };
        let mut problems = Vec::new();
        let mut missing = Vec::new();
        for expected in family.tensors() {
            // llama.cpp stacks the experts that others hold one by one.
            let stack = expected.gguf.as_ref().filter(|place| is_gguf && place.stacked);
            let names = stack.map_or(expected.names.as_slice(), |place| std::slice::from_ref(&place.name));
            let Some(&at) = names.iter().find_map(|name| self.by_name.get(name)) else {
                if expected.required {
                    missing.push(expected);
                }
                continue;
            };
            let weight = &mut self.weights[at];
            let shape: Vec<usize> = weight.shape.iter().map(|&d| d as usize).collect();
            let transposed = match format {
                Format::Gguf => false,
                // As its nodes use it.
                Format::Onnx if !self.exported => weight.transposed,
                _ => expected.transposed,
            };
            let mut wanted = expected.shape.clone();
            if transposed != expected.transposed {
                wanted.reverse();
            }
            let rows = wanted.first().map_or(0, |&rows| rows as u64);
            if stack.is_some() {
                wanted.insert(0, experts);
            }
            if shape != wanted {
                problems.push(format!("tensor `{}` is {shape:?}, expected {wanted:?}", weight.name));
                continue;
            }
            weight.role = if stack.is_some() { Role::Experts } else { expected.role };
            weight.transposed = transposed;
            let first = expected.expert.filter(|_| stack.is_some()).map_or(0, |expert| expert as u64 * rows);
            for piece in &expected.pieces {
                let rows = first + piece.rows.start as u64..first + piece.rows.end as u64;
                let here = Piece { weight: at, rows, order: RowOrder::Same, transpose: transposed, shift: 0.0 };
                self.slots
                    .entry((piece.slot, expected.layer, piece.expert, expected.part))
                    .or_insert_with(|| vec![here]);
            }
        }
        // A file may hold one slot in several ways: experts one by one, or stacked.
        let served = |expected: &Expected| {
            let slot = |piece: &table::Piece| (piece.slot, expected.layer, piece.expert, expected.part);
            expected.pieces.iter().all(|piece| self.slots.contains_key(&slot(piece)))
        };
        let missing = missing.into_iter().filter(|expected| !served(expected));
        problems.extend(missing.map(|expected| format!("tensor `{}` is missing", expected.name())));
        if problems.is_empty() {
            return Ok(());
        }
        if let Some(tool) = self.foreign {
            self.no_family = Some(format!("its weights are quantized as {tool}, which this version does not read"));
            self.family = None;
            return Ok(());
        }
        if format == Format::Onnx {
            // Exporters name weights as they like.
            let problem = problems.swap_remove(0);
            self.no_family =
                Some(format!("its graph does not name the weights as the config's family does: {problem}"));
            (self.family, self.slots) = (None, HashMap::new());
            return Ok(());
        }
        let config = self.companions.config.as_ref().map_or_else(|| self.path.clone(), |(path, _)| path.clone());
        Err(Error::ConfigMismatch { config, family: family.name.to_owned(), problems })
    }

    /// The metadata of a GGUF file.
    pub fn gguf(&self) -> Option<&formats::gguf::Metadata> {
        match self.sources.first()?.payload() {
            formats::Payload::Gguf(metadata) => Some(metadata),
            _ => None,
        }
    }

    /// What the first file says of itself, by key: safetensors' metadata, or those of an ONNX file of ours.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match self.sources.first().map(|source| (source.payload(), source.metadata())) {
            Some((formats::Payload::Onnx(model), _)) if self.exported => model.metadata(),
            Some((_, metadata)) => metadata.clone(),
            None => BTreeMap::new(),
        }
    }

    /// Whether it is an ONNX file of ours, whose graph its family determines.
    pub fn is_exported(&self) -> bool {
        self.exported
    }

    /// The graph of an ONNX file, if that is all that tells what it computes.
    pub fn onnx(&self) -> Option<&formats::onnx::Model> {
        match self.sources.first()?.payload() {
            formats::Payload::Onnx(model) if !self.exported => Some(model),
            _ => None,
        }
    }

    /// The path by which the model was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weight files and the folder that they lie in.
    pub fn files(&self) -> &WeightFiles {
        &self.files
    }

    /// The container of its files.
    pub fn format(&self) -> Format {
        self.sources.first().map_or(Format::Safetensors, |source| source.format())
    }

    /// The opened weight files.
    pub fn sources(&self) -> &[Arc<Source>] {
        &self.sources
    }

    /// Bytes of all weight files.
    pub fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.file_bytes()).sum()
    }

    /// The logical weights, in the files' order.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The index of the weight of a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The model's family, if it is one that the runtime knows.
    pub fn family(&self) -> Option<&Family> {
        self.family.as_ref()
    }

    /// Why the family is not known.
    pub fn no_family(&self) -> Option<&str> {
        self.no_family.as_deref().filter(|_| self.family.is_none())
    }

    /// Config, tokenizer and pooling.
    pub fn companions(&self) -> &Companions {
        &self.companions
    }

    /// The config's fields.
    pub fn config(&self) -> Option<&Value> {
        self.companions.config.as_ref().map(|(_, config)| config)
    }

    /// The model's `tokenizer.json`: the one beside the weights or carried by a GGUF file, else one that is rebuilt from the
    /// GGUF file's keys.
    ///
    /// # Errors
    /// A kind of tokenizer that cannot be rebuilt.
    pub fn tokenizer_json(&self) -> Result<Option<Companion>> {
        let (None, Some(gguf)) = (self.companions.file("tokenizer.json"), self.gguf()) else {
            return Ok(self.companions.file("tokenizer.json").cloned());
        };
        let file = self.sources[0].path();
        let json = llama_cpp::tokenizer::tokenizer_json(gguf).map_err(|found| Error::Companion {
            file: file.to_owned(),
            found,
            expected: "a tokenizer that can be rebuilt from the file's metadata".into(),
            next: "Put the model's tokenizer.json beside it".into(),
        })?;
        Ok(json.map(|json| Companion::within(file, format!("{json:#}\n"))))
    }

    /// The model's tokenizer, if it has one.
    ///
    /// # Errors
    /// A tokenizer that cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        self.tokenizer_json()?.as_ref().map(Tokenizer::read).transpose()
    }

    /// The pieces that serve a slot.
    pub fn slot(&self, slot: Slot, layer: usize, expert: Option<usize>, part: Part) -> Option<&[Piece]> {
        self.slots.get(&(slot, layer, expert, part)).map(Vec::as_slice)
    }

    /// For each weight, the slots that its rows serve, in the order of the rows.
    pub fn serves(&self) -> Vec<Vec<(SlotKey, Piece)>> {
        let mut all = vec![Vec::new(); self.weights.len()];
        for (key, pieces) in &self.slots {
            for piece in pieces {
                all[piece.weight].push((*key, piece.clone()));
            }
        }
        all.iter_mut().for_each(|pieces| pieces.sort_by_key(|(_, piece)| piece.rows.start));
        all
    }

    /// Weights that the family does not have, so that nothing the runtime computes depends on them.
    pub fn unused(&self) -> Vec<&str> {
        let Some(family) = self.family.as_ref().filter(|family| family.kind != Kind::Chain) else { return Vec::new() };
        let used: BTreeSet<usize> = self.slots.values().flatten().map(|piece| piece.weight).collect();
        let rest = self.weights.iter().enumerate().filter(|(at, _)| !used.contains(at));
        let known = |name: &str| family.ignores(name) || llama_cpp::ROPE_FACTORS.contains(&name);
        rest.map(|(_, weight)| weight.name.as_str()).filter(|name| !known(name)).collect()
    }

    /// What of the model this version does not understand and passes over, in words.
    pub fn remarks(&self) -> Vec<String> {
        let Some(family) = &self.family else { return Vec::new() };
        let of_config = |unknown: &[String]| format!("config fields that this version does not know: {}", few(unknown));
        let of_file = |unused: &[&str]| {
            format!("tensors that a {} does not have, without effect on its outputs: {}", family.name, few(unused))
        };
        let unknown = Some(&family.config.unknown[..]).filter(|unknown| !unknown.is_empty());
        let unused = Some(self.unused()).filter(|unused| !unused.is_empty());
        unknown.map(of_config).into_iter().chain(unused.map(|unused| of_file(&unused))).collect()
    }

    /// All slots that the model serves, in no order.
    pub fn slots(&self) -> impl Iterator<Item = ((Slot, usize, Option<usize>, Part), &[Piece])> {
        self.slots.iter().map(|(at, pieces)| (*at, pieces.as_slice()))
    }

    /// Bytes of a weight in its file, scales included.
    pub fn stored_bytes(&self, weight: usize) -> u64 {
        let tensors = &self.weights[weight].tensors;
        tensors.iter().filter_map(|at| self.sources[at.source].tensors()[at.tensor].bytes()).sum()
    }

    /// The same model with other numbers for some weights: each with the name of a tensor of `source`, which holds them as
    /// the weight itself is stored, in the same or another float.
    ///
    /// # Panics
    /// If such a tensor is missing or has another shape.
    pub fn with_weights(&self, source: Arc<Source>, names: &[(usize, String)]) -> Self {
        let mut changed = self.clone();
        for (weight, name) in names {
            let tensor = source.tensors().iter().position(|tensor| tensor.name == *name);
            let tensor = tensor.unwrap_or_else(|| panic!("{}: has no `{name}`", source.path().display()));
            let (meta, weight) = (&source.tensors()[tensor], &mut changed.weights[*weight]);
            assert!(meta.shape == weight.shape && meta.dtype.is_float(), "the weight's own shape");
            weight.encoding = crate::encoding::Encoding::Plain(meta.dtype);
            weight.tensors = vec![TensorRef { source: changed.sources.len(), tensor }];
        }
        changed.sources.push(source);
        changed
    }

    /// The same model with some slots served by codes in `source`, whose inputs linear layers take as floats. The weights are
    /// added after the model's own, in their order.
    pub fn with_codes(&self, source: Arc<Source>, coded: &[Coded]) -> Self {
        let mut changed = self.clone();
        for Coded { weight, serves } in coded {
            let mut weight = weight.clone();
            weight.tensors.iter_mut().for_each(|at| at.source = self.sources.len());
            let at = changed.weights.len();
            changed.weights.push(weight);
            for (slot, rows) in serves {
                let piece =
                    Piece { weight: at, rows: rows.clone(), order: RowOrder::Same, transpose: false, shift: 0.0 };
                changed.slots.insert(*slot, vec![piece]);
            }
        }
        changed.sources.push(source);
        changed.inputs = Some(Inputs::Float);
        changed
    }

    /// A model of other shapes in this one's place: its weights in `source`, its config, and everything else as here.
    ///
    /// # Errors
    /// Weights that do not fit the config.
    pub fn reshaped(&self, source: Arc<Source>, config: Value) -> Result<Self> {
        let path = self.companions.config.as_ref().map_or_else(|| self.path.clone(), |(path, _)| path.clone());
        let mut changed = Self {
            path: self.path.clone(),
            files: WeightFiles { names: vec![SINGLE.to_owned()], index: None, ..self.files.clone() },
            sources: vec![source],
            weights: Vec::new(),
            by_name: HashMap::new(),
            companions: self.companions.clone().with_config(path, config),
            family: None,
            no_family: None,
            slots: HashMap::new(),
            foreign: None,
            exported: false,
            inputs: self.inputs,
        };
        changed.understand()?;
        Ok(changed)
    }

    /// Opens a matrix of pieces stacked row on row.
    pub fn view(&self, pieces: &[Piece], fetch: Fetch) -> formats::Result<View> {
        View::open(&self.sources, &self.weights, pieces, fetch, self.inputs)
    }

    /// Tells the system that the weights of a layer are not needed soon. They come back from the file if they are.
    pub fn release(&self, layer: usize) {
        let of_layer = self.slots.iter().filter(|((_, at, _, _), _)| *at == layer);
        let weights: BTreeSet<usize> =
            of_layer.flat_map(|(_, pieces)| pieces.iter().map(|piece| piece.weight)).collect();
        for at in weights.into_iter().flat_map(|weight| &self.weights[weight].tensors) {
            let source = &self.sources[at.source];
            let place = source.place(at.tensor);
            source.release(at.tensor, 0..place.end - place.start);
        }
    }

    /// In which form the model is quantized, if it is.
    pub fn quantized(&self) -> Option<String> {
        let stored = self.weights.iter().map(|weight| weight.encoding).find(|encoding| !encoding.is_plain());
        let method = || {
            let config = self.config()?.get("quantization_config")?;
            let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
            Some(format!("quantization_config of method {method}"))
        };
        self.foreign.map(str::to_owned).or_else(|| stored.map(|encoding| encoding.name())).or_else(method)
    }

    /// The tool whose quantized form the weights have, if this version cannot read it.
    pub fn foreign(&self) -> Option<&'static str> {
        self.foreign
    }

    /// How the quantization's config says that linear layers take their inputs, if there is one.
    fn declared_inputs(&self) -> Option<Inputs> {
        if self.exported {
            // A graph says it itself, and ours multiply floats.
            return Some(Inputs::Float);
        }
        let own =
            self.sources.first().and_then(|source| source.metadata().get(crate::dialect::huggingface::QUANTIZATION));
        let own: Option<Value> = own.and_then(|text| serde_json::from_str(text).ok());
        let config = own.as_ref().or_else(|| self.config()?.get("quantization_config"));
        let groups = config.and_then(|config| config.get("config_groups")).and_then(Value::as_object);
        let int8 = |inputs: &Value| inputs.get("type").is_none_or(|kind| kind == "int");
        groups.map(|groups| {
            let mut inputs = groups.values().filter_map(|group| group.get("input_activations"));
            if inputs.any(|inputs| !inputs.is_null() && int8(inputs)) { Inputs::Int8 } else { Inputs::Float }
        })
    }

    /// An error if a weight file changed since it was opened.
    pub fn verify_unchanged(&self) -> Result<()> {
        Ok(self.sources.iter().try_for_each(|source| source.verify_unchanged())?)
    }

    /// Number of values in all floating-point and quantized weights.
    pub fn parameters(&self) -> u64 {
        self.weights.iter().filter(|weight| weight.is_numeric()).map(Weight::elements).sum()
    }
}

/// The first of some names.
fn few<S: AsRef<str> + std::borrow::Borrow<str>>(names: &[S]) -> String {
    const FEW: usize = 8;
    match names.len().saturating_sub(FEW) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..FEW].join(", ")),
    }
}

/// Whether a config describes a transformer; one without these keys belongs to a chain of linear layers.
fn is_of_transformers(config: &Value) -> bool {
    config.get("model_type").is_some() || config.get("architectures").is_some()
}

fn check_names(sources: &[Arc<Source>]) -> Result<()> {
    let mut seen: HashMap<&str, &Arc<Source>> = HashMap::new();
    for source in sources {
        for tensor in source.tensors() {
            if let Some(first) = seen.insert(&tensor.name, source) {
                return Err(Error::DuplicateTensor {
                    tensor: tensor.name.clone(),
                    first: first.path().to_owned(),
                    second: source.path().to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn check_index(index: &Index, names: &[String], sources: &[Arc<Source>]) -> Result<()> {
    let holds: HashMap<&str, &str> = names
        .iter()
        .zip(sources)
        .flat_map(|(name, source)| source.tensors().iter().map(move |tensor| (tensor.name.as_str(), name.as_str())))
        .collect();
    let missing: Vec<String> = index
        .weight_map
        .iter()
        .filter(|(tensor, shard)| holds.get(tensor.as_str()) != Some(&shard.as_str()))
        .map(|(tensor, shard)| format!("{tensor} ({shard})"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::MissingTensors { index: index.path.clone(), missing }) }
}
