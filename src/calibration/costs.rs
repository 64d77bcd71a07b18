//! What calibration takes, in multiplications that are estimated from a model's shape. What is decided by them is the same on
//! every machine.

use crate::family::Transformer;

/// Multiplications.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Of a token on its way through the blocks.
    pub forward: f64,
    /// Of a token, to be added to the sums over the inputs of all matrices.
    pub inputs: f64,
    /// Of a token, forward again and back through head and blocks with so many samples, and to be added to the sums over
    /// gradients.
    pub backward: f64,
    /// Of all rows of all matrices, each times a matrix over its columns.
    pub rows: f64,
    /// Of matrices over rows times all matrices.
    pub together: f64,
    /// Of factorising matrices over columns.
    pub factors: f64,
}

impl Costs {
    /// Of a model, with so many samples of gradients for each token.
    pub fn of(t: &Transformer, samples: usize) -> Self {
        let (hidden, queries, keys) =
            (t.hidden as f64, (t.heads * t.head_dim) as f64, (t.kv_heads * t.head_dim) as f64);
        // Experts in all, and for each token.
        let (width, experts, active) = t
            .experts
            .map_or((t.intermediate, 1, 1), |experts| (experts.intermediate, experts.count, experts.per_token));
        let (width, experts, active) = (width as f64, experts as f64, active as f64);
        // Rows of each matrix that has an input, its columns, whether its result is added to the stream, how many such inputs there
        // are, and of how many a token sees.
        let ups = if t.gated { vec![width, width] } else { vec![width] };
        let inputs = [
            (vec![queries, keys, keys], hidden, false, 1.0, 1.0),
            (vec![hidden], queries, true, 1.0, 1.0),
            (ups, hidden, false, experts, active),
            (vec![hidden], width, true, experts, active),
        ];
        let mut costs = Self { forward: 0.0, inputs: 0.0, backward: 0.0, rows: 0.0, together: 0.0, factors: 0.0 };
        let mut gradients = 0.0;
        for (matrices, cols, residual, count, active) in inputs {
            let rows: f64 = matrices.iter().sum();
            costs.forward += active * rows * cols;
            // Of symmetric sums half. What a result lacks is a product before it is summed.
            costs.inputs += active * (cols * cols / 2.0 + if residual { 2.0 * rows * cols } else { cols * cols });
            gradients += active * matrices.iter().map(|rows| rows * rows / 2.0).sum::<f64>();
            costs.rows += count * rows * cols * cols;
            costs.together += count * matrices.iter().map(|rows| rows * rows * cols).sum::<f64>();
            // In f64, at half the speed.
            costs.factors += count * 2.0 * cols * cols * cols / 3.0;
        }
        let layers = t.layers as f64;
        for cost in [
            &mut costs.forward,
            &mut costs.inputs,
            &mut costs.rows,
            &mut costs.together,
            &mut costs.factors,
            &mut gradients,
        ] {
            *cost *= layers;
        }
        let samples = samples as f64;
        let head = if t.causal { (t.vocab * t.hidden) as f64 } else { 0.0 };
        costs.backward = (2.0 + samples) * (costs.forward + head) + samples * gradients;
        costs
    }
}
