"""What choosing codes by a text gains: files of llama-quantize's types with an importance matrix against files with codes chosen by
the same text, both judged by llama.cpp itself on text that neither saw; and schemes of safetensors against rounding to nearest, judged by `compress check`.

Usage: python calibrated.py COMPRESS MODEL [--types q4_0 q4_k_m q3_k_m q2_k q6_k] [--schemes w4a16] [--ablate] [--flags ...]
MODEL is a folder with calib.txt, to calibrate on, and valid.txt, of whose first 60,000 bytes windows of 256 tokens are judged, the second half of each.
The importance matrix is that of 60 windows of 256 tokens of calib.txt, gathered by transformers; `compress --imatrix` writes
the bytes of `llama-quantize --imatrix`. --ablate leaves out each step of the best method. Needs gguf, llama-cpp-python, numpy, torch and
transformers."""
import argparse
import ctypes
import json
import pathlib
import subprocess
import tempfile
import time

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--types", nargs="*", default=["q4_0", "q4_k_m", "q3_k_m", "q2_k", "q6_k"])
parser.add_argument("--schemes", nargs="*", default=["w4a16"])
parser.add_argument("--ablate", action="store_true")
parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[])
a = parser.parse_args()

CONTEXT, CHUNKS = 256, 60
BARS = {"q6_k": 0.6}


@llama.llama_log_callback
def silent(level, text, user):
    pass


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def predictions(path, windows):
    """llama.cpp's log probabilities of the second half of each window."""
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.n_threads = params.n_threads_batch = 2
    context = llama.llama_init_from_model(model, params)
    out = []
    for window in windows:
        batch = llama.llama_batch_init(CONTEXT, 0, 1)
        batch.n_tokens = CONTEXT
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, i >= CONTEXT // 2
            batch.seq_id[i][0] = 0
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        assert llama.llama_decode(context, batch) == 0
        rows = [llama.llama_get_logits_ith(context, i) for i in range(CONTEXT // 2, CONTEXT - 1)]
        out.append(log_softmax(np.array([np.ctypeslib.as_array(row, (vocab,)) for row in rows])).astype(np.float32))
        llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return out


def divergence(original, path, windows):
    found = predictions(path, windows)
    kl = [(np.exp(p, dtype=np.float64) * (p.astype(np.float64) - q)).sum(-1) for p, q in zip(original, found)]
    return float(np.concatenate(kl).mean())


def importance(path, tokens):
    """llama-imatrix's sums, with llama.cpp's names."""
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    sums = {}

    def hook(name):
        def add(module, inputs, output):
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            total, count = sums.get(name, (0, 0))
            sums[name] = total + (x.double() ** 2).sum(0), count + x.shape[0]
        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(names.get_name(name) + ".weight"))
    with torch.no_grad():
        for i in range(CHUNKS):
            model(torch.tensor([tokens[i * CONTEXT:(i + 1) * CONTEXT]]))
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calib.txt"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", CONTEXT)
    for name, (total, count) in sorted(sums.items()):
        writer.add_tensor(name + ".in_sum2", total.numpy().astype(np.float32)[None])
        writer.add_tensor(name + ".counts", np.array([[count / CONTEXT]], dtype=np.float32) * CONTEXT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compress(target, *flags):
    start = time.time()
    command = [a.program, a.model, "-o", target, "--force", "--json", "-q", *flags, *a.flags]
    command += [] if "--no-check" in flags else ["--accept"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), time.time() - start


llama.llama_backend_init()
llama.llama_log_set(silent, ctypes.c_void_p(0))
tokenizer = AutoTokenizer.from_pretrained(a.model)
bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []


def read(name, length):
    text = (a.model / name).read_bytes()[:length].decode(errors="ignore")
    return bos + tokenizer.encode(text, add_special_tokens=False)


def cut(tokens):
    whole = range(0, len(tokens) - CONTEXT + 1, CONTEXT)
    return [bos + tokens[i + len(bos):i + CONTEXT] for i in whole]


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    judged = folder / "judged.txt"
    judged.write_bytes((a.model / "valid.txt").read_bytes()[:60_000])
    windows = cut(read("valid.txt", 60_000))
    print(f"{len(windows)} windows of {CONTEXT} tokens", flush=True)
    flags = ["--text", judged, "--context", str(CONTEXT), "--check-tokens", "1000000", "--score", "second-half"]
    by_text = ["--calibrate", a.model / "calib.txt"]
    matrix = folder / "imatrix.gguf"
    importance(matrix, read("calib.txt", None))
    subprocess.run([a.program, "convert", a.model, folder / "original.gguf", "-q"], check=True)
    original = predictions(folder / "original.gguf", windows)
    print("| type | llama-quantize, imatrix | by a text | ratio | must | by our check | seconds |\n|---|---|---|---|---|---|---|")
    for scheme in a.types:
        target = folder / "model.gguf"
        compress(target, "--scheme", scheme, "--imatrix", matrix, "--no-check")
        theirs = divergence(original, target, windows)
        report, _ = compress(target, "--scheme", scheme, *by_text, *flags)
        ours = divergence(original, target, windows)
        check, seconds = report["check"]["kl"]["mean"], report["seconds"]["compress"]
        must = BARS.get(scheme, 0.35)
        cells = f"{theirs:.6f} | {ours:.6f} | {ours / theirs:.3f} | {must} | {check:.6f} | {seconds:.0f}"
        print(f"| {scheme} | {cells} |", flush=True)
    print("\n| scheme | to nearest | by a text | ratio | seconds |\n|---|---|---|---|---|")
    for scheme in a.schemes:
        plain, _ = compress(folder / "model", "--scheme", scheme, *flags)
        report, _ = compress(folder / "model", "--scheme", scheme, *by_text, *flags)
        plain, ours = (found["check"]["kl"]["mean"] for found in (plain, report))
        print(f"| {scheme} | {plain:.6f} | {ours:.6f} | {ours / plain:.3f} | {report['seconds']['compress']:.0f} |", flush=True)
    if a.ablate:
        print("\n| type | gptq | without drift and residual | without residual | without outputs | without embedding | best |")
        print("|---|---|---|---|---|---|---|")
        leave = [["--method", "gptq"], ["--without", "drift", "--without", "residual"], ["--without", "residual"],
                 ["--without", "outputs"], ["--without", "embedding"], []]
        for scheme in a.types:
            found = [compress(folder / "model.gguf", "--scheme", scheme, *by_text, *flags, *more)[0] for more in leave]
            print(f"| {scheme} | " + " | ".join(f"{one['check']['kl']['mean']:.6f}" for one in found) + " |", flush=True)
