//! A model's weights as operands of a graph. What is stored is what Hugging Face stores, `[out, in]`, codes and scales too, so
//! that bytes are copied; `Gemm` takes it so, and what has to be made of it, the graph makes.

use std::collections::HashMap;
use std::ops::Range;

use formats::Dtype;
use formats::onnx::proto::tensor_proto::DataType;

use super::graph::{Graph, MICROSOFT, int};
use crate::dialect::Unsayable;
use crate::encoding::{Encoding, PartLayout};
use crate::family::{Family, Part, Slot};

/// A weight that the file holds.
#[derive(Debug, Clone)]
pub struct Held<'a> {
    /// Its name in the Hugging Face dialect.
    pub name: &'a str,
    /// How its numbers are stored.
    pub encoding: Encoding,
    /// Its tensors, as the file has them.
    pub parts: &'a [PartLayout],
}

/// Where a slot's weight is.
#[derive(Debug, Clone)]
struct Place {
    /// Index of the held weight.
    held: usize,
    /// The matrix of a stack of experts.
    expert: Option<usize>,
    /// The slot's rows, and all rows, of the logical matrix.
    rows: Range<usize>,
    all: usize,
    /// Whether it is stored `[in, out]`.
    transposed: bool,
}

/// A matrix with the bias that it adds, if it adds one, times a value.
type Product = (usize, Option<usize>, String);

/// The weights of a model, and what was made of them so far: no weight is dequantized twice.
#[derive(Debug)]
pub struct Weights<'a> {
    held: &'a [Held<'a>],
    places: HashMap<(Slot, usize, Option<usize>, Part), Place>,
    floats: HashMap<String, String>,
    matrices: HashMap<(usize, Option<usize>), String>,
    products: HashMap<Product, String>,
}

