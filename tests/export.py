"""Holds that onnxruntime computes of exported graphs what transformers recorded and what our runtime computes, to 1e-4.
Usage: python tests/export.py PROGRAM OUTPUTS [MODEL], in the repository, OUTPUTS being the built examples/outputs.rs and MODEL a
folder with all-MiniLM-L6-v2, which is then timed as well.

Needs numpy, onnx, onnxruntime and safetensors."""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import InferenceSession, SessionOptions
from safetensors.numpy import load_file

program, outputs = sys.argv[1:3]
GOLDEN, MOST = Path("fixtures/golden"), 1e-4


def write(*arguments):
    subprocess.run([program, *arguments, "-q", "--no-check"], check=True)


def session(path):
    """The graph in onnxruntime, if it is valid and no constant feeds two DequantizeLinear."""
    onnx.checker.check_model(str(path), full_check=True)
    nodes = [node for node in onnx.load(str(path), load_external_data=False).graph.node if node.op_type == "DequantizeLinear"]
    assert max(Counter(name for node in nodes for name in node.input).values(), default=1) == 1, path
    options = SessionOptions()
    options.log_severity_level = 2
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, ids, mask=None):
    found = session(path)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask, "token_type_ids": np.zeros_like(ids)}
    return found.run(None, {value.name: feeds[value.name] for value in found.get_inputs()})[0]


def ours(model, lines, shape):
    text = "\n".join(" ".join(map(str, line)) for line in lines)
    found = subprocess.run([outputs, str(model)], input=text.encode(), stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(found, np.float32).reshape(shape)


def difference(one, other):
    assert np.isfinite(one).all() and one.shape == other.shape
    return float(np.abs(one - other).max())


def row(*cells):
    print("|", " | ".join(cells), "|", flush=True)


print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}\n")
row("model", "stored as", "from our runtime", "from transformers", "std of outputs")
row("---", "---", "---", "---", "---")
worst = 0.0
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    for model in sorted(GOLDEN.iterdir()) + sorted(Path("fixtures/golden-odd").iterdir()):
        record = load_file(model / "golden.safetensors")
        ids = record["input_ids"]
        for scheme in ["f32", "f16", "bf16", "int8", "int8 folder", "int4", "w8a16", "fp8"] if model.parent == GOLDEN else ["f32"]:
            out = folder / f"{model.name}-{scheme}.onnx"
            if scheme == "f32":
                write("convert", model, out)
            elif scheme in ("fp8", "int8 folder"):
                # What a folder holds has other shapes than what is written at once.
                quantized = folder / f"{model.name}-{scheme}"
                write(model, "--scheme", scheme.split()[0], "-o", quantized)
                write("convert", quantized, out)
            else:
                write(model, "--scheme", scheme, "-o", out)
            found = run(out, ids)
            differences = [difference(found, ours(out, ids, found.shape))]
            if scheme == "f32":
                # Records of encoders without a last state of its own end with it.
                last = max((key for key in record if key.startswith("hidden_states.")), key=lambda key: int(key.split(".")[1]), default="")
                name = next(name for name in ["logits", "last_hidden_state", last] if name in record)
                differences.append(difference(found, record[name]))
            worst = max(worst, *differences)
            cells = [f"{d:.1e}" for d in differences] + [""] * (2 - len(differences))
            row(model.name, scheme, *cells, f"{found.std():.2f}")
        # What a text is does not depend on the one beside it, nor on padding after it.
        out = folder / f"{model.name}-f32.onnx"
        padding = 1 if model.name == "roberta" else 0
        length = ids.shape[1] - 5
        padded = np.where(np.arange(ids.shape[1]) < length, ids, padding)
        mask = (np.arange(ids.shape[1]) < length).astype(np.int64) * np.ones_like(ids)
        alone = run(out, ids[:1, :length])
        worst = max(worst, difference(run(out, padded, mask)[:1, :length], alone))
    chain, inputs = "fixtures/chain", np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    for scheme in ["f32", "int8"]:
        out = folder / f"chain-{scheme}.onnx"
        write(*(["convert", chain, out] if scheme == "f32" else [chain, "--int8", "-o", out]))
        graph = session(out)
        inputs = np.random.default_rng(0).standard_normal((7, graph.get_inputs()[0].shape[1])).astype(np.float32)
        found = graph.run(None, {"input": inputs})[0]
        d = difference(found, ours(out, inputs, found.shape))
        worst = max(worst, d)
        row("chain", scheme, f"{d:.1e}", "", f"{found.std():.2f}")
    for gguf in [folder / "kjv.gguf"]:
        write("convert", "fixtures/kjv-nano", gguf)
        write("convert", gguf, folder / "kjv.onnx")
        ids = np.random.default_rng(0).integers(3, 250, (2, 40))
        found = run(folder / "kjv.onnx", ids)
        d = difference(found, ours("fixtures/kjv-nano", ids, found.shape))
        worst = max(worst, d)
        row("kjv-nano", "f16 through GGUF", f"{d:.1e}", "", f"{found.std():.2f}")
    if len(sys.argv) > 3:
        ids = np.random.default_rng(0).integers(1000, 30000, (8, 128))
        for scheme in ["f32", "int8"]:
            out = folder / f"minilm-{scheme}.onnx"
            write(sys.argv[3], "--scheme", scheme, "-o", out)
            graph = session(out)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                found = graph.run(None, feeds)[0]
                seconds.append(time.perf_counter() - start)
            d = difference(found, ours(out, ids, found.shape))
            worst = max(worst, d)
            row("all-MiniLM-L6-v2", scheme, f"{d:.1e}", "", f"{found.std():.2f}")
            print(f"onnxruntime: {ids.size / min(seconds):.0f} tokens/s", file=sys.stderr)
print(f"\nThe largest difference: {worst:.1e}")
assert worst <= MOST
