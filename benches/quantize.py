"""Compresses a model with `compress` and with llama.cpp's llama-quantize in turn, on two threads, and compares times and
bytes. Both start from f16: ours from a Hugging Face folder, theirs from the GGUF that ours makes of it first. Both write
their output anew; ours syncs it to the disk, theirs leaves that to the system, so a `sync` before each run keeps one from
paying for the other. Needs nothing but Python, on Linux.

Usage: python quantize.py COMPRESS LLAMA_QUANTIZE MODEL_FOLDER [--schemes q8_0 q4_k_m] [--repeat 3] [--threads 2]"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from gguf_tensors import tensors  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("compress")
parser.add_argument("peer")
parser.add_argument("model")
parser.add_argument("--schemes", nargs="+", default=["q8_0", "q4_k_m"])
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
a = parser.parse_args()


def timed(command):
    os.sync()
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def differences(ours, theirs):
    """Names of tensors that are not the same in name, type, shape and bytes."""
    (ours_at, ours), (theirs_at, theirs) = tensors(ours), tensors(theirs)
    wrong = sorted(set(ours) ^ set(theirs))
    for name in set(ours) & set(theirs):
        (dtype, shape, start, length), other = ours[name], theirs[name]
        if (dtype, shape, length) != (other[0], other[1], other[3]):
            wrong.append(name)
        elif ours_at[start : start + length] != theirs_at[other[2] : other[2] + length]:
            wrong.append(name)
    return wrong, len(ours)


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.model))) as folder:
    f16, ours, theirs = (os.path.join(folder, name) for name in ("f16.gguf", "ours.gguf", "theirs.gguf"))
    subprocess.run([a.compress, a.model, "--scheme", "f16", "--no-check", "-q", "-o", f16], check=True)
    for scheme in a.schemes:
        rows = []
        for turn in range(a.repeat):
            for path in (ours, theirs):
                if os.path.exists(path):
                    os.remove(path)
            t = timed([a.peer, f16, theirs, scheme.upper(), str(a.threads)])
            o = timed([a.compress, a.model, "--scheme", scheme, "--threads", str(a.threads), "--no-check", "-q", "-o", ours])
            rows.append((t, o, t / o))
            print(f"{scheme}: llama-quantize {t:.2f} s, compress {o:.2f} s, ratio {t / o:.2f}", flush=True)
        wrong, count = differences(ours, theirs)
        same = f"{count} tensors, all the same bytes" if not wrong else f"DIFFERENT: {', '.join(wrong[:5])}"
        peer, us, ratio = (spread([row[i] for row in rows]) for i in range(3))
        print(f"| {scheme} | {peer} | {us} | {ratio} | {same} |", flush=True)
