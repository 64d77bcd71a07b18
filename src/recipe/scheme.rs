//! The treatments that can be asked for by name, and what is known about each.

use std::fmt;

use formats::{Dtype, Format};

use crate::family::{self, Role};
use crate::quantizer::{Cast, Int8Rows, Q8_0, Quantizer};

/// A treatment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Half precision.
    F16,
    /// Brain floating point.
    BF16,
    /// Symmetric int8, a scale for each output row; linear layers quantize their inputs per token when run.
    Int8,
    /// ggml's blocks of 32 int8 with an f16 scale.
    Q8_0,
}

/// How bad an output may be before it is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Largest mean KL divergence of a decoder's next-token distribution, in nats.
    pub max_kl: f64,
    /// Least mean cosine between an encoder's embeddings, or between a chain's outputs.
    pub min_cosine: f64,
}

impl Scheme {
    /// Every scheme, in the order of the documentation.
    pub const ALL: [Scheme; 4] = [Scheme::Int8, Scheme::F16, Scheme::BF16, Scheme::Q8_0];

    /// The name in flags, recipes, file names and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The scheme of a name; `w8a8` is vLLM's name for int8.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = if name == "w8a8" { "int8" } else { &name };
        Self::ALL.into_iter().find(|scheme| scheme.name() == name)
    }

    /// The container that the scheme needs, if it needs one.
    pub fn container(self) -> Option<Format> {
        match self {
            Self::Int8 => Some(Format::Safetensors),
            Self::Q8_0 => Some(Format::Gguf),
            Self::F16 | Self::BF16 => None,
        }
    }

    /// What makes the codes.
    pub fn quantizer(self) -> Box<dyn Quantizer> {
        match self {
            Self::F16 => Box::new(Cast(Dtype::F16)),
            Self::BF16 => Box::new(Cast(Dtype::BF16)),
            Self::Int8 => Box::new(Int8Rows),
            Self::Q8_0 => Box::new(Q8_0),
        }
    }

    /// The limits that hold where no flag says otherwise.
    pub fn limits(self) -> Limits {
        match self {
            Self::F16 | Self::BF16 => Limits { max_kl: 0.001, min_cosine: 0.999 },
            Self::Int8 | Self::Q8_0 => Limits { max_kl: 0.01, min_cosine: 0.99 },
        }
    }

    /// Whether the scheme only rounds to a narrower float and leaves tensors as they are otherwise.
    pub fn is_cast(self) -> bool {
        matches!(self, Self::F16 | Self::BF16)
    }

    /// Whether the scheme treats weights of this role unless a rule names them.
    pub fn takes(self, role: Role, model: Option<family::Kind>) -> bool {
        match self {
            Self::F16 | Self::BF16 => true,
            // What llama-quantize quantizes: every matrix, embeddings too, but no router.
            Self::Q8_0 => matches!(role, Role::Linear | Role::Embedding | Role::Head | Role::Experts),
            Self::Int8 => match role {
                Role::Linear | Role::Experts | Role::Conv => true,
                Role::Embedding => matches!(model, Some(family::Kind::Encoder | family::Kind::Chain)),
                _ => false,
            },
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
