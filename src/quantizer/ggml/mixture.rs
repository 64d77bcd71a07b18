//! llama-quantize's mixtures: which type each tensor of a file gets. The rules are those of llama.cpp's `llama-quant.cpp`
//! (`llama_tensor_get_type`) as of llama-cpp-python 0.3.36; they are history more than theory, and followed to the letter so
//! that a scheme's name means the same file.

use formats::{Dtype, TensorMeta};

/// What llama-quantize calls a file type: the type of most tensors, and rules for the others.
#[allow(missing_docs, non_camel_case_types)] // The variants are llama.cpp's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// File type, name, number in `general.file_type`, the type of most tensors.
const TABLE: &[(FileType, &str, u32, Dtype)] = &[
    (FileType::F16, "f16", 1, Dtype::F16),
    (FileType::BF16, "bf16", 32, Dtype::BF16),
    (FileType::Q8_0, "q8_0", 7, Dtype::Q8_0),
    (FileType::Q4_0, "q4_0", 2, Dtype::Q4_0),
    (FileType::Q4_1, "q4_1", 3, Dtype::Q4_1),
    (FileType::Q5_0, "q5_0", 8, Dtype::Q5_0),
    (FileType::Q5_1, "q5_1", 9, Dtype::Q5_1),
    (FileType::Q2_K, "q2_k", 10, Dtype::Q2_K),
    (FileType::Q3_K_S, "q3_k_s", 11, Dtype::Q3_K),
    (FileType::Q3_K_M, "q3_k_m", 12, Dtype::Q3_K),
    (FileType::Q3_K_L, "q3_k_l", 13, Dtype::Q3_K),
    (FileType::Q4_K_S, "q4_k_s", 14, Dtype::Q4_K),
    (FileType::Q4_K_M, "q4_k_m", 15, Dtype::Q4_K),
    (FileType::Q5_K_S, "q5_k_s", 16, Dtype::Q5_K),
    (FileType::Q5_K_M, "q5_k_m", 17, Dtype::Q5_K),
    (FileType::Q6_K, "q6_k", 18, Dtype::Q6_K),
    (FileType::IQ4_NL, "iq4_nl", 25, Dtype::IQ4_NL),
    (FileType::IQ4_XS, "iq4_xs", 30, Dtype::IQ4_XS),
];

impl FileType {
    /// Every file type.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|&(file_type, ..)| file_type)
    }

    fn row(self) -> &'static (FileType, &'static str, u32, Dtype) {
        &TABLE[self as usize]
    }

    /// The name, in lower case: `q4_k_m`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The file type of a name, whatever its case.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The number in the metadata key `general.file_type`.
    pub fn number(self) -> u32 {
        self.row().2
    }

    /// The type of most tensors.
    pub fn dtype(self) -> Dtype {
        self.row().3
    }
}

/// What the rules ask of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model<'a> {
    /// `general.architecture`.
    pub architecture: &'a str,
    /// Number of layers (`block_count`).
    pub layers: u64,
    /// Query heads, of the first layer if they differ.
    pub heads: u64,
    /// Key and value heads, of the first layer if they differ.
    pub kv_heads: u64,
    /// Experts, 0 in a dense model.
    pub experts: u64,
}

impl Model<'_> {
    /// Whether llama.cpp takes it for one of the 70B models whose few value projections deserve more bits.
    fn is_70b(&self) -> bool {
        match self.architecture {
            "llama" => self.layers == 80 && self.heads != self.kv_heads,
            "qwen2" | "deci" | "olmo" => self.layers == 80,
            "jais2" => self.layers == 68,
            _ => false,
        }
    }

    /// Query heads that share a key head.
    fn group(&self) -> u64 {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }
}

/// The type for a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The type.
    pub dtype: Dtype,
    /// The type that the rules wanted, if the tensor's rows do not fill its blocks.
    pub instead_of: Option<Dtype>,
}

