//! What becomes of weights that are quantized already, and of floats on their way back from another container.

use std::collections::BTreeMap;

use formats::{Dtype, Format};

use super::{Error, Quantized, Recipe, Result};
use crate::dialect::llama_cpp::{WIDENED_KEY, only_dtype};
use crate::encoding::Encoding;
use crate::loader::{Checkpoint, Weight};

/// Refuses a quantized model that the recipe does not take or the target's container cannot hold.
pub fn check(checkpoint: &Checkpoint, recipe: &Recipe, format: Format) -> Result<()> {
    let Some(found) = checkpoint.quantized() else { return Ok(()) };
    let file = checkpoint.path().to_owned();
    match recipe.quantized {
        Quantized::Refuse => return Err(Error::AlreadyQuantized { file, found }),
        Quantized::Unpack if checkpoint.foreign().is_none() => return Ok(()),
        Quantized::Unpack => return Err(Error::NotUnpackable { file, found }),
        Quantized::Keep => {}
    }
    let held = |encoding: Encoding| match (encoding, format) {
        (encoding, Format::Gguf) => matches!(encoding, Encoding::Plain(_)),
        // Forms that only a graph gives a meaning to.
        (Encoding::Int8Cols { .. }, format) => format == Format::Onnx,
        (Encoding::Blocked { .. }, format) => format == Format::Onnx || checkpoint.is_exported(),
        (Encoding::Plain(dtype), _) => !dtype.is_block(),
        // Their descriptions, which other tools need, are not part of what is read.
        (Encoding::Foreign(form), format) => format == Format::Onnx && form.is_of_graph(),
        _ => true,
    };
    let mut lost: BTreeMap<String, usize> = BTreeMap::new();
    for weight in checkpoint.weights().iter().filter(|weight| !held(weight.encoding)) {
        *lost.entry(weight.encoding.name()).or_default() += 1;
    }
    if lost.is_empty() {
        return Ok(());
    }
    let found: Vec<String> = lost.into_iter().map(|(encoding, n)| format!("{n} × {encoding}")).collect();
    Err(Error::NotHeld { file, found: found.join(", "), target: format.name() })
}

/// The float in which a weight is written that does not keep the dtype in which it is stored: an unpacked one, in the dtype of
/// its scales (f16 for ggml's blocks, whose scales are that; the config's for other tools' forms); and what had to be f32 in
/// our own GGUF files, in the dtype in which it came.
pub fn float(checkpoint: &Checkpoint, weight: &Weight, target: Format) -> Option<Dtype> {
    match weight.encoding {
        Encoding::Plain(Dtype::F32) if target != Format::Gguf => {
            let widened = Dtype::from_name(checkpoint.gguf()?.get_str(WIDENED_KEY)?).filter(|dtype| dtype.is_float());
            let at = weight.tensors[0];
            let name = &checkpoint.sources()[at.source].tensors()[at.tensor].name;
            only_dtype(name, weight.shape.len()).and(widened)
        }
        Encoding::Plain(dtype) => dtype.is_block().then_some(Dtype::F16),
        Encoding::Int8Rows { scale }
        | Encoding::Int8Cols { scale }
        | Encoding::Blocked { scale, .. }
        | Encoding::PackedInt { scale, .. }
        | Encoding::Fp8Rows { scale }
        | Encoding::Fp8Tiles { scale, .. } => Some(scale),
        Encoding::Awq { .. } | Encoding::Foreign(_) => {
            let config = checkpoint.config();
            let name = config.and_then(|config| config.get("dtype").or_else(|| config.get("torch_dtype"))?.as_str());
            Some(match (name, weight.encoding) {
                (Some("float16"), _) => Dtype::F16,
                (Some("bfloat16"), _) => Dtype::BF16,
                (Some("float32"), _) => Dtype::F32,
                (_, Encoding::Foreign(foreign)) => foreign.float(),
                _ => Dtype::F16,
            })
        }
    }
}
