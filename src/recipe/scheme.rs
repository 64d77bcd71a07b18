//! The treatments that can be asked for by name, and what is known about each.

use std::fmt;

use formats::{Dtype, Format};

use crate::family::{self, Role};
use crate::quantizer::ggml::mixture::FileType;

/// A treatment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain floating point.
    BF16,
    /// Symmetric int8, a scale for each output row; linear layers quantize their inputs per token when run.
    Int8,
    /// Symmetric int4 in groups, inputs in float.
    W4A16,
    /// Symmetric int8 in groups, inputs in float.
    W8A16,
    /// FP8 E4M3, a scale for each output row; servers quantize inputs per token.
    Fp8,
    /// One of llama-quantize's file types: a block type for most tensors, others for some.
    Ggml(FileType),
}

/// How bad an output may be before it is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Largest mean KL divergence of a decoder's next-token distribution, in nats.
    pub max_kl: f64,
    /// Least mean cosine between an encoder's embeddings, or between a chain's outputs.
    pub min_cosine: f64,
}

impl Limits {
    /// The limits of pruned models: those of two-bit types, beyond which a model is broken and not just worse.
    pub const PRUNED: Self = Self { max_kl: 1.0, min_cosine: 0.8 };

    /// The limits of what is stored in a dtype. Round numbers above what these types cost models of 8 B parameters
    /// (llama.cpp's own tables), so that what fails is broken and not just small.
    pub fn of(dtype: Dtype) -> Self {
        let (max_kl, min_cosine) = match dtype {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => (0.001, 0.999),
            Dtype::Q6_K | Dtype::F8E4M3 => (0.02, 0.99),
            Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5_K => (0.05, 0.98),
            Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q4_K | Dtype::IQ4_NL | Dtype::IQ4_XS | Dtype::MXFP4 => (0.15, 0.95),
            Dtype::Q3_K | Dtype::IQ3_S | Dtype::IQ3_XXS => (0.3, 0.9),
            dtype if dtype.is_block() && dtype != Dtype::Q8_0 => (1.0, 0.8),
            _ => (0.01, 0.99),
        };
        Self { max_kl, min_cosine }
    }

    /// The looser of two, in each measure.
    pub fn or_looser(self, other: Self) -> Self {
        Self { max_kl: self.max_kl.max(other.max_kl), min_cosine: self.min_cosine.min(other.min_cosine) }
    }
}

impl Scheme {
    /// Every scheme, in the order of the documentation.
    pub fn all() -> Vec<Scheme> {
        let casts = |file_type: &FileType| matches!(file_type, FileType::F16 | FileType::BF16);
        let blocks = FileType::all().filter(|file_type| !casts(file_type)).map(Scheme::Ggml);
        [Scheme::Int8, Scheme::W4A16, Scheme::W8A16, Scheme::Fp8, Scheme::F16, Scheme::BF16, Scheme::F32]
            .into_iter()
            .chain(blocks)
            .collect()
    }

    /// The names of all schemes, for messages.
    pub fn names() -> String {
        Self::all().into_iter().map(Scheme::name).collect::<Vec<_>>().join(", ")
    }

    /// The name in flags, recipes, file names and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
            Self::W4A16 => "w4a16",
            Self::W8A16 => "w8a16",
            Self::Fp8 => "fp8",
            Self::Ggml(file_type) => file_type.name(),
        }
    }

    /// The scheme of a name; `w8a8` is vLLM's name for int8, and `int4` is w4a16.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = match name.as_str() {
            "w8a8" => "int8",
            "int4" => "w4a16",
            name => name,
        };
        Self::all().into_iter().find(|scheme| scheme.name() == name)
    }

    /// The container that the scheme needs, if it needs one.
    pub fn container(self) -> Option<Format> {
        match self {
            Self::Int8 | Self::W4A16 | Self::W8A16 | Self::Fp8 => Some(Format::Safetensors),
            Self::Ggml(_) => Some(Format::Gguf),
            Self::F32 | Self::F16 | Self::BF16 => None,
        }
    }

    /// The file type of llama.cpp that the scheme means, where it is written as GGUF.
    pub fn file_type(self) -> Option<FileType> {
        match self {
            Self::F16 => Some(FileType::F16),
            Self::BF16 => Some(FileType::BF16),
            Self::Ggml(file_type) => Some(file_type),
            Self::F32 | Self::Int8 | Self::W4A16 | Self::W8A16 | Self::Fp8 => None,
        }
    }

    /// The limits that hold where no flag says otherwise.
    pub fn limits(self) -> Limits {
        match self {
            Self::F32 => Limits::of(Dtype::F32),
            Self::F16 => Limits::of(Dtype::F16),
            Self::BF16 => Limits::of(Dtype::BF16),
            Self::Int8 | Self::W8A16 => Limits::of(Dtype::I8),
            Self::W4A16 => Limits::of(Dtype::Q4_0),
            Self::Fp8 => Limits::of(Dtype::F8E4M3),
            Self::Ggml(file_type) => Limits::of(file_type.dtype()),
        }
    }

    /// The float that the scheme stores numbers as, leaving tensors as they are otherwise, if that is all it does.
    pub fn cast(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// Whether the scheme only stores numbers as another float.
    pub fn is_cast(self) -> bool {
        self.cast().is_some()
    }

    /// Whether the scheme treats weights of this role unless a rule names them.
    pub fn takes(self, role: Role, model: Option<family::Kind>) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => true,
            // llama-quantize's own rules say which matrices stay as they are.
            Self::Ggml(_) => !matches!(role, Role::Norm | Role::Bias),
            Self::W4A16 | Self::W8A16 | Self::Fp8 => role == Role::Linear,
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
