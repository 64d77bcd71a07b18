"""Holds that onnxruntime runs the graphs that the program writes, and computes with them what it computes with the numbers that
they store. Usage: python tests/graphs.py PROGRAM, in the repository. With MODELPRESS_MINILM (see .ci/run) it also embeds sentences with
all-MiniLM-L6-v2.

Needs numpy, onnx, onnxruntime and safetensors."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from safetensors.numpy import load_file

program, folder = sys.argv[1], Path("fixtures/onnx")
io = load_file(folder / "io.safetensors")


def run(path, inputs, plain=False):
    options = onnxruntime.SessionOptions()
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def stored(model):
    """The numbers that a written graph stores, by the names of the original's initializers: its codes times its scales."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = dict(constants)
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "DequantizeLinear":
            codes = constants[node.input[0]].astype(np.float32)
            scales = next(a for name, a in constants.items() if name in node.input[1] and name.endswith("_scale"))
            shape = [-1 if axis == attributes["axis"] else 1 for axis in range(codes.ndim)]
            found[node.input[0].removesuffix("_quantized")] = codes * scales.astype(np.float32).reshape(shape)
        elif node.op_type == "MatMulNBits":
            bits, n, k, size = (attributes[name] for name in ["bits", "N", "K", "block_size"])
            codes, scales = constants[node.input[1]], constants[node.input[2]].astype(np.float32)
            if bits == 4:
                codes = np.stack([codes & 15, codes >> 4], -1)
            numbers = (codes.reshape(n, -1, size).astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(n, -1, 1)
            name = node.input[1].removesuffix("_Q4").removesuffix("_Q8")
            found[name] = numbers.reshape(n, k).T
        elif node.op_type == "Cast" and node.input[0] in constants:
            found[node.output[0]] = constants[node.input[0]].astype(np.float32)
    return found


def with_numbers(original, numbers):
    """The original graph with these numbers: Gemm's weights may be the other way."""
    model = onnx.load(original)
    changed = 0
    constants = [(tensor.name, tensor) for tensor in model.graph.initializer]
    constants += [(node.output[0], node.attribute[0].t) for node in model.graph.node if node.op_type == "Constant"]
    for name, tensor in constants:
        array = numpy_helper.to_array(tensor)
        other = numbers.get(name, array)
        other = (other if other.shape == array.shape else other.T).reshape(array.shape).astype(array.dtype)
        changed += not np.array_equal(array, other)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(other), tensor.name))
    return model, changed


def cases(name):
    inputs = {key.removeprefix(f"{name}.in."): a for key, a in io.items() if key.startswith(f"{name}.in.")}
    if name != "branch":
        return [(inputs, io[f"{name}.out.y"])]
    return [(inputs | {"flag": np.array(flag)}, io[f"branch.{flag}"]) for flag in [True, False]]


names = ["matmul-11", "matmul-13", "matmul-17", "matmul-21", "listed", "gemm", "half-13", "half-19", "conv", "tied", "shared", "branch", "external", "unknown"]
flags = [["--int8"], ["--int8", "--embeddings"], ["--int4", "--group-size", "32"], ["--scheme", "w8a16", "--group-size", "16"], ["--f16"], ["--bf16"]]
with tempfile.TemporaryDirectory() as out:
    runs = changed_in_all = 0
    for name in names:
        original = folder / f"{name}.onnx"
        same = Path(out) / f"{name}-same.onnx"
        subprocess.run([program, "convert", original, same, "-q"], check=True)
        for inputs, expected in cases(name):
            found = run(same, inputs)
            assert np.array_equal(found, expected), (name, "convert", np.abs(found - expected).max())
        for flag in flags:
            path = Path(out) / f"{name}-{''.join(flag)}.onnx"
            subprocess.run([program, original, *flag, "-q", "-o", path], check=True)
            onnx.checker.check_model(str(path))
            written = onnx.load(path)
            plain, changed = with_numbers(original, stored(written))
            changed_in_all += changed
            reference = Path(out) / "reference.onnx"
            onnx.save(plain, reference)
            for inputs, expected in cases(name):
                wanted = run(reference, inputs)
                # onnxruntime's own products of codes may round their inputs to int8; without them it is the same arithmetic.
                blocked = "MatMulNBits" in str(written.graph.node)
                unit = 2e-3 if wanted.dtype == np.float16 else 1e-5
                most = np.abs(wanted).max()
                for plain in [True, False]:
                    found = run(path, inputs, plain)
                    allowed = 2e-2 if blocked or not plain else unit
                    assert np.abs(found - wanted).max() <= allowed * most, (name, flag, np.abs(found - wanted).max(), most)
                assert np.abs(found - expected).max() <= 0.25 * most, (name, flag, np.abs(found - expected).max())
                runs += 1
    assert changed_in_all > 60, changed_in_all
    # What others quantized: copied it computes the same, in floats what the codes stand for.
    theirs, unpacked = load_file(folder / "quantized" / "io.safetensors"), 0
    for original in sorted((folder / "quantized").glob("*.onnx")):
        name = original.stem
        inputs = {key.removeprefix(f"{name}.in."): a for key, a in theirs.items() if key.startswith(f"{name}.in.")}
        expected = theirs[f"{name}.out"].astype(np.float32)
        for flag in [[], ["--dequantize"], ["--dequantize", "--dtype", "f16"]]:
            if flag and name.startswith("dynamic"):
                continue
            path = Path(out) / f"{name}{''.join(flag)}.onnx"
            subprocess.run([program, "convert", original, path, *flag, "-q"], check=True)
            onnx.checker.check_model(str(path))
            left = {node.op_type for node in onnx.load(path).graph.node if flag and node.input[0] not in inputs} & {"MatMulNBits"}
            difference = np.abs(run(path, inputs, True).astype(np.float32) - expected).max() / np.abs(expected).max()
            # f16 has eleven bits, and inputs that are rounded to eight may fall to the other side.
            allowed = 0 if not flag else 2e-2 if "f16" in flag else 1e-5
            assert not left and difference <= allowed, (name, flag, left, difference)
            unpacked += len(flag) == 1
    print(f"of graphs that others quantized, onnxruntime computes the same of {unpacked} in floats")
    if minilm := os.environ.get("MODELPRESS_MINILM"):
        sys.path.insert(0, "benches")
        import minilm_onnx

        graph, small = Path(out) / "minilm.onnx", Path(out) / "small.onnx"
        minilm_onnx.graph(minilm, str(graph))
        embed = minilm_onnx.Minilm.__new__(minilm_onnx.Minilm).embed
        for flag, least in [("--int8", 0.999), ("--f16", 0.99999), ("--int4", 0.9)]:
            subprocess.run([program, graph, flag, "-q", "--force", "-o", small], check=True)
            vectors = embed(onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"]))
            expected = load_file("fixtures/minilm/golden.safetensors")["embeddings"]
            cosine = (vectors * expected).sum(1).mean()
            assert cosine > least, (flag, cosine)
            print(f"MiniLM {flag}: {small.stat().st_size / graph.stat().st_size:.2f} of the size, mean cosine {cosine:.5f}")
print(f"onnxruntime computes what is stored: {runs} runs of {len(names)} graphs")