impl<'a> Weights<'a> {
    /// The weights of a model of a family.
    pub fn new(family: &Family, held: &'a [Held<'a>]) -> Self {
        let by_name: HashMap<&str, usize> = held.iter().enumerate().map(|(i, held)| (held.name, i)).collect();
        let mut places = HashMap::new();
        for expected in family.tensors() {
            let Some(&at) = expected.names.iter().find_map(|name| by_name.get(name.as_str())) else { continue };
            let stack = expected.shape.len() == 3;
            let all = match (expected.shape.as_slice(), expected.transposed) {
                (&[_, rows, _], _) | (&[_, rows], true) | (&[rows, ..], _) => rows,
                ([], _) => 1,
            };
            for piece in &expected.pieces {
                let first = if stack { piece.rows.start / all.max(1) * all } else { 0 };
                let place = Place {
                    held: at,
                    expert: piece.expert.filter(|_| stack),
                    rows: piece.rows.start - first..piece.rows.end - first,
                    all,
                    transposed: expected.transposed,
                };
                places.entry((piece.slot, expected.layer, piece.expert, expected.part)).or_insert(place);
            }
        }
        let (floats, matrices, products) = Default::default();
        Self { held, places, floats, matrices, products }
    }

    fn find(&self, slot: Slot, layer: usize, expert: Option<usize>, part: Part) -> Option<Place> {
        self.places.get(&(slot, layer, expert, part)).cloned()
    }

    fn weight(&self, slot: Slot, layer: usize, expert: Option<usize>) -> Result<Place, Unsayable> {
        self.find(slot, layer, expert, Part::Weight).ok_or_else(|| Unsayable {
            problem: format!("it has no weight for {slot:?} of layer {layer}"),
            next: "Give the whole model".to_owned(),
        })
    }

    /// Whether the model has a weight for a slot.
    pub fn has(&self, slot: Slot) -> bool {
        self.places.contains_key(&(slot, 0, None, Part::Weight))
    }

    /// A tensor of the file as f32.
    fn float(&mut self, graph: &mut Graph, part: &PartLayout) -> String {
        if part.dtype == Dtype::F32 {
            return part.name.clone();
        }
        let floats = &mut self.floats;
        floats.entry(part.name.clone()).or_insert_with(|| graph.cast(&part.name, DataType::Float)).clone()
    }

    /// A vector of a slot, if there is one.
    pub fn vector(&mut self, graph: &mut Graph, slot: Slot, layer: usize, part: Part) -> Option<String> {
        let place = self.find(slot, layer, None, part)?;
        Some(self.vector_at(graph, &place))
    }

    fn vector_at(&mut self, graph: &mut Graph, place: &Place) -> String {
        let whole = self.float(graph, &self.held[place.held].parts[0]);
        if place.rows.len() == place.all { whole } else { graph.slice(&whole, 0, place.rows.clone()) }
    }

    /// x `[rows, in]` · Wᵀ + b: `[rows, out]`. Slots of one tensor are multiplied together and cut apart afterwards.
    ///
    /// # Errors
    /// A slot without a weight, or one in an encoding that no operator takes.
    pub fn linear(
        &mut self,
        graph: &mut Graph,
        x: &str,
        slot: Slot,
        layer: usize,
        expert: Option<usize>,
    ) -> Result<String, Unsayable> {
        let weight = self.weight(slot, layer, expert)?;
        let bias = if expert.is_none() { self.find(slot, layer, None, Part::Bias) } else { None };
        self.multiply(graph, x, &weight, bias.as_ref())
    }

    /// The output projection: the token embedding where that is it.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn head(&mut self, graph: &mut Graph, x: &str, tied: bool) -> Result<String, Unsayable> {
        let slot = if tied { Slot::TokenEmbedding } else { Slot::Head };
        let weight = self.weight(slot, 0, None)?;
        let bias = self.find(Slot::Head, 0, None, Part::Bias);
        self.multiply(graph, x, &weight, bias.as_ref())
    }

    fn multiply(
        &mut self,
        graph: &mut Graph,
        x: &str,
        weight: &Place,
        bias: Option<&Place>,
    ) -> Result<String, Unsayable> {
        let together = bias.filter(|bias| bias.rows == weight.rows && bias.all == weight.all);
        let key = (weight.held, weight.expert, x.to_owned());
        let product = match self.products.get(&key) {
            Some(product) => product.clone(),
            None => {
                let whole = together.map(|bias| Place { rows: 0..bias.all, ..bias.clone() });
                let whole = whole.map(|bias| self.vector_at(graph, &bias));
                let product = self.product(graph, x, weight, whole.as_deref())?;
                self.products.insert(key, product.clone());
                product
            }
        };
        let product = match weight.rows.len() == weight.all {
            true => product,
            false => graph.slice(&product, 1, weight.rows.clone()),
        };
        match bias.filter(|_| together.is_none()) {
            Some(bias) => {
                let bias = self.vector_at(graph, bias);
                Ok(graph.node("Add", &[&product, &bias], &[]))
            }
            None => Ok(product),
        }
    }

    /// x times all of a matrix.
    fn product(&mut self, graph: &mut Graph, x: &str, weight: &Place, bias: Option<&str>) -> Result<String, Unsayable> {
        let held = &self.held[weight.held];
        if let Encoding::Blocked { bits, group, .. } = held.encoding {
            let shape = &held.parts[0].shape;
            let scales = self.float(graph, &held.parts[1]);
            let mut inputs = vec![x, &held.parts[0].name, &scales];
            // Zero points and an order of inputs, of which there are none, come before the bias.
            inputs.extend(bias.map(|bias| ["", "", bias]).into_iter().flatten());
            let size = [int("K", (shape[1] * group) as i64), int("N", shape[0] as i64)];
            let code = [int("bits", bits.into()), int("block_size", group as i64)];
            let [product] = graph.nodes_of(MICROSOFT, "MatMulNBits", &inputs, &[size, code].concat());
            return Ok(product);
        }
        let matrix = self.matrix(graph, weight)?;
        let inputs: Vec<&str> = [x, &matrix].into_iter().chain(bias).collect();
        Ok(graph.node("Gemm", &inputs, &[int("transB", i64::from(!weight.transposed))]))
    }

    /// A matrix as f32, stored as it is.
    fn matrix(&mut self, graph: &mut Graph, place: &Place) -> Result<String, Unsayable> {
        let key = (place.held, place.expert);
        if let Some(matrix) = self.matrices.get(&key) {
            return Ok(matrix.clone());
        }
        let held = &self.held[place.held];
        let of_expert = |graph: &mut Graph, whole: String| match place.expert {
            Some(expert) => {
                let expert = graph.int(expert as i64);
                graph.node("Gather", &[&whole, &expert], &[])
            }
            None => whole,
        };
        let matrix = match held.encoding {
            Encoding::Plain(dtype) if dtype.is_float() => {
                let whole = self.float(graph, &held.parts[0]);
                of_expert(graph, whole)
            }
            Encoding::Int8Rows { .. } | Encoding::Fp8Rows { .. } => {
                let mut scales = self.float(graph, &held.parts[1]);
                // Folders have a column of scales, DequantizeLinear takes a vector.
                match (place.expert, held.parts[0].shape.as_slice()) {
                    (Some(_), [experts, ..]) => scales = graph.reshape(&scales, &[*experts as i64, -1]),
                    _ if held.parts[1].shape.len() != 1 => scales = graph.reshape(&scales, &[-1]),
                    _ => {}
                }
                let scales = of_expert(graph, scales);
                let codes = of_expert(graph, held.parts[0].name.clone());
                graph.node("DequantizeLinear", &[&codes, &scales], &[int("axis", 0)])
            }
            other => return Err(unsayable(held.name, other)),
        };
        self.matrices.insert(key, matrix.clone());
        Ok(matrix)
    }

    /// The rows of a table that numbers of whatever shape name: that shape and the table's columns, in f32.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn rows(&mut self, graph: &mut Graph, numbers: &str, slot: Slot) -> Result<String, Unsayable> {
        let place = self.weight(slot, 0, None)?;
        let held = &self.held[place.held];
        let gathered = graph.node("Gather", &[&held.parts[0].name, numbers], &[]);
        if let Encoding::Plain(dtype) = held.encoding
            && dtype.is_float()
        {
            return Ok(if dtype == Dtype::F32 { gathered } else { graph.cast(&gathered, DataType::Float) });
        }
        // A number of a table has no row of its own to be dequantized along: codes and scales are looked up and multiplied.
        let codes = graph.cast(&gathered, DataType::Float);
        match held.encoding {
            Encoding::Int8Rows { .. } | Encoding::Fp8Rows { .. } => {
                let scales = graph.reshape(&held.parts[1].name, &[-1, 1]);
                let scales = graph.node("Gather", &[&scales, numbers], &[]);
                let scales = graph.cast(&scales, DataType::Float);
                Ok(graph.node("Mul", &[&codes, &scales], &[]))
            }
            Encoding::Blocked { bits, group, .. } => {
                let blocks = held.parts[0].shape[1];
                let scales = graph.reshape(&held.parts[1].name, &[-1, blocks as i64, 1]);
                let scales = graph.node("Gather", &[&scales, numbers], &[]);
                let scales = graph.cast(&scales, DataType::Float);
                let (codes, zero) = match bits {
                    4 => (self.nibbles(graph, &codes, numbers, group), 8.0),
                    _ => (codes, 128.0),
                };
                let zero = graph.float(zero);
                let codes = graph.node("Sub", &[&codes, &zero], &[]);
                let values = graph.node("Mul", &[&codes, &scales], &[]);
                let cols = blocks * group;
                Ok(self.shaped(graph, &values, numbers, &[cols as i64]))
            }
            other => Err(unsayable(held.name, other)),
        }
    }

    /// Bytes, as f32, cut into the numbers of four bits that they hold: low ones first, groups on the last axis.
    fn nibbles(&mut self, graph: &mut Graph, bytes: &str, numbers: &str, group: u64) -> String {
        let sixteen = graph.float(16.0);
        let high = graph.node("Div", &[bytes, &sixteen], &[]);
        let high = graph.node("Floor", &[&high], &[]);
        let above = graph.node("Mul", &[&high, &sixteen], &[]);
        let low = graph.node("Sub", &[bytes, &above], &[]);
        let (low, high) = (graph.unsqueeze(&low, &[-1]), graph.unsqueeze(&high, &[-1]));
        let pairs = graph.node("Concat", &[&low, &high], &[int("axis", -1)]);
        self.shaped(graph, &pairs, numbers, &[-1, group as i64])
    }

    /// A value in the shape of `numbers` with these axes after it.
    fn shaped(&mut self, graph: &mut Graph, x: &str, numbers: &str, axes: &[i64]) -> String {
        let shape = graph.node("Shape", &[numbers], &[]);
        let axes = graph.ints(axes);
        let shape = graph.node("Concat", &[&shape, &axes], &[int("axis", 0)]);
        graph.node("Reshape", &[x, &shape], &[])
    }
}

fn unsayable(name: &str, encoding: Encoding) -> Unsayable {
    Unsayable {
        problem: format!("no operator takes `{name}`, which is stored as {}", encoding.name()),
        next: "Unpack it: compress convert IN OUT --dequantize".to_owned(),
    }
}
