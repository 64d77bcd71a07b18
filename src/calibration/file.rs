//! What was learned from a text, kept in a file: a safetensors file with, for each input `NAME`, `NAME.tokens` (i64, `[1]`),
//! `NAME.squares` (f64, `[features]`: Σ x²) and, where they were gathered, `NAME.products` (f64, the lower triangle of Σ x xᵀ
//! row by row); and `blocks.influence` (f64, `[layers]`). What was seen before shapes were pruned has `original.` before its name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::{Access, Dtype, FilePlan, Limits, Shape, Sink, Source, TensorBytes, TensorMeta};

use super::inputs::{Inputs, Wanted, shared_input};
use super::structure::Structure;
use super::{Error, Result};
use crate::encoding::plain::{self, Real};
use crate::family::Slot;
use crate::loader::Checkpoint;
use crate::runtime::Place;

/// Key of the model's fingerprint in the file's metadata.
const MODEL: &str = "modelpress.calibration.model";
/// Key of what was being done when inputs were gathered.
const DOING: &str = "modelpress.calibration.recipe";
/// Key of the number of tokens.
const TOKENS: &str = "modelpress.calibration.tokens";
/// The influence of blocks.
const INFLUENCE: &str = "blocks.influence";

/// The name of an input, which query, key and value share, and gate and up.
pub fn name(place: Place) -> String {
    let place = shared_input(place);
    let input = match place.slot {
        Slot::AttnQ => "attention.input",
        Slot::AttnOut => "attention.output",
        Slot::FfnUp => "ffn.input",
        _ => "ffn.down",
    };
    let expert = place.expert.map(|expert| format!(".expert.{expert}")).unwrap_or_default();
    format!("blocks.{}.{input}{expert}", place.layer)
}

/// What inputs are called that were seen before shapes were pruned.
fn original(place: Place) -> String {
    format!("original.{}", name(place))
}

/// A calibration file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its path.
    pub path: PathBuf,
    /// Whether a file of that name may be replaced.
    pub force: bool,
    /// What was done to the model while inputs were gathered.
    pub recipe: String,
}

/// A calibration file being written.
pub struct Writer {
    sink: Sink,
    places: HashMap<String, usize>,
}

impl Writer {
    /// Stages a file for what a text of so many tokens shows of a model, with room for these inputs, so many features each.
    ///
    /// # Errors
    /// The file exists and `force` is false, or there is no room.
    pub fn create(
        record: &Record,
        model: &Checkpoint,
        tokens: usize,
        structure: Option<&Structure>,
        wanted: &BTreeMap<Place, (usize, Wanted)>,
    ) -> Result<Self> {
        let path = &record.path;
        let mut metas = Vec::new();
        let mut add = |name: &str, cols: usize, wanted: Wanted| {
            let cols = cols as u64;
            metas.push(TensorMeta::new(format!("{name}.tokens"), Dtype::I64, vec![1]));
            metas.push(TensorMeta::new(format!("{name}.squares"), Dtype::F64, vec![cols]));
            if wanted == Wanted::Products {
                metas.push(TensorMeta::new(format!("{name}.products"), Dtype::F64, vec![cols * (cols + 1) / 2]));
            }
        };
        wanted.iter().for_each(|(place, (cols, wanted))| add(&name(*place), *cols, *wanted));
        if let Some(structure) = structure {
            structure.inputs.iter().for_each(|(place, inputs)| add(&original(*place), inputs.cols, Wanted::Squares));
            metas.push(TensorMeta::new(INFLUENCE, Dtype::F64, vec![structure.influence.len() as u64]));
        }
        let words = [(MODEL, fingerprint(model)?), (DOING, record.recipe.clone()), (TOKENS, tokens.to_string())];
        let metadata = words.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let layout = formats::safetensors::layout(path, &metas, &metadata)?;
        let plan = FilePlan { name: String::new(), layout };
        let sink = Sink::create(path, Shape::File, vec![plan], 0, record.force)?;
        let writer = Self { sink, places: metas.into_iter().enumerate().map(|(i, meta)| (meta.name, i)).collect() };
        if let Some(structure) = structure {
            structure.inputs.iter().try_for_each(|(place, inputs)| writer.inputs(&original(*place), inputs))?;
            writer.put(INFLUENCE, &floats(&structure.influence))?;
        }
        Ok(writer)
    }

    /// Writes what is known of an input.
    ///
    /// # Errors
    /// A write that fails.
    pub fn write(&self, place: Place, inputs: &Inputs) -> Result<()> {
        self.inputs(&name(place), inputs)
    }

    fn inputs(&self, name: &str, inputs: &Inputs) -> Result<()> {
        self.put(&format!("{name}.tokens"), &inputs.rows.to_le_bytes())?;
        self.put(&format!("{name}.squares"), &floats(inputs.squares()))?;
        let products = format!("{name}.products");
        if self.places.contains_key(&products) {
            let mut offset = 0;
            for row in inputs.triangle() {
                let bytes = floats(row);
                self.put_at(&products, offset, &bytes)?;
                offset += bytes.len() as u64;
            }
        }
        Ok(())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.put_at(name, 0, bytes)
    }

    fn put_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.sink.write_at(0, self.places[name], offset, bytes)?)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// A write that fails.
    pub fn publish(mut self) -> Result<()> {
        self.sink.seal()?;
        Ok(self.sink.publish()?)
    }
}

