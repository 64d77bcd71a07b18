"""Makes the seeds of the fuzz targets with the packages gguf 0.19, safetensors 0.8, numpy 2.4, onnx 1.23 and torch 2.15.
Usage: python make.py, in this folder."""

import struct
from pathlib import Path

import numpy as np
import onnx
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from safetensors.numpy import save_file


def gguf(name, fill, **options):
    writer = GGUFWriter(f"gguf/{name}.gguf", "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values(writer):
    kinds = [
        ("uint8", 1), ("int8", -1), ("uint16", 2), ("int16", -2), ("uint32", 3), ("int32", -3),
        ("float32", 0.5), ("bool", True), ("string", "text"), ("uint64", 2**63), ("int64", -4), ("float64", 0.25),
    ]
    for kind, value in kinds:
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("a.strings", ["<s>", "", "ö"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [1.5, -2.5])
    writer.add_array("a.nested", [[1, 2], [3]])


def tensors(writer):
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(5, np.float32))
    blocks = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    blocks = np.arange(2 * 144, dtype=np.uint8).reshape(1, 288)
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=GGMLQuantizationType.Q4_K)


def aligned(writer):
    writer.add_custom_alignment(64)
    tensors(writer)


def both(writer):
    values(writer)
    tensors(writer)


gguf("values", values)
gguf("tensors", tensors)
gguf("aligned", aligned)
gguf("both", both)
first = bytearray(Path("gguf/both.gguf").read_bytes())
struct.pack_into("<I", first, 4, 2)
Path("gguf/version2.gguf").write_bytes(first)

dtypes = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
save_file({f"t.{np.dtype(d).name}": np.ones((2, 3), d) for d in dtypes}, "safetensors/dtypes.safetensors")
shapes = {"scalar": np.array(1, np.float32), "empty": np.ones((0, 4), np.float32), "row": np.ones(7, np.float16)}
save_file(shapes, "safetensors/shapes.safetensors", metadata={"format": "pt", "key": "välue"})
save_file({}, "safetensors/nothing.safetensors")
dense = np.array([[0, 1.5, 0, 0, -2, 0], [0, 0, 0, 3, 0, 0]], np.float32)
packed = {
    "a.sparse.mask": np.packbits(dense.ravel() != 0, bitorder="little"),
    "a.sparse.values": dense[dense != 0],
    "a.sparse.shape": np.array(dense.shape, np.int64),
    "b": np.ones(3, np.float16),
}
save_file(packed, "safetensors/sparse.safetensors", metadata={"modelpress.sparse": "1"})

Path("npz").mkdir(exist_ok=True)
small = {"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "0.bias": np.ones(2, np.float16)}
orders = {"big": np.arange(4, dtype=">i4"), "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "scalar": np.array(1, np.uint8)}
np.savez("npz/stored.npz", **small)
np.savez_compressed("npz/deflated.npz", **small, **orders)
np.savez("npz/orders.npz", **orders, bf16=np.ones(4, np.uint16).view("V2"))
np.savez("npz/nothing.npz")
np.save("npz/array.npy", orders["fortran"])
np.save("npz/plain.npy", small["0.weight"])

Path("onnx").mkdir(exist_ok=True)


def graph(name, nodes, initializers, opset=17):
    value = onnx.helper.make_tensor_value_info
    x, y = value("x", onnx.TensorProto.FLOAT, ["n", 4]), value("y", onnx.TensorProto.FLOAT, ["n", 4])
    made = onnx.helper.make_graph(nodes, name, [x], [y], initializers)
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)]), f"onnx/{name}.onnx")


node, raw = onnx.helper.make_node, onnx.numpy_helper.from_array
square = raw(np.ones((4, 4), np.float32), "w")
graph("raw", [node("MatMul", ["x", "w"], ["y"])], [square])
typed = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, (4, 4), [1.5] * 16)
half = onnx.TensorProto(name="h", data_type=onnx.TensorProto.FLOAT16, dims=[3], int32_data=[1, 40000, 3])
longs = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, (2,), [-1, 1 << 40])
graph("typed", [node("MatMul", ["x", "w"], ["y"])], [typed, half, longs])
within = onnx.helper.make_graph([node("MatMul", ["x", "w"], ["then"])], "then", [], [onnx.helper.make_tensor_value_info("then", 1, ["n", 4])], [square])
other = onnx.helper.make_graph([node("Identity", ["x"], ["else"])], "else", [], [onnx.helper.make_tensor_value_info("else", 1, ["n", 4])])
flag = raw(np.array(True), "flag")
graph("within", [node("If", ["flag"], ["y"], then_branch=within, else_branch=other)], [flag])
codes, scales = raw(np.ones((4, 4), np.int8), "w_quantized"), raw(np.ones(4, np.float32), "w_scale")
dequantize = node("DequantizeLinear", ["w_quantized", "w_scale"], ["w"], axis=1)
constant = node("Constant", [], ["k"], value=raw(np.ones((4, 4), np.float32), "k"))
graph("nodes", [dequantize, constant, node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "k"], ["y"])], [codes, scales])

Path("pytorch").mkdir(exist_ok=True)
weight = torch.arange(12.0).reshape(3, 4)
nested = {"a": weight, "b": {"c": weight.t(), "d": weight[1:, ::2]}, "e": [torch.ones(2).half()], "n": 1.5}
module = torch.nn.Linear(2, 2)
torch.save(nested, "pytorch/nested.pt")
torch.save(nested, "pytorch/legacy.pt", _use_new_zipfile_serialization=False)
torch.save(module.state_dict(), "pytorch/module.pt")
torch.save({"p": torch.nn.Parameter(weight), "f": weight.to(torch.float8_e4m3fn)}, "pytorch/kinds.pt")
torch.save(weight, "pytorch/alone.pt")
