"""all-MiniLM-L6-v2 as an ONNX graph, written from its safetensors file, and onnxruntime's dynamic int8 of it: the peer of
`compress bench` for encoders. Used by peers.py. Needs numpy, onnx and onnxruntime."""
import json
import os
import subprocess
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "minilm")
NUMBERS = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


def tensors(path):
    """What a safetensors file holds."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, data = json.loads(file.read(size)), file.read()
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in NUMBERS:
            start, end = entry["data_offsets"]
            found[name] = np.frombuffer(data[start:end], NUMBERS[entry["dtype"]]).reshape(entry["shape"])
    return found


def graph(folder, out):
    """Writes the encoder: token ids and mask in, the last hidden states out. BERT (Devlin et al., 2018), exact gelu."""
    config = json.load(open(os.path.join(folder, "config.json")))
    weights = tensors(os.path.join(folder, "model.safetensors"))
    weights = {name.removeprefix("bert."): value.astype(np.float32) for name, value in weights.items()
               if value.dtype != np.int64}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nodes, constants, count = [], {}, 0

    def constant(name, value):
        constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def node(op, inputs, **attributes):
        nonlocal count
        count += 1
        nodes.append(helper.make_node(op, inputs, [f"t{count}"], **attributes))
        return f"t{count}"

    def linear(x, name):
        # One matrix each, so that it is quantized with a scale for each output.
        product = node("MatMul", [x, constant(f"{name}.w", weights[f"{name}.weight"].T)])
        return node("Add", [product, constant(f"{name}.b", weights[f"{name}.bias"])])

    def norm(x, name):
        gain, shift = constant(f"{name}.g", weights[f"{name}.weight"]), constant(f"{name}.s", weights[f"{name}.bias"])
        return node("LayerNormalization", [x, gain, shift], axis=-1, epsilon=config["layer_norm_eps"])

    table = constant("words", weights["embeddings.word_embeddings.weight"])
    shape = node("Shape", ["ids"])
    length = node("Gather", [shape, constant("one", np.array(1, np.int64))])
    end = node("Unsqueeze", [length, constant("axis", np.array([0], np.int64))])
    positions = constant("positions", weights["embeddings.position_embeddings.weight"])
    positions = node("Slice", [positions, constant("zero", np.array([0], np.int64)), end])
    x = node("Add", [node("Gather", [table, "ids"]), positions])
    x = node("Add", [x, constant("types", weights["embeddings.token_type_embeddings.weight"][0])])
    x = norm(x, "embeddings.LayerNorm")
    mask = node("Cast", ["mask"], to=TensorProto.FLOAT)
    mask = node("Mul", [node("Sub", [mask, constant("ones", np.array(1, np.float32))]), constant("far", np.array(1e9, np.float32))])
    mask = node("Unsqueeze", [mask, constant("axes", np.array([1, 2], np.int64))])
    split = constant("split", np.array([0, 0, heads, hidden // heads], np.int64))
    join = constant("join", np.array([0, 0, hidden], np.int64))
    scale = constant("scale", np.array((hidden / heads) ** -0.5, np.float32))
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = [node("Reshape", [linear(x, f"{at}.attention.self.{part}"), split]) for part in ("query", "key", "value")]
        q, v = node("Transpose", [q], perm=[0, 2, 1, 3]), node("Transpose", [v], perm=[0, 2, 1, 3])
        k = node("Transpose", [k], perm=[0, 2, 3, 1])
        scores = node("Add", [node("Mul", [node("MatMul", [q, k]), scale]), mask])
        seen = node("Transpose", [node("MatMul", [node("Softmax", [scores], axis=-1), v])], perm=[0, 2, 1, 3])
        x = norm(node("Add", [linear(node("Reshape", [seen, join]), f"{at}.attention.output.dense"), x]), f"{at}.attention.output.LayerNorm")
        wide = linear(x, f"{at}.intermediate.dense")
        x = norm(node("Add", [linear(node("Gelu", [wide]), f"{at}.output.dense"), x]), f"{at}.output.LayerNorm")
    nodes.append(helper.make_node("Identity", [x], ["hidden"]))
    sides = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in ("ids", "mask")]
    end = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", hidden])
    made = helper.make_graph(nodes, "minilm", sides, [end], list(constants.values()))
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), out)


class Minilm:
    """onnxruntime's int8 of the encoder."""

    def __init__(self, folder, out, threads):
        self.folder = folder
        plain, int8 = os.path.join(out, "minilm.onnx"), os.path.join(out, "minilm-int8.onnx")
        graph(folder, plain)
        quantize_dynamic(plain, int8, per_channel=True, weight_type=QuantType.QInt8)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.plain, self.int8 = [ort.InferenceSession(path, options, ["CPUExecutionProvider"]) for path in (plain, int8)]
        worst = np.abs(self.embed(self.plain) - self.expected()).max()
        assert worst < 1e-4, f"the graph is not the model: {worst}"

    def golden(self):
        return tensors(os.path.join(FIXTURES, "golden.safetensors"))

    def expected(self):
        return self.golden()["embeddings"]

    def embed(self, session):
        """The sentences of fixtures/minilm: mean of the positions that are there, scaled to length one."""
        golden = self.golden()
        ids, mask = golden["input_ids"], golden["attention_mask"]
        hidden = session.run(["hidden"], {"ids": ids, "mask": mask})[0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def sentences_per_second(self):
        """32 sentences of 16 tokens, as `compress bench` embeds them."""
        ids = (np.arange(32 * 16, dtype=np.int64) * 7919 + 11).reshape(32, 16) % 30000
        feed = {"ids": ids, "mask": np.ones_like(ids)}
        self.int8.run(["hidden"], feed)
        start, times = time.monotonic(), 0
        while time.monotonic() - start < 0.5:
            self.int8.run(["hidden"], feed)[0].mean(1)
            times += 1
        return 32 * times / (time.monotonic() - start)

    def cosines(self, program, ours):
        """The mean cosine to the f32 model's embeddings: of our int8, and of onnxruntime's."""
        sentences = os.path.join(FIXTURES, "sentences.txt")
        lines = subprocess.run([program, "run", ours, "--text", sentences, "-q"], capture_output=True, text=True, check=True).stdout
        found = np.array([json.loads(line)["embedding"] for line in lines.splitlines()])
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        mean = lambda x: float((x * self.expected()).sum(1).mean())
        return mean(found), mean(self.embed(self.int8))
