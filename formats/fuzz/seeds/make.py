"""Makes the seeds of the fuzz targets with the packages gguf 0.19 and safetensors 0.8. Usage: python make.py, in this folder."""

import struct
from pathlib import Path

import numpy as np
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
