"""Writes a Llama with random weights, to measure speed and memory on. Needs nothing but Python.

Usage: python make_llama.py FOLDER [--hidden 2048] [--layers 22] [--heads 32] [--kv-heads 4] [--intermediate 5632]
       [--vocab 32000]
The defaults are a model of 1.1 B parameters in f16: 2.2 GB."""
import argparse
import json
import os
import random
import struct

parser = argparse.ArgumentParser()
parser.add_argument("folder")
for name, value in [("hidden", 2048), ("layers", 22), ("heads", 32), ("kv-heads", 4), ("intermediate", 5632), ("vocab", 32000)]:
    parser.add_argument(f"--{name}", type=int, default=value)
a = parser.parse_args()
head = a.hidden // a.heads

tensors = [("model.embed_tokens.weight", [a.vocab, a.hidden])]
for i in range(a.layers):
    layer = f"model.layers.{i}."
    tensors += [
        (layer + "input_layernorm.weight", [a.hidden]),
        (layer + "self_attn.q_proj.weight", [a.heads * head, a.hidden]),
        (layer + "self_attn.k_proj.weight", [a.kv_heads * head, a.hidden]),
        (layer + "self_attn.v_proj.weight", [a.kv_heads * head, a.hidden]),
        (layer + "self_attn.o_proj.weight", [a.hidden, a.heads * head]),
        (layer + "post_attention_layernorm.weight", [a.hidden]),
        (layer + "mlp.gate_proj.weight", [a.intermediate, a.hidden]),
        (layer + "mlp.up_proj.weight", [a.intermediate, a.hidden]),
        (layer + "mlp.down_proj.weight", [a.hidden, a.intermediate]),
    ]
tensors += [("model.norm.weight", [a.hidden]), ("lm_head.weight", [a.vocab, a.hidden])]

# One megabyte of normal numbers, turned a little for each use, is as good as two gigabytes of them and made in a second.
rng = random.Random(0)
noise = b"".join(struct.pack("<e", rng.gauss(0, 0.02)) for _ in range(1 << 19))


def values(name, count):
    if "norm" in name:
        return struct.pack("<e", 1.0) * count
    start = 2 * rng.randrange(len(noise) // 2)
    turned = noise[start:] + noise[:start]
    return (turned * (2 * count // len(turned) + 1))[: 2 * count]


header, offset = {"__metadata__": {"format": "pt"}}, 0
for name, shape in tensors:
    count = 1
    for d in shape:
        count *= d
    header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + 2 * count]}
    offset += 2 * count
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)

os.makedirs(a.folder, exist_ok=True)
with open(os.path.join(a.folder, "model.safetensors"), "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    for name, shape in tensors:
        count = 1
        for d in shape:
            count *= d
        out.write(values(name, count))
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16", "hidden_act": "silu",
    "hidden_size": a.hidden, "num_hidden_layers": a.layers, "num_attention_heads": a.heads,
    "num_key_value_heads": a.kv_heads, "intermediate_size": a.intermediate, "vocab_size": a.vocab,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}
json.dump(config, open(os.path.join(a.folder, "config.json"), "w"), indent=2)
