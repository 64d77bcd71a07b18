//! Model families as data: which weights a family has, what they are called in each dialect, and what the runtime must
//! do with them. Nothing here computes.
//!
//! A family is one small file: a table of its weights and a function that reads its `config.json` into an
//! [`Architecture`]. Adding one makes it load, compress, convert and run.

pub mod bert;
pub mod chain;
pub mod config;
pub mod decoder;
pub mod distilbert;
mod error;
pub mod gemma3;
pub mod gpt2;
mod guess;
pub mod llama;
pub mod mistral;
pub mod mixtral;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_moe;
mod registry;
pub mod reshape;
pub mod roberta;
mod rope;
pub mod table;

use std::fmt;
use std::sync::Arc;

pub use error::Error;
pub use guess::guess;
pub use registry::{Definition, FAMILIES, Family, Kind, find, find_for};
pub use table::RowOrder;

/// What a weight is for. Treatments are chosen by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A matrix that multiplies activations: `[out, in]`.
    Linear,
    /// A table that is looked up by row.
    Embedding,
    /// The output projection of a decoder, `[vocab, hidden]`.
    Head,
    /// Experts stacked in one tensor: `[experts, out, in]`.
    Experts,
    /// The projection that chooses experts.
    Router,
    /// A convolution kernel: `[out, in, …]`.
    Conv,
    /// A normalisation's gain or shift.
    Norm,
    /// A bias.
    Bias,
    /// Anything else.
    Other,
}

impl Role {
    /// Every role, in the order in which reports list them.
    pub const ALL: [Role; 9] = [
        Role::Linear,
        Role::Embedding,
        Role::Head,
        Role::Experts,
        Role::Router,
        Role::Conv,
        Role::Norm,
        Role::Bias,
        Role::Other,
    ];

    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Role::Linear => "linear",
            Role::Embedding => "embedding",
            Role::Head => "head",
            Role::Experts => "experts",
            Role::Router => "router",
            Role::Conv => "conv",
            Role::Norm => "norm",
            Role::Bias => "bias",
            Role::Other => "other",
        }
    }

    /// The role of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The place of a weight in a model, whatever a dialect calls it. Places within a layer come with the layer's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Token embedding `[vocab, hidden]`.
    TokenEmbedding,
    /// Learned position embedding `[positions, hidden]`, from the first position's row on.
    PositionEmbedding,
    /// Token type (segment) embedding `[types, hidden]`.
    TypeEmbedding,
    /// Normalisation after the embeddings.
    EmbeddingNorm,
    /// Normalisation before attention.
    AttnNorm,
    /// Query projection `[heads · head_dim, hidden]`.
    AttnQ,
    /// Key projection `[kv_heads · head_dim, hidden]`.
    AttnK,
    /// Value projection `[kv_heads · head_dim, hidden]`.
    AttnV,
    /// Normalisation of each query head.
    AttnQNorm,
    /// Normalisation of each key head.
    AttnKNorm,
    /// Attention output projection `[hidden, heads · head_dim]`.
    AttnOut,
    /// Normalisation after attention (before the residual sum in gemma, after it in post-norm models).
    AttnOutNorm,
    /// Normalisation before the feed-forward part.
    FfnNorm,
    /// Gate projection `[intermediate, hidden]`.
    FfnGate,
    /// Up projection `[intermediate, hidden]`; the first of two in models without a gate.
    FfnUp,
    /// Down projection `[hidden, intermediate]`.
    FfnDown,
    /// Router `[experts, hidden]`.
    Router,
    /// Normalisation after the feed-forward part (before the residual sum in gemma, after it in post-norm models).
    FfnOutNorm,
    /// The last normalisation.
    FinalNorm,
    /// Output projection `[vocab, hidden]`.
    Head,
    /// The pooler's projection, which embeddings by mean do not use.
    Pooler,
    /// The layer of a chain of linear layers.
    ChainLinear,
}

/// Gain or matrix, or shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The `weight`.
    Weight,
    /// The `bias`.
    Bias,
}

/// What the runtime must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Architecture {
    /// A transformer.
    Transformer(Box<Transformer>),
    /// `y = W_n · act(… act(W_0 x + b_0) …) + b_n`.
    Chain(Chain),
}

/// A chain of linear layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Features of the input, of each hidden layer, and of the output: layers + 1 numbers.
    pub widths: Vec<usize>,
    /// Between layers; none after the last.
    pub activation: Activation,
}