/// The types for the tensors of a file, in their order: GGUF names and shapes as they are written, dtypes as they come from
/// the conversion, which a tensor keeps that is not to be quantized. `imatrix` is whether there is an importance matrix,
/// `pure` gives every matrix the same type.
pub fn choose(file_type: FileType, tensors: &[TensorMeta], model: &Model, imatrix: bool, pure: bool) -> Vec<Choice> {
    let roles: Vec<Role> = tensors.iter().map(|meta| Role::of(&meta.name)).collect();
    let mut rules = Rules {
        file_type,
        model,
        imatrix,
        tied: !roles.contains(&Role::Output),
        values: roles.iter().filter(|role| role.is_value()).count() as u64,
        value: 0,
        down: 0,
    };
    let mut choices: Vec<Choice> = tensors.iter().map(|meta| Choice { dtype: meta.dtype, instead_of: None }).collect();
    // Some rules count tensors, in the order in which llama.cpp goes through them.
    let mut order: Vec<usize> = (0..tensors.len()).filter(|&i| is_quantized(&tensors[i])).collect();
    order.sort_by_key(|&i| (layer(&tensors[i].name), &tensors[i].name));
    for i in order {
        let dtype = file_type.dtype();
        choices[i] = if !dtype.is_block() {
            Choice { dtype, instead_of: None }
        } else if pure {
            fitting(dtype, &tensors[i])
        } else {
            fitting(rules.choose(&tensors[i], roles[i]), &tensors[i])
        };
    }
    choices
}

/// The layer of a name `blk.N.…`, or −1.
fn layer(name: &str) -> i64 {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(-1)
}

/// Names of which a part keeps a tensor from being quantized: small or sensitive ones.
const KEPT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whether a tensor is quantized at all.
fn is_quantized(meta: &TensorMeta) -> bool {
    // More than one row, or more than one matrix.
    let is_matrix = meta.shape.split_last().is_some_and(|(_, rows)| rows.iter().any(|&rows| rows > 1));
    is_matrix
        && meta.name.ends_with("weight")
        && !matches!(&meta.name[..], "position_embd.weight" | "token_types.weight")
        && !KEPT.iter().any(|part| meta.name.contains(part))
}

/// What the rules tell tensors apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Output,
    TokenEmbedding,
    Qkv,
    KvB,
    Value,
    Key,
    AttnOutput,
    Down,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::TokenEmbedding,
            _ if name.contains("attn_qkv.weight") => Self::Qkv,
            _ if name.contains("attn_kv_b.weight") => Self::KvB,
            _ if name.contains("attn_v.weight") => Self::Value,
            _ if name.contains("attn_k.weight") => Self::Key,
            _ if name.contains("attn_q.weight") => Self::Other,
            _ if name.contains("attn_output.weight") => Self::AttnOutput,
            _ if name.contains("ffn_up") || name.contains("ffn_gate") => Self::Other,
            _ if name.contains("ffn_down") => Self::Down,
            _ => Self::Other,
        }
    }

    fn is_value(self) -> bool {
        matches!(self, Self::Value | Self::Qkv | Self::KvB)
    }
}

/// The rules, and how many tensors they have counted.
struct Rules<'a> {
    file_type: FileType,
    model: &'a Model<'a>,
    imatrix: bool,
    /// The token embedding is the output projection too.
    tied: bool,
    /// Value projections in the file, and those that were chosen for.
    values: u64,
    value: u64,
    /// Down projections that were chosen for.
    down: u64,
}