fn floats(numbers: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; 8 * numbers.len()];
    plain::encode(numbers, Dtype::F64, &mut bytes);
    bytes
}

/// An opened calibration file.
#[derive(Debug)]
pub struct Recorded {
    path: PathBuf,
    source: Arc<Source>,
    recipe: String,
    tokens: usize,
}

impl Recorded {
    /// Opens a file that was made from this model.
    ///
    /// # Errors
    /// Another kind of file, or one that was made from another model.
    pub fn open(path: &Path, model: &Checkpoint) -> Result<Self> {
        let source = formats::open(path, Access::Mapped, &Limits::default())?;
        let wrong = |found: &str, expected: &str| Error::Recorded {
            file: path.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        let word = |key: &str| source.metadata().get(key).cloned();
        let (Some(made_from), Some(recipe), Some(tokens)) = (word(MODEL), word(DOING), word(TOKENS)) else {
            return Err(wrong("no calibration", "a file that --calibration-out wrote"));
        };
        if made_from != fingerprint(model)? {
            let expected = format!("that of {}: calibrate this model with --calibrate", model.path().display());
            return Err(wrong("the calibration of another model", &expected));
        }
        let tokens = tokens.parse().map_err(|_| wrong("a number of tokens that is none", "a whole number"))?;
        Ok(Self { path: path.to_owned(), source, recipe, tokens })
    }

    /// What was done to the model while inputs were gathered.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// Tokens of the text.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// What is known of an input of so many features; `None` if no token reached it.
    ///
    /// # Errors
    /// It is not there, or of another size.
    pub fn inputs(&self, place: Place, cols: usize, wanted: Wanted) -> Result<Option<Inputs>> {
        self.read(&name(place), cols, wanted)
    }

    /// What was seen before shapes were pruned: these inputs, so many features each, and the influence of so many blocks.
    ///
    /// # Errors
    /// It is not there, or of another size.
    pub fn structure(&self, wanted: &BTreeMap<Place, usize>, layers: usize) -> Result<Structure> {
        let influence = self.floats(INFLUENCE, layers as u64)?;
        let read = |(&place, &cols)| {
            let found = self.read(&original(place), cols, Wanted::Squares)?;
            Ok((place, found.unwrap_or_else(|| Inputs::new(cols, Wanted::Squares))))
        };
        Ok(Structure { influence, inputs: wanted.iter().map(read).collect::<Result<_>>()? })
    }

    fn read(&self, name: &str, cols: usize, wanted: Wanted) -> Result<Option<Inputs>> {
        let tokens = self.tensor(&format!("{name}.tokens"), Dtype::I64, 1)?;
        let tokens = tokens.as_chunks::<8>().0.first().map_or(0, |b| u64::from_le_bytes(*b));
        let squares = self.floats(&format!("{name}.squares"), cols as u64)?;
        let products = match wanted {
            Wanted::Squares => Vec::new(),
            Wanted::Products => self.floats(&format!("{name}.products"), (cols * (cols + 1) / 2) as u64)?,
        };
        Ok((tokens > 0).then(|| Inputs::known(tokens, squares, &products)))
    }

    fn floats(&self, name: &str, count: u64) -> Result<Vec<f64>> {
        let bytes = self.tensor(name, Dtype::F64, count)?;
        let mut numbers = vec![0.0; count as usize];
        f64::decode(Dtype::F64, &bytes, &mut numbers);
        if numbers.iter().all(|x| x.is_finite()) {
            return Ok(numbers);
        }
        Err(self.wrong(format!("NaN or infinity in `{name}`"), "finite numbers".to_owned()))
    }

    fn tensor(&self, name: &str, dtype: Dtype, count: u64) -> Result<TensorBytes> {
        let at = self.source.tensors().iter().position(|tensor| tensor.name == name);
        let Some(at) = at else {
            let expected = format!("`{name}`, which this method needs: calibrate for it with --calibrate");
            return Err(self.wrong("no such sums".to_owned(), expected));
        };
        let meta = &self.source.tensors()[at];
        if (meta.dtype, meta.elements()) != (dtype, Some(count)) {
            let found = format!("`{name}` as {} {:?}", meta.dtype, meta.shape);
            return Err(self.wrong(found, format!("{dtype} [{count}]")));
        }
        Ok(TensorBytes::load(&self.source, at)?)
    }

    fn wrong(&self, found: String, expected: String) -> Error {
        Error::Recorded { file: self.path.clone(), found, expected }
    }
}

/// What tells a model from others: its weights' names and shapes and the beginning of their bytes, by FNV-1a.
///
/// # Errors
/// A read that fails.
pub fn fingerprint(checkpoint: &Checkpoint) -> Result<String> {
    const BEGINNING: u64 = 256;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for weight in checkpoint.weights() {
        add(weight.name.as_bytes());
        weight.shape.iter().for_each(|d| add(&d.to_le_bytes()));
        let at = weight.tensors[0];
        let source = &checkpoint.sources()[at.source];
        let size = source.tensors()[at.tensor].bytes().unwrap_or(0).min(BEGINNING);
        let mut bytes = vec![0; size as usize];
        source.read_at(at.tensor, 0, &mut bytes)?;
        add(&bytes);
    }
    Ok(format!("{hash:016x}"))
}
