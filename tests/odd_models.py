#!/usr/bin/env python3
"""Makes tiny models of random weights with settings that are legal and seldom: head widths that are no share of the model's, one key
head, odd numbers everywhere, biases, windows wider than the text and of one position, every way to stretch wavelengths.

    python3 tests/odd_models.py MODELS [NAME…]
    python3 tests/reference.py MODELS RECORDS --tokens 24
    MODELPRESS_GOLDEN=RECORDS cargo test --test it golden::hidden

NAMEs are parts of the models' names. fixtures/golden-odd has records of some. Needs torch and transformers.
"""
import pathlib
import sys

import torch
import transformers as tf

BASE = dict(
    vocab_size=257, hidden_size=27, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
    head_dim=10, max_position_embeddings=64, pad_token_id=0, bos_token_id=0, eos_token_id=1,
)
NO_HEAD_DIM = {key: value for key, value in BASE.items() if key != "head_dim"} | dict(hidden_size=30)
PHI = NO_HEAD_DIM | dict(hidden_size=48)
GPT2 = dict(vocab_size=257, n_embd=27, n_layer=3, n_head=3, n_positions=64, bos_token_id=0, eos_token_id=1)
BERT = dict(
    vocab_size=257, hidden_size=27, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=40,
    pad_token_id=1,
)
DISTILBERT = dict(vocab_size=257, dim=27, hidden_dim=37, n_layers=3, n_heads=3, max_position_embeddings=40)
LINEAR = {"rope_type": "linear", "rope_theta": 5e4, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def longrope(original, pairs, **more):
    factors = {"short_factor": [1 + i / 10 for i in range(pairs)], "long_factor": [1 + i / 2 for i in range(pairs)]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **factors, **more}
    return dict(original_max_position_embeddings=original, rope_parameters=rope)


def kinds(*names, base):
    model, config = (getattr(tf, name) for name in names)
    return lambda **settings: (model, config(**(base | settings)))


llama = kinds("LlamaForCausalLM", "LlamaConfig", base=BASE)
mistral = kinds("MistralForCausalLM", "MistralConfig", base=BASE)
mixtral = kinds("MixtralForCausalLM", "MixtralConfig", base=BASE)
qwen2 = kinds("Qwen2ForCausalLM", "Qwen2Config", base=NO_HEAD_DIM)
qwen3 = kinds("Qwen3ForCausalLM", "Qwen3Config", base=BASE)
qwen3_moe = kinds("Qwen3MoeForCausalLM", "Qwen3MoeConfig", base=BASE | dict(moe_intermediate_size=17))
phi3 = kinds("Phi3ForCausalLM", "Phi3Config", base=PHI)
gemma3 = kinds("Gemma3ForCausalLM", "Gemma3TextConfig", base=BASE)
gpt2 = kinds("GPT2LMHeadModel", "GPT2Config", base=GPT2)
bert = kinds("BertModel", "BertConfig", base=BERT)
roberta = kinds("RobertaModel", "RobertaConfig", base=BERT)
distilbert = kinds("DistilBertModel", "DistilBertConfig", base=DISTILBERT)
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

MODELS = {
    "llama-biases": llama(attention_bias=True, mlp_bias=True, hidden_act="gelu", rms_norm_eps=1e-2),
    "llama-linear-tied": llama(rope_parameters=LINEAR, tie_word_embeddings=True),
    "llama-llama3-relu": llama(rope_parameters=LLAMA3, head_dim=32, hidden_act="relu"),
    "llama-one": llama(num_hidden_layers=1, head_dim=2, intermediate_size=1),
    "mistral-wide-window": mistral(sliding_window=60),
    "mistral-no-window": mistral(sliding_window=None, head_dim=8, hidden_act="gelu_pytorch_tanh"),
    "mistral-window-of-one": mistral(sliding_window=1),
    "mistral-window-of-three": mistral(sliding_window=3, rope_parameters=LINEAR, num_key_value_heads=3),
    "mixtral-one-of-five": mixtral(num_local_experts=5, num_experts_per_tok=1, sliding_window=5),
    "mixtral-all": mixtral(num_local_experts=3, num_experts_per_tok=3, tie_word_embeddings=True),
    "qwen2-window": qwen2(use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=False),
    "qwen2-types": qwen2(use_sliding_window=True, sliding_window=6, layer_types=TYPES, num_key_value_heads=3),
    "qwen2-head-width": qwen2(head_dim=14),
    "qwen3-biases": qwen3(attention_bias=True, rms_norm_eps=1e-3, head_dim=6, tie_word_embeddings=False),
    "qwen3-window": qwen3(use_sliding_window=True, sliding_window=4, max_window_layers=2, rope_parameters=LINEAR),
    "qwen3-moe-raw": qwen3_moe(num_experts=5, num_experts_per_tok=2, norm_topk_prob=False),
    "qwen3-moe-all": qwen3_moe(
        num_experts=3, num_experts_per_tok=3, norm_topk_prob=True, attention_bias=True, use_sliding_window=True, sliding_window=5,
    ),
    "phi3-partial": phi3(rope_parameters=PARTIAL, sliding_window=7, tie_word_embeddings=True),
    "phi3-long": phi3(**longrope(16, 8)),
    "phi3-short": phi3(**longrope(32, 8)),
    "phi3-long-partial": phi3(**longrope(16, 6, partial_rotary_factor=0.75)),
    "gemma3-pattern": gemma3(num_hidden_layers=7, sliding_window=5, query_pre_attn_scalar=37),
    "gemma3-biases": gemma3(attention_bias=True, sliding_window=60, hidden_activation="silu"),
    "gemma3-two-ropes": gemma3(sliding_window=6, layer_types=TYPES[1:] + TYPES[1:2], rope_parameters=TWO_ROPES),
    "gemma3-untied": gemma3(sliding_window=6, tie_word_embeddings=False),
    "gpt2-unscaled": gpt2(n_inner=77, activation_function="relu", layer_norm_epsilon=1e-2, scale_attn_weights=False),
    "gpt2-untied": gpt2(tie_word_embeddings=False, activation_function="gelu", reorder_and_upcast_attn=True),
    "bert-three-types": bert(type_vocab_size=3, hidden_act="gelu_new", layer_norm_eps=1e-2),
    "bert-one-type": kinds("BertForMaskedLM", "BertConfig", base=BERT)(type_vocab_size=1, hidden_act="relu"),
    "bert-classifier": kinds("BertForSequenceClassification", "BertConfig", base=BERT)(num_labels=3),
    "roberta-padding-0": roberta(pad_token_id=0, type_vocab_size=2, layer_norm_eps=1e-3),
    "roberta-padding-5": kinds("RobertaForMaskedLM", "RobertaConfig", base=BERT)(pad_token_id=5, type_vocab_size=1),
    "distilbert-sines": distilbert(sinusoidal_pos_embds=True, activation="relu"),
    "distilbert-masked": kinds("DistilBertForMaskedLM", "DistilBertConfig", base=DISTILBERT)(),
}

# What llama.cpp can be asked too (benches/in_llama_cpp.py): the same without windows, and with activations and scales that it has.
LONG = dict(max_position_embeddings=512)
MODELS |= {
    "plain-llama-biases": llama(attention_bias=True, mlp_bias=True),
    "plain-llama-llama3": llama(rope_parameters=LLAMA3, head_dim=32),
    "plain-mixtral-one-of-five": mixtral(num_local_experts=5, num_experts_per_tok=1),
    "plain-qwen2": qwen2(tie_word_embeddings=False),
    "plain-qwen3": qwen3(head_dim=6, rope_parameters=LINEAR, tie_word_embeddings=False),
    "plain-qwen3-moe-all": qwen3_moe(num_experts=3, num_experts_per_tok=3, norm_topk_prob=True),
    "plain-phi3-partial": phi3(rope_parameters=PARTIAL, tie_word_embeddings=True),
    "plain-phi3-long": phi3(**(longrope(16, 8) | LONG)),
    "plain-phi3-short": phi3(**(longrope(256, 8) | LONG)),
    "plain-phi3-short-partial": phi3(**(longrope(256, 6, partial_rotary_factor=0.75) | LONG)),
    "plain-gemma3-two-ropes": gemma3(
        sliding_window=6, query_pre_attn_scalar=10, layer_types=TYPES[1:] + TYPES[1:2], rope_parameters=TWO_ROPES
    ),
    "plain-gpt2": gpt2(n_inner=77, layer_norm_epsilon=1e-2),
}

out, parts = pathlib.Path(sys.argv[1]), sys.argv[2:]
for number, (name, (kind, config)) in enumerate(MODELS.items()):
    if parts and not any(part in name for part in parts):
        continue
    torch.manual_seed(100 + number)
    model = kind(config).eval().float()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.5 if any(part in key for part in ("embed", "wte", "wpe")) else 0.2)
            elif "norm" in key.lower() or "ln_" in key:
                one = 0 if "gemma" in name or "bias" in key else 1
                weight.copy_(one + 0.2 * torch.randn_like(weight))
            else:
                weight.normal_(0, 0.2)
    # Every third in shards.
    model.save_pretrained(out / name, max_shard_size="30KB" if number % 3 == 0 else "5GB")
    print(name, sum(weight.numel() for weight in model.parameters()), flush=True)
