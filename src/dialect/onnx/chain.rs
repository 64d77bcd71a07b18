//! A chain of linear layers as a graph.

use formats::onnx::proto::tensor_proto::DataType;

use super::graph::{Dim, Graph};
use super::transformer::activate;
use super::weights::Weights;
use crate::dialect::Unsayable;
use crate::family::{Chain, Slot};

/// Writes a chain down: `input` `[rows, in]` to `output` `[rows, out]`.
///
/// # Errors
/// A weight in an encoding that no operator takes.
pub fn build(chain: &Chain, mut graph: Graph, mut weights: Weights<'_>) -> Result<Graph, Unsayable> {
    let rows = |widths: Option<&usize>| [Dim::Any("rows"), Dim::Fixed(widths.copied().unwrap_or(0))];
    let mut x = graph.input("input", DataType::Float, &rows(chain.widths.first()));
    let layers = chain.widths.len() - 1;
    for layer in 0..layers {
        graph.enter(format!("layers.{layer}"));
        x = weights.linear(&mut graph, &x, Slot::ChainLinear, layer, None)?;
        if layer + 1 < layers {
            x = activate(&mut graph, chain.activation, &x);
        }
    }
    graph.output("output", &x, &rows(chain.widths.last()));
    Ok(graph)
}