/// A transformer's shape and what it computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Transformer {
    /// Whether a position attends to earlier ones only (a decoder) or to all (an encoder).
    pub causal: bool,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// Normalisation.
    pub norm: Norm,
    /// Where a block normalises.
    pub placement: Placement,
    /// How positions enter.
    pub position: Position,
    /// Rows of the token type embedding, of which row 0 (single texts) is added; 0 if there is none.
    pub token_types: usize,
    /// Whether the embedding is normalised.
    pub embedding_norm: bool,
    /// The embedding's factor: 1, or √hidden in gemma.
    pub embedding_scale: f32,
    /// Factor of q·k: 1/√head_dim unless the config says otherwise.
    pub attention_scale: f32,
    /// Whether each head of q and k is normalised before the rotation.
    pub qk_norm: bool,
    /// Per layer: the number of latest positions attended to, itself included; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// The feed-forward activation.
    pub activation: Activation,
    /// Whether the feed-forward part is `down(act(gate(x)) · up(x))`; else `down(act(up(x)))`.
    pub gated: bool,
    /// Experts, if the feed-forward part is a mixture.
    pub experts: Option<Experts>,
    /// Whether the last hidden state is normalised.
    pub final_norm: bool,
    /// Whether the output projection is the token embedding.
    pub tied: bool,
    /// Which projections have biases, where a family leaves that to the config.
    pub biases: Biases,
}

/// Which projections have biases. `None` where the config does not say: then what the file holds decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    /// Those of queries, keys, values and the attention's output.
    pub attention: Option<bool>,
    /// Those of the feed-forward part.
    pub feed_forward: Option<bool>,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Experts in a layer.
    pub count: usize,
    /// Experts that see a token.
    pub per_token: usize,
    /// Width of one expert.
    pub intermediate: usize,
    /// Whether the chosen experts' probabilities are scaled to sum to one.
    pub normalise: bool,
}

/// A normalisation and the constant that keeps it finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// x / √(mean x² + eps) · w (Zhang and Sennrich, 2019).
    Rms {
        /// Added to the mean square.
        eps: f32,
        /// Added to the gain: 1 in gemma, whose files store w − 1; else 0.
        offset: f32,
    },
    /// (x − mean) / √(variance + eps) · w + b (Ba et al., 2016).
    Layer {
        /// Added to the variance.
        eps: f32,
    },
}

/// Where a block normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// x + f(norm(x)): llama, gpt2.
    Pre,
    /// norm(x + f(x)): bert.
    Post,
    /// x + norm(f(norm(x))): gemma3.
    Both,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// Rotation of pairs (i, i + head_dim/2) of q and k (Su et al., 2021), one description per layer.
    Rope(Vec<Rope>),
    /// A learned embedding; row `position + offset` (2 in roberta).
    Learned {
        /// Added to the position.
        offset: usize,
    },
}

/// A rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f32,
    /// The leading dimensions of a head that rotate.
    pub dims: usize,
    /// How wavelengths are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// How wavelengths are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not.
    None,
    /// All by the same factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3.1: long wavelengths by the factor, short ones not, a smooth passage between.
    Llama3 {
        /// The factor of long wavelengths.
        factor: f32,
        /// Bound of long wavelengths, as a fraction of the original context.
        low_freq_factor: f32,
        /// Bound of short wavelengths.
        high_freq_factor: f32,
        /// The context that the model was first trained on.
        original_context: f32,
    },
    /// Each by a factor of its own (GGUF's `rope_freqs.weight`).
    Each(Arc<[f32]>),
    /// Each by a factor of its own, others for long texts than for short ones, and what is rotated by a factor too (LongRoPE,
    /// Ding et al., 2024).
    Long {
        /// The factors for texts up to the original context.
        short: Arc<[f32]>,
        /// The factors for longer ones.
        long: Arc<[f32]>,
        /// The context that the model was first trained on.
        original_context: usize,
        /// The factor of rotated queries and of rotated keys.
        attention_factor: f32,
    },
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// max(0, x)
    Relu,
    /// x · Φ(x), by the error function.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// x · sigmoid(x)
    Silu,
    /// tanh x
    Tanh,
    /// 1 / (1 + e^−x)
    Sigmoid,
    /// x
    Identity,
}

impl Activation {
    /// The activation of a name in a Hugging Face config.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "relu" => Self::Relu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "identity" | "linear" | "none" => Self::Identity,
            _ => return None,
        })
    }
}
