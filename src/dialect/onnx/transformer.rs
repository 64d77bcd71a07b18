//! A transformer as a graph: what the runtime computes, in ONNX's operators. The stream is `[batch · sequence, hidden]`; only
//! attention sees texts apart.

use formats::onnx::proto::tensor_proto::DataType;

use super::attention::Attention;
use super::graph::{Dim, Graph, float, int, ints};
use super::weights::Weights;
use crate::dialect::Unsayable;
use crate::family::{Activation, Norm, Part, Placement, Position, Slot, Transformer};

/// The axes of inputs and outputs.
const TEXTS: [Dim; 2] = [Dim::Any("batch"), Dim::Any("sequence")];

/// A transformer being written down.
pub struct Builder<'a> {
    pub(super) t: &'a Transformer,
    pub(super) graph: Graph,
    pub(super) weights: Weights<'a>,
    /// The tokens.
    ids: String,
    /// Texts and tokens in each: `[2]`.
    pub(super) texts: String,
    /// Tokens in each text, a number.
    pub(super) length: String,
    /// The positions of a text's tokens: `[sequence]`.
    pub(super) positions: String,
}

/// Writes a transformer down.
///
/// # Errors
/// A weight that is missing, or in an encoding that no operator takes.
pub fn build(t: &Transformer, graph: Graph, weights: Weights<'_>) -> Result<Graph, Unsayable> {
    let mut builder = Builder::new(t, graph, weights);
    let mut stream = builder.embeddings()?;
    let mut attention = Attention::new(&mut builder);
    for layer in 0..t.layers {
        stream = builder.block(stream, layer, &mut attention)?;
    }
    builder.end(stream)
}

impl<'a> Builder<'a> {
    fn new(t: &'a Transformer, mut graph: Graph, weights: Weights<'a>) -> Self {
        let ids = graph.input("input_ids", DataType::Int64, &TEXTS);
        graph.enter("texts");
        let texts = graph.node("Shape", &[&ids], &[]);
        let (zero, one) = (graph.int(0), graph.int(1));
        let length = graph.node("Gather", &[&texts, &one], &[]);
        let positions = graph.node("Range", &[&zero, &length, &one], &[]);
        Self { t, graph, weights, ids, texts, length, positions }
    }

    /// The first hidden states.
    fn embeddings(&mut self) -> Result<String, Unsayable> {
        let t = self.t;
        // What a family calls its mask comes before its types.
        self.graph.input("attention_mask", DataType::Int64, &TEXTS);
        self.graph.enter("embeddings");
        let mut x = self.weights.rows(&mut self.graph, &self.ids, Slot::TokenEmbedding)?;
        if t.embedding_scale != 1.0 {
            let scale = self.graph.float(t.embedding_scale);
            x = self.graph.node("Mul", &[&x, &scale], &[]);
        }
        if let Position::Learned { offset } = t.position {
            let rows = if offset == 0 { self.positions.clone() } else { self.counted(offset) };
            let positions = self.weights.rows(&mut self.graph, &rows, Slot::PositionEmbedding)?;
            x = self.graph.node("Add", &[&x, &positions], &[]);
        }
        if t.token_types > 0 {
            // A single type needs no telling.
            let types = match t.token_types {
                1 => self.graph.ints(&[0]),
                _ => self.graph.input("token_type_ids", DataType::Int64, &TEXTS),
            };
            let types = self.weights.rows(&mut self.graph, &types, Slot::TypeEmbedding)?;
            x = self.graph.node("Add", &[&x, &types], &[]);
        }
        let x = self.graph.reshape(&x, &[-1, t.hidden as i64]);
        if t.embedding_norm { self.norm(&x, Slot::EmbeddingNorm, 0) } else { Ok(x) }
    }

    /// roberta's positions: counted over the tokens that are not padding, from the row after the padding token's.
    fn counted(&mut self, offset: usize) -> String {
        let graph = &mut self.graph;
        let padding = graph.int(offset as i64 - 1);
        let is_padding = graph.node("Equal", &[&self.ids, &padding], &[]);
        let is_text = graph.node("Not", &[&is_padding], &[]);
        let is_text = graph.cast(&is_text, DataType::Int64);
        let axis = graph.int(1);
        let count = graph.node("CumSum", &[&is_text, &axis], &[]);
        let count = graph.node("Mul", &[&count, &is_text], &[]);
        graph.node("Add", &[&count, &padding], &[])
    }

    fn block(&mut self, stream: String, layer: usize, attention: &mut Attention) -> Result<String, Unsayable> {
        self.graph.enter(format!("layers.{layer}/attention"));
        let x = self.before(&stream, Slot::AttnNorm, layer)?;
        let change = attention.apply(self, &x, layer)?;
        let stream = self.after(&stream, &change, Slot::AttnOutNorm, layer)?;
        self.graph.enter(format!("layers.{layer}/feed_forward"));
        let x = self.before(&stream, Slot::FfnNorm, layer)?;
        let change = self.feed_forward(&x, layer)?;
        self.after(&stream, &change, Slot::FfnOutNorm, layer)
    }

    /// What a part sees of the stream.
    fn before(&mut self, stream: &str, slot: Slot, layer: usize) -> Result<String, Unsayable> {
        match self.t.placement {
            Placement::Post => Ok(stream.to_owned()),
            Placement::Pre | Placement::Both => self.norm(stream, slot, layer),
        }
    }

    /// The stream with a part's result added.
    fn after(&mut self, stream: &str, change: &str, slot: Slot, layer: usize) -> Result<String, Unsayable> {
        match self.t.placement {
            Placement::Pre => Ok(self.graph.node("Add", &[stream, change], &[])),
            Placement::Post => {
                let sum = self.graph.node("Add", &[stream, change], &[]);
                self.norm(&sum, slot, layer)
            }
            Placement::Both => {
                let change = self.norm(change, slot, layer)?;
                Ok(self.graph.node("Add", &[stream, &change], &[]))
            }
        }
    }

