//! Qwen3 with a mixture of experts in every layer (Yang et al., 2025).

use super::config::Fields;
use super::table::Axis::{self, ExpertIntermediate, Hidden};
use super::table::{Entry, Table};
use super::{Definition, Error, Experts, Kind, Role, Slot, Transformer, decoder};

/// The family.
pub const FAMILY: Definition = Definition {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM", "Qwen3MoeModel"],
    gguf: "qwen3moe",
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
        decoder::HEAD_NORMS,
        EXPERTS,
        STACKED_EXPERTS,
        decoder::END,
    ],
    rope_pairs: false,
    ignored: decoder::IGNORED,
};

/// The router, and a tensor for each matrix of each expert.
const EXPERTS: &[Entry] = &[
    Entry::matrix(Slot::Router, Role::Router, "{base}layers.{layer}.mlp.gate.weight", &[Axis::Experts, Hidden])
        .gguf("blk.{layer}.ffn_gate_inp.weight"),
    Entry::linear(
        Slot::FfnGate,
        "{base}layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
        &[ExpertIntermediate, Hidden],
    )
    .gguf("blk.{layer}.ffn_gate_exps.weight"),
    Entry::linear(
        Slot::FfnUp,
        "{base}layers.{layer}.mlp.experts.{expert}.up_proj.weight",
        &[ExpertIntermediate, Hidden],
    )
    .gguf("blk.{layer}.ffn_up_exps.weight"),
    Entry::linear(
        Slot::FfnDown,
        "{base}layers.{layer}.mlp.experts.{expert}.down_proj.weight",
        &[Hidden, ExpertIntermediate],
    )
    .gguf("blk.{layer}.ffn_down_exps.weight"),
];

/// The same experts as transformers 5 holds them in memory, and some files do: stacked, gate and up in one.
pub const STACKED_EXPERTS: &[Entry] = &[
    Entry::matrix(
        Slot::FfnGate,
        Role::Experts,
        "{base}layers.{layer}.mlp.experts.gate_up_proj",
        &[Axis::Experts, Axis::ExpertGateUp, Hidden],
    )
    .fused(&[(Slot::FfnGate, ExpertIntermediate), (Slot::FfnUp, ExpertIntermediate)])
    .optional(),
    Entry::matrix(
        Slot::FfnDown,
        Role::Experts,
        "{base}layers.{layer}.mlp.experts.down_proj",
        &[Axis::Experts, Hidden, ExpertIntermediate],
    )
    .optional(),
];

fn read(fields: &mut Fields<'_>) -> Result<Transformer, Error> {
    let t = decoder::read(fields)?;
    let t = decoder::defaults(fields, t, 32_768, 1e-6)?;
    // Dense layers between those with experts.
    fields.only("decoder_sparse_step", 1)?;
    fields.only("mlp_only_layers", serde_json::json!([]))?;
    fields.without_effect(&["output_router_logits", "router_aux_loss_coef", "max_window_layers"]);
    let slides = fields.flag_or("use_sliding_window", false)?;
    let window = fields.count_or_null("sliding_window", 4096)?.filter(|_| slides);
    let count = match fields.maybe_count("num_experts")? {
        Some(count) => count,
        None => fields.count("num_local_experts")?,
    };
    let experts = Experts {
        count,
        per_token: fields.count_or("num_experts_per_tok", 8)?,
        intermediate: fields.count("moe_intermediate_size")?,
        normalise: fields.flag_or("norm_topk_prob", false)?,
    };
    Ok(Transformer {
        qk_norm: true,
        windows: decoder::windows(fields, t.layers, window, |_| true)?,
        experts: Some(experts),
        ..t
    })
}
