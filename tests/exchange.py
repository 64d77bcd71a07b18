"""Holds that numpy and torch read what the program writes. Usage: python tests/exchange.py PROGRAM, in the repository.

Needs numpy, torch and safetensors."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

program, chain = sys.argv[1], "fixtures/exchange/chain.safetensors"
nano = "fixtures/kjv-nano"


def write(model, flag, path):
    subprocess.run([program, model, flag, "-q", "--no-check", "-o", path], check=True)


with tempfile.TemporaryDirectory() as folder:
    for model in [chain, nano]:
        for flag in ["--f16", "--bf16", "--int8", "--int4", "--scheme=fp8"]:
            out = Path(folder) / f"{Path(model).stem}{flag.replace('=', '-')}"
            out.mkdir()
            write(model, flag, out / "x.pt")
            expected = out / ("x.safetensors" if model == chain else "x")
            write(model, flag, expected)
            expected = load_file(expected if model == chain else expected / "model.safetensors")
            for options in [{}, {"mmap": True}]:
                found = torch.load(out / "x.pt", weights_only=True, **options)
                assert found.keys() == expected.keys()
                for name, tensor in expected.items():
                    assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
                    assert found[name].is_contiguous() and torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
            if flag == "--scheme=fp8":
                continue
            write(model, flag, out / "x.npz")
            found = np.load(out / "x.npz", allow_pickle=False)
            assert set(found.files) == expected.keys()
            for name, tensor in expected.items():
                array = found[name]
                if tensor.dtype == torch.bfloat16:
                    assert array.dtype == "V2", (name, array.dtype)
                    array, tensor = array.view(np.int16), tensor.view(torch.int16)
                assert np.array_equal(array, tensor.numpy()), name
print("numpy and torch read what was written")
