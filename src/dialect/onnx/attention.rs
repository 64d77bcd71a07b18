//! Attention as a graph: heads apart, rotated, weighed, gathered. Where several query heads share a key head, they have an axis
//! of their own, along which keys and values are stretched without being copied.

use formats::onnx::proto::tensor_proto::DataType;

use super::graph::int;
use super::transformer::Builder;
use crate::dialect::Unsayable;
use crate::family::{Position, Rope, RopeScaling, Slot};

/// What layers share: masks by window, rotations by their description.
pub struct Attention {
    /// Axes of heads: one, or key heads and the query heads of each.
    axes: usize,
    masks: Vec<(Option<usize>, String)>,
    rotations: Vec<(Rope, [String; 2])>,
}

impl Attention {
    /// Nothing shared yet.
    pub fn new(builder: &mut Builder<'_>) -> Self {
        let axes = if builder.t.heads == builder.t.kv_heads { 1 } else { 2 };
        Self { axes, masks: Vec::new(), rotations: Vec::new() }
    }

    /// What attention adds to the stream, of which it sees `x`.
    pub fn apply(&mut self, b: &mut Builder<'_>, x: &str, layer: usize) -> Result<String, Unsayable> {
        let t = b.t;
        let dim = t.head_dim as i64;
        let (heads, shared): (Vec<i64>, Vec<i64>) = match self.axes {
            1 => (vec![t.heads as i64], vec![t.heads as i64]),
            _ => (vec![t.kv_heads as i64, (t.heads / t.kv_heads) as i64], vec![t.kv_heads as i64, 1]),
        };
        let project = |b: &mut Builder<'_>, slot, heads: &[i64]| {
            let y = b.weights.linear(&mut b.graph, x, slot, layer, None)?;
            Ok::<_, Unsayable>(b.apart(&y, &[heads, &[dim]].concat()))
        };
        let mut q = project(b, Slot::AttnQ, &heads)?;
        let mut k = project(b, Slot::AttnK, &shared)?;
        let v = project(b, Slot::AttnV, &shared)?;
        if t.qk_norm {
            q = b.norm(&q, Slot::AttnQNorm, layer)?;
            k = b.norm(&k, Slot::AttnKNorm, layer)?;
        }
        if let Position::Rope(ropes) = &t.position
            && let Some(rope) = ropes.get(layer)
        {
            let turns = self.rotation(b, rope);
            q = rotate(b, &q, rope, &turns);
            k = rotate(b, &k, rope, &turns);
        }
        let scale = b.graph.float(t.attention_scale);
        let q = b.graph.node("Mul", &[&q, &scale], &[]);
        // From [batch, sequence, heads …, dim]: 0, 1, 2 …, last.
        let n = self.axes as i64;
        let order = |after: [i64; 2]| [vec![0], (2..2 + n).collect(), after.to_vec()].concat();
        let q = b.graph.transpose(&q, &order([1, 2 + n]));
        let k = b.graph.transpose(&k, &order([2 + n, 1]));
        let v = b.graph.transpose(&v, &order([1, 2 + n]));
        let scores = b.graph.node("MatMul", &[&q, &k], &[]);
        let mask = self.mask(b, t.windows.get(layer).copied().flatten());
        let scores = b.graph.node("Add", &[&scores, &mask], &[]);
        let weights = b.graph.node("Softmax", &[&scores], &[int("axis", -1)]);
        let seen = b.graph.node("MatMul", &[&weights, &v], &[]);
        let back = [vec![0, 1 + n], (1..1 + n).collect(), vec![2 + n]].concat();
        let seen = b.graph.transpose(&seen, &back);
        let seen = b.graph.reshape(&seen, &[-1, t.heads as i64 * dim]);
        b.weights.linear(&mut b.graph, &seen, Slot::AttnOut, layer, None)
    }

    /// What is added to scores: 0 where a position sees another, else a number that leaves nothing of it.
    fn mask(&mut self, b: &mut Builder<'_>, window: Option<usize>) -> String {
        if let Some((_, mask)) = self.masks.iter().find(|(of, _)| *of == window) {
            return mask.clone();
        }
        let name = window.map_or("mask".to_owned(), |window| format!("mask.{window}"));
        b.graph.enter(name);
        let text = b.graph.cast("attention_mask", DataType::Bool);
        let mut seen = b.graph.unsqueeze(&text, &(1..3 + self.axes as i64 - 1).collect::<Vec<_>>());
        if b.t.causal {
            let (rows, cols) = (b.graph.unsqueeze(&b.positions, &[1]), b.graph.unsqueeze(&b.positions, &[0]));
            let back = b.graph.node("Sub", &[&rows, &cols], &[]);
            let zero = b.graph.int(0);
            let mut near = b.graph.node("GreaterOrEqual", &[&back, &zero], &[]);
            if let Some(window) = window {
                let window = b.graph.int(window as i64);
                let within = b.graph.node("Less", &[&back, &window], &[]);
                near = b.graph.node("And", &[&near, &within], &[]);
            }
            seen = b.graph.node("And", &[&seen, &near], &[]);
        }
        let (zero, least) = (b.graph.float(0.0), b.graph.float(f32::MIN));
        let mask = b.graph.node("Where", &[&seen, &zero, &least], &[]);
        self.masks.push((window, mask.clone()));
        mask
    }

    /// Cosines and sines: `[sequence, 1 …, pairs]`, a 1 for each axis of heads.
    fn rotation(&mut self, b: &mut Builder<'_>, rope: &Rope) -> [String; 2] {
        if let Some((_, turns)) = self.rotations.iter().find(|(of, _)| of == rope) {
            return turns.clone();
        }
        b.graph.enter(format!("rotation.{}", self.rotations.len()));
        let pairs = [1, rope.dims / 2];
        let frequencies = match &rope.scaling {
            RopeScaling::Long { original_context, .. } => {
                let original = b.graph.int(*original_context as i64);
                let is_long = b.graph.node("Greater", &[&b.length, &original], &[]);
                let long = b.graph.floats(&rope.frequencies(original_context + 1), &pairs);
                let short = b.graph.floats(&rope.frequencies(*original_context), &pairs);
                b.graph.node("Where", &[&is_long, &long, &short], &[])
            }
            _ => b.graph.floats(&rope.frequencies(b.t.max_positions), &pairs),
        };
        let positions = b.graph.cast(&b.positions, DataType::Float);
        let positions = b.graph.unsqueeze(&positions, &[1]);
        let angles = b.graph.node("Mul", &[&positions, &frequencies], &[]);
        let angles = b.graph.unsqueeze(&angles, &(1..1 + self.axes as i64).collect::<Vec<_>>());
        let turns = ["Cos", "Sin"].map(|f| {
            let turn = b.graph.node(f, &[&angles], &[]);
            match rope.scaling {
                RopeScaling::Long { attention_factor, .. } => {
                    let factor = b.graph.float(attention_factor);
                    b.graph.node("Mul", &[&turn, &factor], &[])
                }
                _ => turn,
            }
        });
        self.rotations.push((rope.clone(), turns.clone()));
        turns
    }
}

/// Each head turned: pairs (i, i + dims/2) of its leading dimensions.
fn rotate(b: &mut Builder<'_>, x: &str, rope: &Rope, [cos, sin]: &[String; 2]) -> String {
    let half = rope.dims / 2;
    let first = b.graph.slice(x, -1, 0..half);
    let second = b.graph.slice(x, -1, half..2 * half);
    let mut product = |x: &str, turn: &str| b.graph.node("Mul", &[x, turn], &[]);
    let (a, c) = (product(&first, cos), product(&second, sin));
    let (d, e) = (product(&second, cos), product(&first, sin));
    let first = b.graph.node("Sub", &[&a, &c], &[]);
    let second = b.graph.node("Add", &[&d, &e], &[]);
    let mut parts = vec![first, second];
    if 2 * half < b.t.head_dim {
        parts.push(b.graph.slice(x, -1, 2 * half..b.t.head_dim));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    b.graph.node("Concat", &parts, &[int("axis", -1)])
}
