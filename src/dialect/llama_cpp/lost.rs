//! What llama.cpp's metadata say and a Hugging Face folder does not.

use formats::gguf::Metadata;

use super::CONFIG_KEY;

/// Keys about the file, which are not the model's; and those that end up in `config.json`, `tokenizer.json`,
/// `tokenizer_config.json` and `generation_config.json`. `{arch}.` stands before those of the second list.
const OF_ALL: &[&str] = &[
    "general.alignment",
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "general.type",
    "tokenizer.chat_template",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.model",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.unknown_token_id",
];
const OF_ARCHITECTURES: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// Keys whose values are in no file of a Hugging Face folder. A file with the original config has nothing else to say of its
/// architecture.
pub fn left_out(metadata: &Metadata) -> Vec<&str> {
    let architecture = metadata.get_str("general.architecture").unwrap_or_default();
    let original = metadata.get_str(CONFIG_KEY).is_some();
    let held = |key: &str| {
        let of_it = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.'));
        OF_ALL.contains(&key)
            || ["modelpress.", "split."].iter().any(|ours| key.starts_with(ours))
            || of_it.is_some_and(|rest| original || OF_ARCHITECTURES.contains(&rest))
    };
    metadata.entries.iter().map(|(key, _)| key.as_str()).filter(|key| !held(key)).collect()
}
