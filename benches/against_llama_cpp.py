"""Does llama.cpp load what `compress` writes, cut texts into the same tokens, and find the perplexity that our runtime finds?

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" pip install --no-cache-dir llama-cpp-python==0.3.36
    cargo build --release
    python3 benches/against_llama_cpp.py target/release/compress MODEL [--types f32,f16,q8_0,q4_k_m]

MODEL is a Hugging Face folder of a decoder with a valid.txt. Windows are as `compress check --context 256` takes them: the first token,
then 255 tokens of the text, all of which are predicted; 100 of them. The KV cache is in f32. Ends with 1 where the programs differ by more than
0.1%, or where a token differs. With quantized types llama.cpp rounds activations to 8 bits and our runtime does not; that is part of the difference.

LLAMA_CPP_LIB_PATH may name the folder of a libllama.so built otherwise."""
import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
WINDOWS, CONTEXT = 100, 256
KINDS = ["llama", "gemma", "llama3", "smollm", "bert"]


def compress(program, *args):
    return subprocess.run([program, *map(str, args)], check=True, capture_output=True, text=True).stdout


def convert(program, model, kind, gguf):
    # Kept weights stay as they are: this is how a model in f32 becomes a file in f32.
    scheme = ["--scheme", "f16", "--keep", ".*"] if kind == "f32" else ["--scheme", kind]
    compress(program, model, *scheme, "-o", gguf, "-q", "--no-check")


def opened(path, **options):
    return llama_cpp.Llama(str(path), verbose=False, **options)


def tokens(program, work):
    """Each tokenizer of the fixtures in a GGUF file that we write: what llama.cpp makes of the texts, and the tokenizers library."""
    known = json.load(open(FIXTURES / "tokenizers" / "tokens.json", encoding="utf-8"))
    differ = compared = 0
    for kind in KINDS:
        model = work / kind
        if kind == "bert":
            shutil.copytree(FIXTURES / "tokenizers" / kind, model)
        else:
            # Any model with room for the tokens will do.
            shutil.copytree(FIXTURES / "kjv-nano", model)
            for name in ["tokenizer_config.json", "generation_config.json"]:
                (model / name).unlink()
            shutil.copy(FIXTURES / "tokenizers" / kind / "tokenizer.json", model / "tokenizer.json")
        gguf = work / f"{kind}.gguf"
        convert(program, model, "f16", gguf)
        vocabulary = opened(gguf, vocab_only=True)
        for how, special in [("text", False), ("whole", True)]:
            for text, expected in zip(known["texts"], known["tokens"][kind][how]):
                if kind == "bert" and any(len(word) > 100 for word in text.split()):
                    continue  # Unknown to tokenizers; llama.cpp cuts words of any length.
                compared += 1
                found = vocabulary.tokenize(text.encode(), add_bos=special, special=True)
                if found != expected:
                    differ += 1
                    print(f"  {kind}, {how}: {text!r}: llama.cpp {found}, tokenizers {expected}")
    print(f"tokens: {differ} texts differ of {compared}")
    return differ


def perplexity(gguf, text):
    model = opened(gguf, n_ctx=CONTEXT, n_batch=CONTEXT, n_ubatch=CONTEXT, logits_all=True, type_k=0, type_v=0)
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    total, count = 0.0, 0
    for start in range(0, WINDOWS * (CONTEXT - 1), CONTEXT - 1):
        window = [model.token_bos(), *ids[start : start + CONTEXT - 1]]
        model.reset()
        model.eval(window)
        logits = model.scores[: len(window) - 1].astype(np.float64)
        top = logits.max(1, keepdims=True)
        norm = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        total += float((norm - logits[np.arange(len(window) - 1), window[1:]]).sum())
        count += len(window) - 1
    return math.exp(total / count), count


def main():
    args = argparse.ArgumentParser()
    args.add_argument("program")
    args.add_argument("model", type=pathlib.Path)
    args.add_argument("--types", default="f32,f16,q8_0,q4_k_m")
    args = args.parse_args()
    print(f"llama-cpp-python {llama_cpp.__version__}; {compress(args.program, '--version').strip()}")
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        failed += tokens(args.program, work)
        valid = args.model / "valid.txt"
        text = valid.read_text(encoding="utf-8")
        for kind in args.types.split(","):
            gguf = work / f"model-{kind}.gguf"
            convert(args.program, args.model, kind, gguf)
            report = compress(args.program, "check", args.model, gguf, "--json", "--text", valid, "--context", CONTEXT, "--check-tokens",
                              WINDOWS * (CONTEXT - 1), "--max-kl", 1)
            ours = json.loads(report)["compressed"]["perplexity"]
            theirs, count = perplexity(gguf, text)
            off = theirs / ours - 1
            verdict = "" if abs(off) <= 1e-3 else "  MORE THAN 0.1%"
            failed += bool(verdict)
            print(f"{kind:8} {count} predictions: compress {ours:.4f}, llama.cpp {theirs:.4f} ({off:+.4%}){verdict}")
    sys.exit(bool(failed))


main()
