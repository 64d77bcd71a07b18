"""An ONNX model whose constants are the tensors of a safetensors file, in one file beside it, for benchmarks of reading and writing.
Needs numpy and onnx.

Usage: python external_onnx.py MODEL.safetensors OUT.onnx"""
import json
import os
import shutil
import sys

import onnx
from onnx import TensorProto, helper

TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "I64": TensorProto.INT64, "U8": TensorProto.UINT8}


def make(model, out):
    """Writes the graph, and a copy of the file's data part as it is."""
    with open(model, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        with open(out + ".data", "wb") as data:
            shutil.copyfileobj(file, data, 1 << 20)
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        tensor = TensorProto(name=name, data_type=TYPES[entry["dtype"]], dims=entry["shape"], data_location=TensorProto.EXTERNAL)
        for key, value in [("location", os.path.basename(out) + ".data"), ("offset", start), ("length", end - start)]:
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    nodes = [helper.make_node("Identity", [tensors[0].name], ["y"])]
    y = helper.make_tensor_value_info("y", tensors[0].data_type, list(tensors[0].dims))
    graph = helper.make_graph(nodes, "constants", [], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), out)


if __name__ == "__main__":
    make(*sys.argv[1:])
