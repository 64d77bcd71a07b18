"""From a Hugging Face folder to GGUF and back: does transformers load what returns, and does it compute the same?

Usage: python benches/gguf_and_back.py COMPRESS MODEL ...   COMPRESS is the program; a MODEL is a Hugging Face folder. One without
tokenizer.json gets a small one of fixtures/llama-cpp. Needs torch and transformers. Where a MODEL holds a reference.gguf, which
llama.cpp's converter made of it, that becomes a folder too. TOKENS=40 random tokens are run in f32. Prints the table of docs/convert.md.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM

TOKENIZERS = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "llama-cpp"
TOKENS = int(os.environ.get("TOKENS", "40"))
TEXT = "And God said, Let there be light: and there was light."
ENCODERS = ("bert", "distilbert", "roberta")
transformers.logging.set_verbosity_error()


def outputs(folder, kind, tokens):
    model, found = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
    assert not missing and not found["mismatched_keys"], found
    with torch.no_grad():
        output = model.eval()(torch.tensor([tokens]))
    return (output.last_hidden_state if kind is AutoModel else output.logits)[0].numpy()


def main():
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| model | GGUF by | returns as | largest difference | std of outputs | tokens of a text |\n|---|---|---|---|---|---|")
    for source in map(pathlib.Path, sys.argv[2:]):
        with tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            folder = work / "model"
            folder.mkdir()
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                if (source / name).exists():
                    shutil.copy(source / name, folder / name)
            config = json.loads((folder / "config.json").read_text())
            if not (folder / "tokenizer.json").exists():
                kind = "wordpiece" if config["model_type"] in ("bert", "distilbert") else "bpe"
                shutil.copy(TOKENIZERS / f"{kind}.json", folder / "tokenizer.json")
            kind = AutoModel if config["model_type"] in ENCODERS else AutoModelForCausalLM
            tokens = [int(token) for token in np.random.default_rng(1).integers(0, config["vocab_size"], TOKENS)]
            expected = outputs(folder, kind, tokens)
            ours = work / "ours.gguf"
            subprocess.run([sys.argv[1], "convert", folder, ours, "-q"], check=True)
            files = [("compress", ours)]
            if (source / "reference.gguf").exists():
                theirs = work / "theirs.gguf"
                shutil.copy(source / "reference.gguf", theirs)
                files.append(("llama.cpp", theirs))
            for by, gguf in files:
                back = work / f"{gguf.stem}-back"
                subprocess.run([sys.argv[1], "convert", gguf, back, "-q"], check=True)
                off = np.abs(outputs(back, kind, tokens) - expected).max()
                name = json.loads((back / "config.json").read_text())["model_type"]
                cut = [Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT).ids for path in (folder, back)]
                same = "the same" if cut[0] == cut[1] else "OTHERS"
                print(f"| {source.name} | {by} | {name} | {off:.1e} | {expected.std():.2f} | {same} |", flush=True)


main()