/// The first and the last eighth of the layers, and every third between.
fn deserves_more(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

impl Rules<'_> {
    fn choose(&mut self, meta: &TensorMeta, role: Role) -> Dtype {
        match role {
            Role::Output => self.output(meta),
            Role::TokenEmbedding if self.tied => self.output(meta),
            Role::Qkv | Role::KvB | Role::Value => {
                self.value += 1;
                self.value(self.value - 1)
            }
            Role::Key if self.model.experts == 8 => Dtype::Q8_0,
            Role::Down => {
                self.down += 1;
                // The tensors of experts may come in any order, so their names count.
                let layer = match self.model.experts {
                    0 | 1 => self.down - 1,
                    _ => layer(&meta.name).max(0) as u64,
                };
                self.down(layer)
            }
            Role::AttnOutput => self.attn_output(),
            _ => self.file_type.dtype(),
        }
    }

    fn output(&self, meta: &TensorMeta) -> Dtype {
        let dtype = self.file_type.dtype();
        let fits = meta.matrix().1.is_multiple_of(dtype.block_elements());
        if self.model.architecture == "falcon" || !fits || dtype == Dtype::Q8_0 { Dtype::Q8_0 } else { Dtype::Q6_K }
    }

    fn value(&self, i: u64) -> Dtype {
        let many = self.model.group() >= 4;
        let dtype = match self.file_type {
            FileType::Q2_K if many => Dtype::Q4_K,
            FileType::Q2_K => Dtype::Q3_K,
            FileType::Q3_K_M if i < 2 => Dtype::Q5_K,
            FileType::Q3_K_M => Dtype::Q4_K,
            FileType::Q3_K_L => Dtype::Q5_K,
            FileType::IQ4_NL | FileType::IQ4_XS if many => Dtype::Q5_K,
            FileType::Q4_K_M | FileType::Q5_K_M if deserves_more(i, self.values) => Dtype::Q6_K,
            FileType::Q4_K_S if i < 4 => Dtype::Q5_K,
            other => other.dtype(),
        };
        match dtype {
            _ if self.model.experts == 8 => Dtype::Q8_0,
            Dtype::Q3_K | Dtype::Q4_K if self.model.is_70b() => Dtype::Q5_K,
            dtype => dtype,
        }
    }

    fn down(&self, layer: u64) -> Dtype {
        let layers = self.model.layers;
        let falcon = self.model.architecture == "falcon";
        let first = layer < layers / 8;
        match self.file_type {
            FileType::Q2_K => Dtype::Q3_K,
            FileType::Q3_K_M if layer < layers / 16 => Dtype::Q5_K,
            FileType::Q3_K_M if !falcon || deserves_more(layer, layers) => Dtype::Q4_K,
            FileType::Q3_K_L if falcon => Dtype::Q4_K,
            FileType::Q3_K_L => Dtype::Q5_K,
            FileType::Q4_K_M if falcon && layer < layers / 16 => Dtype::Q6_K,
            FileType::Q4_K_M if falcon && deserves_more(layer, layers) => Dtype::Q5_K,
            FileType::Q4_K_M | FileType::Q5_K_M if !falcon && deserves_more(layer, layers) => Dtype::Q6_K,
            FileType::Q5_K_M if deserves_more(layer, layers) => Dtype::Q6_K,
            FileType::IQ4_NL | FileType::IQ4_XS if first && !self.imatrix => Dtype::Q5_K,
            FileType::Q4_K_S if first && !falcon => Dtype::Q5_K,
            FileType::Q4_0 if first && self.imatrix => Dtype::Q4_1,
            FileType::Q5_0 if first && self.imatrix => Dtype::Q5_1,
            other => other.dtype(),
        }
    }

    fn attn_output(&self) -> Dtype {
        use FileType::*;
        let falcon = self.model.architecture == "falcon";
        let eight = self.model.experts == 8;
        match self.file_type {
            Q3_K_L if falcon => Dtype::Q4_K,
            other if falcon => other.dtype(),
            Q2_K | Q3_K_S | Q3_K_M | Q4_K_S | Q4_K_M | IQ4_NL | IQ4_XS if eight => Dtype::Q5_K,
            other if eight => other.dtype(),
            Q2_K => Dtype::Q3_K,
            Q3_K_M => Dtype::Q4_K,
            Q3_K_L => Dtype::Q5_K,
            other => other.dtype(),
        }
    }
}

/// The type, or the next one whose blocks the tensor's rows fill.
fn fitting(wanted: Dtype, meta: &TensorMeta) -> Choice {
    let cols = meta.matrix().1;
    let fits = |dtype: Dtype| cols.is_multiple_of(dtype.block_elements());
    if fits(wanted) {
        return Choice { dtype: wanted, instead_of: None };
    }
    let next = match wanted {
        Dtype::IQ4_XS => Dtype::IQ4_NL,
        Dtype::Q2_K | Dtype::Q3_K => Dtype::Q4_0,
        Dtype::Q4_K => Dtype::Q5_0,
        Dtype::Q5_K => Dtype::Q5_1,
        Dtype::Q6_K => Dtype::Q8_0,
        other => other,
    };
    Choice { dtype: if fits(next) { next } else { Dtype::F16 }, instead_of: Some(wanted) }
}
