//! Roles of tensors that no family's table names, from their names and ranks.

use super::Role;

/// The role of a floating-point tensor of an unknown model. Careful: what does not look like a matrix that multiplies
/// activations is [`Role::Other`] and stays as it is.
pub fn guess(name: &str, shape: &[u64]) -> Role {
    let any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_bias = last == "bias" || last.ends_with("_bias");
    let is_norm = any(&["norm", "Norm", "ln_", ".ln", "layernorm"]);
    match shape.len() {
        0 | 1 if is_bias => Role::Bias,
        0 | 1 if is_norm => Role::Norm,
        0 | 1 => Role::Other,
        _ if is_bias => Role::Bias,
        2 if is_norm => Role::Norm,
        _ if last != "weight" && !any(&["experts"]) => Role::Other,
        2 if any(&["embed", "wte", "wpe", "tok_embd", "relative_attention_bias"]) && !any(&["embed_out"]) => {
            Role::Embedding
        }
        2 if any(&["lm_head", "embed_out"]) || name == "output.weight" => Role::Head,
        2 if any(&["mlp.gate.", "block_sparse_moe.gate.", "router", "gate.wg"]) => Role::Router,
        2 => Role::Linear,
        3 if any(&["conv"]) => Role::Conv,
        3 => Role::Experts,
        _ => Role::Conv,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_models_get_their_roles() {
        let cases: [(&str, &[u64], Role); 14] = [
            ("model.layers.0.self_attn.q_proj.weight", &[4, 4], Role::Linear),
            ("model.embed_tokens.weight", &[4, 4], Role::Embedding),
            ("transformer.wpe.weight", &[4, 4], Role::Embedding),
            ("lm_head.weight", &[4, 4], Role::Head),
            ("gpt_neox.embed_out.weight", &[4, 4], Role::Head),
            ("model.layers.0.input_layernorm.weight", &[4], Role::Norm),
            ("model.layers.0.self_attn.q_proj.bias", &[4], Role::Bias),
            ("model.layers.0.mlp.gate.weight", &[4, 4], Role::Router),
            ("model.layers.0.mlp.gate_proj.weight", &[4, 4], Role::Linear),
            ("model.layers.0.mlp.experts.gate_up_proj", &[2, 4, 4], Role::Experts),
            ("features.0.conv.weight", &[8, 3, 3, 3], Role::Conv),
            ("encoder.conv1.weight", &[8, 3, 3], Role::Conv),
            ("time_decay", &[4, 4], Role::Other),
            ("0.weight", &[1, 2], Role::Linear),
        ];
        for (name, shape, role) in cases {
            assert_eq!(guess(name, shape), role, "{name}");
        }
    }
}
