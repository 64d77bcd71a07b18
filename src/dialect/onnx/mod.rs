//! ONNX's dialect: a model of a known family as a graph of standard operators whose initializers are Hugging Face's tensors,
//! by their names and byte for byte, so that what is written is also a checkpoint.
//!
//! Operators are those of opset 17, the first with `LayerNormalization`, which every onnxruntime since 1.12 (2022) runs; FP8
//! needs 19. int8 is `DequantizeLinear` per row, packed integers are onnxruntime's `MatMulNBits`: it runs their bytes as they
//! are, several times as fast as opset 21's blocked `DequantizeLinear`, which is unpacked anew in every run.

mod attention;
mod chain;
mod feed_forward;
mod graph;
mod made;
pub mod own;
mod read;
mod transformer;
mod weights;

use formats::onnx::proto::{ModelProto, OperatorSetIdProto};

use super::Unsayable;
use crate::encoding::Encoding;
use crate::family::{Architecture, Family};

pub use made::{ANY_FLOAT, Making, Makings};
pub use read::*;
pub use weights::Held;

/// A model of a family, without initializers: its graph and the operators that it needs.
///
/// # Errors
/// A weight that is missing, or in an encoding that no operator takes.
pub fn model(family: &Family, held: &[Held<'_>]) -> Result<ModelProto, Unsayable> {
    let has = |wanted: fn(&Encoding) -> bool| held.iter().any(|held| wanted(&held.encoding));
    let (opset, ir) = match has(|encoding| matches!(encoding, Encoding::Fp8Rows { .. })) {
        true => (19, 9),
        false => (17, 8),
    };
    let (graph, weights) = (graph::Graph::new(opset), weights::Weights::new(family, held));
    let graph = match &family.architecture {
        Architecture::Transformer(t) => transformer::build(t, graph, weights)?,
        Architecture::Chain(chain) => chain::build(chain, graph, weights)?,
    };
    let operators =
        |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    let mut opset_import = vec![operators("", opset)];
    if has(|encoding| matches!(encoding, Encoding::Blocked { .. })) {
        opset_import.push(operators(graph::MICROSOFT, 1));
    }
    Ok(ModelProto {
        ir_version: Some(ir),
        opset_import,
        producer_name: Some("modelpress".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(graph.finish()),
        ..ModelProto::default()
    })
}
