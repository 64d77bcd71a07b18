//! The feed-forward part as a graph: dense, or a mixture of experts, each of which sees its own tokens only.

use super::graph::{int, text};
use super::transformer::{Builder, activate};
use crate::dialect::Unsayable;
use crate::family::{Experts, Slot};

impl Builder<'_> {
    /// What the feed-forward part adds to the stream, of which it sees `x`.
    pub(super) fn feed_forward(&mut self, x: &str, layer: usize) -> Result<String, Unsayable> {
        match self.t.experts {
            None => self.dense(x, layer, None),
            Some(experts) => self.mixture(x, layer, experts),
        }
    }

    /// down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate.
    fn dense(&mut self, x: &str, layer: usize, expert: Option<usize>) -> Result<String, Unsayable> {
        let f = self.t.activation;
        let up = self.weights.linear(&mut self.graph, x, Slot::FfnUp, layer, expert)?;
        let middle = match self.t.gated {
            false => activate(&mut self.graph, f, &up),
            true => {
                let gate = self.weights.linear(&mut self.graph, x, Slot::FfnGate, layer, expert)?;
                let gate = activate(&mut self.graph, f, &gate);
                self.graph.node("Mul", &[&gate, &up], &[])
            }
        };
        self.weights.linear(&mut self.graph, &middle, Slot::FfnDown, layer, expert)
    }

    /// The sum of what the chosen experts make of each token, by their probabilities.
    fn mixture(&mut self, x: &str, layer: usize, experts: Experts) -> Result<String, Unsayable> {
        let scores = self.weights.linear(&mut self.graph, x, Slot::Router, layer, None)?;
        let graph = &mut self.graph;
        let probabilities = graph.node("Softmax", &[&scores], &[int("axis", -1)]);
        let count = graph.ints(&[experts.per_token as i64]);
        let [mut shares, chosen] = graph.nodes_of("", "TopK", &[&probabilities, &count], &[int("axis", -1)]);
        let last = graph.ints(&[-1]);
        if experts.normalise {
            let total = graph.node("ReduceSum", &[&shares, &last], &[]);
            shares = graph.node("Div", &[&shares, &total], &[]);
        }
        let shape = graph.node("Shape", &[x], &[]);
        let mut sum = graph.node("ConstantOfShape", &[&shape], &[]);
        for expert in 0..experts.count {
            self.graph.enter(format!("layers.{layer}/feed_forward/experts.{expert}"));
            let graph = &mut self.graph;
            let (number, zero) = (graph.int(expert as i64), graph.float(0.0));
            let is_chosen = graph.node("Equal", &[&chosen, &number], &[]);
            let share = graph.node("Where", &[&is_chosen, &shares, &zero], &[]);
            let share = graph.node("ReduceSum", &[&share, &last], &[int("keepdims", 0)]);
            let tokens = graph.node("NonZero", &[&share], &[]);
            let tokens = graph.reshape(&tokens, &[-1]);
            let seen = graph.node("Gather", &[x, &tokens], &[]);
            let result = self.dense(&seen, layer, Some(expert))?;
            let graph = &mut self.graph;
            let share = graph.node("Gather", &[&share, &tokens], &[]);
            let share = graph.unsqueeze(&share, &[1]);
            let result = graph.node("Mul", &[&result, &share], &[]);
            let tokens = graph.unsqueeze(&tokens, &[1]);
            sum = graph.node("ScatterND", &[&sum, &tokens, &result], &[text("reduction", "add")]);
        }
        Ok(sum)
    }
}
