"""Loads what compress writes with llama.cpp and compares its logits (an encoder's hidden states) with those of transformers.

Usage: python benches/in_llama_cpp.py COMPRESS MODEL:SCHEME ...   COMPRESS is the program; a MODEL is a Hugging Face folder. One without
tokenizer.json gets a small one of fixtures/llama-cpp. Needs llama-cpp-python, torch and transformers. TOKENS=40 random tokens are
run in a context of as many; llama.cpp rounds activations to the weights' type before it multiplies, so that f16 agrees to three
digits and not to seven.
"""
import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import llama_cpp.llama_cpp as llama
import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM

TOKENIZERS = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "llama-cpp"
TOKENS = int(os.environ.get("TOKENS", "40"))
ENCODERS = ("bert", "distilbert", "roberta")


@llama.llama_log_callback
def silent(level, text, user):
    pass


def run(path, tokens, embeds):
    """llama.cpp's outputs at every position."""
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {path}"
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.n_threads = params.n_threads_batch = 1
    params.embeddings = embeds
    params.pooling_type = 0
    context = llama.llama_init_from_model(model, params)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    status = (llama.llama_encode if embeds else llama.llama_decode)(context, batch)
    assert status == 0, status
    if embeds:
        width, row = llama.llama_model_n_embd(model), llama.llama_get_embeddings_ith
    else:
        width, row = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)), llama.llama_get_logits_ith
    out = np.array([np.ctypeslib.as_array(row(context, i), (width,)) for i in range(len(tokens))])
    llama.llama_free(context)
    llama.llama_model_free(model)
    return out


def main():
    llama.llama_backend_init()
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    print("| model | scheme | largest difference | std of transformers' | mean cosine |\n|---|---|---|---|---|")
    for argument in sys.argv[2:]:
        source, scheme = argument.rsplit(":", 1)
        source = pathlib.Path(source)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder) / "model"
            shutil.copytree(source, folder)
            config = json.loads((folder / "config.json").read_text())
            if not (folder / "tokenizer.json").exists():
                kind = "wordpiece" if config["model_type"] in ("bert", "distilbert") else "bpe"
                shutil.copy(TOKENIZERS / f"{kind}.json", folder / "tokenizer.json")
            embeds = config["model_type"] in ENCODERS
            tokens = [int(token) for token in np.random.default_rng(1).integers(0, config["vocab_size"], TOKENS)]
            target = folder.parent / "model.gguf"
            written = subprocess.run(
                [sys.argv[1], folder, "--scheme", scheme, "-o", target, "-q", "--no-check"], capture_output=True, text=True
            )
            if written.returncode != 0:
                print(f"| {source.name} | {scheme} | refused: {written.stderr.strip()} |", flush=True)
                continue
            found = run(target, tokens, embeds)
            kind = AutoModel if embeds else AutoModelForCausalLM
            # The other ways to multiply experts take no odd widths.
            experts = {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}
            model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **experts).eval()
            with torch.no_grad():
                output = model(torch.tensor([tokens]))
            expected = (output.last_hidden_state if embeds else output.logits)[0].numpy()
            cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
            most = np.abs(found - expected).max()
            print(f"| {source.name} | {scheme} | {most:.1e} | {expected.std():.2f} | {cosines.mean():.6f} |", flush=True)


main()