    /// A normalisation over the last axis.
    pub(super) fn norm(&mut self, x: &str, slot: Slot, layer: usize) -> Result<String, Unsayable> {
        let graph = &mut self.graph;
        let gain = self.weights.vector(graph, slot, layer, Part::Weight).ok_or_else(|| Unsayable {
            problem: format!("it has no weight for {slot:?} of layer {layer}"),
            next: "Give the whole model".to_owned(),
        })?;
        let shift = self.weights.vector(graph, slot, layer, Part::Bias);
        match self.t.norm {
            Norm::Layer { eps } => {
                let inputs: Vec<&str> = [x, &gain].into_iter().chain(shift.as_deref()).collect();
                Ok(graph.node("LayerNormalization", &inputs, &[int("axis", -1), float("epsilon", eps)]))
            }
            Norm::Rms { eps, offset } => {
                let gain = match offset {
                    0.0 => gain,
                    offset => {
                        let offset = graph.float(offset);
                        graph.node("Add", &[&gain, &offset], &[])
                    }
                };
                // The form that onnxruntime knows and computes in one go.
                let two = graph.float(2.0);
                let squares = graph.node("Pow", &[x, &two], &[]);
                let mean = match graph.opset {
                    ..18 => graph.node("ReduceMean", &[&squares], &[ints("axes", &[-1])]),
                    _ => {
                        let axis = graph.ints(&[-1]);
                        graph.node("ReduceMean", &[&squares, &axis], &[])
                    }
                };
                let eps = graph.float(eps);
                let sum = graph.node("Add", &[&mean, &eps], &[]);
                let root = graph.node("Sqrt", &[&sum], &[]);
                let scaled = graph.node("Div", &[x, &root], &[]);
                Ok(graph.node("Mul", &[&scaled, &gain], &[]))
            }
        }
    }

    /// The outputs: an encoder's last hidden state (and BERT's pooled first position, if it has that), a decoder's logits.
    fn end(mut self, stream: String) -> Result<Graph, Unsayable> {
        let t = self.t;
        self.graph.enter("end");
        let x = if t.final_norm { self.norm(&stream, Slot::FinalNorm, 0)? } else { stream };
        if t.causal {
            let logits = self.weights.head(&mut self.graph, &x, t.tied)?;
            let logits = self.apart(&logits, &[t.vocab as i64]);
            self.graph.output("logits", &logits, &[TEXTS[0], TEXTS[1], Dim::Fixed(t.vocab)]);
            return Ok(self.graph);
        }
        let hidden = self.apart(&x, &[t.hidden as i64]);
        self.graph.output("last_hidden_state", &hidden, &[TEXTS[0], TEXTS[1], Dim::Fixed(t.hidden)]);
        if self.weights.has(Slot::Pooler) {
            self.graph.enter("pooler");
            let zero = self.graph.int(0);
            let first = self.graph.node("Gather", &[&hidden, &zero], &[int("axis", 1)]);
            let pooled = self.weights.linear(&mut self.graph, &first, Slot::Pooler, 0, None)?;
            let pooled = self.graph.node("Tanh", &[&pooled], &[]);
            self.graph.output("pooler_output", &pooled, &[TEXTS[0], Dim::Fixed(t.hidden)]);
        }
        Ok(self.graph)
    }

    /// Rows of the stream as texts: `[batch, sequence, …]`.
    pub(super) fn apart(&mut self, x: &str, axes: &[i64]) -> String {
        let axes = self.graph.ints(axes);
        let shape = self.graph.node("Concat", &[&self.texts, &axes], &[int("axis", 0)]);
        self.graph.node("Reshape", &[x, &shape], &[])
    }
}

/// An activation of a value.
pub fn activate(graph: &mut Graph, f: Activation, x: &str) -> String {
    match f {
        Activation::Identity => x.to_owned(),
        Activation::Relu => graph.node("Relu", &[x], &[]),
        Activation::Tanh => graph.node("Tanh", &[x], &[]),
        Activation::Sigmoid => graph.node("Sigmoid", &[x], &[]),
        Activation::Silu => {
            let sigmoid = graph.node("Sigmoid", &[x], &[]);
            graph.node("Mul", &[x, &sigmoid], &[])
        }
        // Both in the forms that onnxruntime knows and computes in one go.
        Activation::Gelu => {
            let (root, one, half) = (graph.float(std::f32::consts::SQRT_2), graph.float(1.0), graph.float(0.5));
            let scaled = graph.node("Div", &[x, &root], &[]);
            let erf = graph.node("Erf", &[&scaled], &[]);
            let sum = graph.node("Add", &[&erf, &one], &[]);
            let product = graph.node("Mul", &[x, &sum], &[]);
            graph.node("Mul", &[&product, &half], &[])
        }
        Activation::GeluTanh => {
            let (three, one, half) = (graph.float(3.0), graph.float(1.0), graph.float(0.5));
            let (cubic, root) = (graph.float(0.044_715), graph.float(0.797_884_6));
            let cube = graph.node("Pow", &[x, &three], &[]);
            let cube = graph.node("Mul", &[&cube, &cubic], &[]);
            let sum = graph.node("Add", &[x, &cube], &[]);
            let scaled = graph.node("Mul", &[&sum, &root], &[]);
            let tanh = graph.node("Tanh", &[&scaled], &[]);
            let sum = graph.node("Add", &[&tanh, &one], &[]);
            let product = graph.node("Mul", &[x, &sum], &[]);
            graph.node("Mul", &[&product, &half], &[])
        }
    }
}
