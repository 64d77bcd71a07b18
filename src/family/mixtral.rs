//! Mixtral (Jiang et al., 2024): mistral with a mixture of experts in every layer.

use super::config::Fields;
use super::table::Axis::{self, ExpertIntermediate, Hidden};
use super::table::{Entry, Table};
use super::{Definition, Error, Experts, Kind, Position, Role, Slot, Transformer, decoder, qwen3_moe};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "mixtral",
    architectures: &["MixtralForCausalLM", "MixtralModel"],
    gguf: "llama",
    kind: Kind::Decoder,
    table: &TABLE,
    read,
};

/// Its tensors.
pub const TABLE: Table = Table {
    bases: decoder::BASES,
    sections: &[
        decoder::EMBEDDING,
        decoder::NORMS,
        decoder::ATTENTION,
        EXPERTS,
        qwen3_moe::STACKED_EXPERTS,
        decoder::END,
    ],
    rope_pairs: true,
    ignored: decoder::IGNORED,
};

/// The router, and a tensor for each matrix of each expert.
const EXPERTS: &[Entry] = &[
    Entry::matrix(
        Slot::Router,
        Role::Router,
        "{base}layers.{layer}.block_sparse_moe.gate.weight",
        &[Axis::Experts, Hidden],
    )
    .older("{base}layers.{layer}.mlp.gate.weight")
    .gguf("blk.{layer}.ffn_gate_inp.weight"),
    Entry::linear(
        Slot::FfnGate,
        "{base}layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        &[ExpertIntermediate, Hidden],
    )
    .gguf("blk.{layer}.ffn_gate_exps.weight"),
    Entry::linear(
        Slot::FfnUp,
        "{base}layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        &[ExpertIntermediate, Hidden],
    )
    .gguf("blk.{layer}.ffn_up_exps.weight"),
    Entry::linear(
        Slot::FfnDown,
        "{base}layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
        &[Hidden, ExpertIntermediate],
    )
    .gguf("blk.{layer}.ffn_down_exps.weight"),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::without_rope(fields)?;
    let t = decoder::defaults(fields, t, 131_072, 1e-5)?;
    fields.without_effect(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
    let rope = fields.rope(t.head_dim, 1e6)?;
    let window = fields.maybe_count("sliding_window")?;
    let experts = Experts {
        count: fields.count_or("num_local_experts", 8)?,
        per_token: fields.count_or("num_experts_per_tok", 2)?,
        intermediate: t.intermediate,
        normalise: true,
    };
    Ok(Transformer {
        position: Position::Rope(vec![rope; t.layers]),
        windows: vec![window; t.layers],
        experts: Some(experts),
        ..t
    })
}
