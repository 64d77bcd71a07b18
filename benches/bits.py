"""Chooses types within the sizes of a model's files of one scheme and prints how far both are from the original. Needs nothing but Python.

Usage: python bits.py PROGRAM MODEL CALIBRATION.txt TEXT.txt [--schemes q4_0 q3_k_m] [--method best] [--bytes N …] [--tokens 49152]"""
import argparse
import json
import os
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("calibration")
parser.add_argument("text")
parser.add_argument("--schemes", nargs="*", default=["q4_0", "q3_k_m"])
parser.add_argument("--bytes", nargs="*", default=[], help="other sizes, such as those of another program's files")
parser.add_argument("--method", default="best")
parser.add_argument("--context", default="256")
parser.add_argument("--tokens", default="49152")
parser.add_argument("--check-tokens", default="15300")
a = parser.parse_args()


def run(output, flags):
    command = [a.program, a.model, "--text", a.text, "--context", a.context, "--check-tokens", a.check_tokens, "--score", "second-half"]
    command += ["--calibrate", a.calibration, "--calibrate-tokens", a.tokens, "--method", a.method, "--accept", "--json", "-q", "-o", output]
    started = time.time()
    report = json.loads(subprocess.run(command + flags, check=True, capture_output=True).stdout)
    return report["check"]["kl"]["mean"], os.path.getsize(output), time.time() - started


print("| size | types | bytes | mean KL | seconds |\n|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    sizes = [(size, int(size)) for size in a.bytes]
    for scheme in a.schemes:
        kl, size, seconds = run(os.path.join(folder, "one.gguf"), ["--scheme", scheme, "--force"])
        print(f"| {scheme} | {scheme} | {size} | {kl:.6f} | {seconds:.0f} |", flush=True)
        sizes.append((scheme, size))
    for name, size in sizes:
        kl, found, seconds = run(os.path.join(folder, "chosen.gguf"), ["--target-size", str(size), "--force"])
        print(f"| {name} | chosen | {found} | {kl:.6f} | {seconds:.0f} |", flush=True)
