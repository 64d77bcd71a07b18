"""Prunes a model in every way at some densities and prints how far each is from the original. Needs nothing but Python.

Usage: python prune.py PROGRAM MODEL CALIBRATION.txt TEXT.txt [--patterns 0.3 0.5 2:4 4:8] [--context 256] [--tokens 32768]"""
import argparse
import json
import os
import subprocess
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("calibration")
parser.add_argument("text")
parser.add_argument("--patterns", nargs="+", default=["0.3", "0.5", "0.7", "2:4", "4:8"])
parser.add_argument("--methods", nargs="+", default=["magnitude", "wanda", "sparsegpt"])
parser.add_argument("--context", default="256")
parser.add_argument("--tokens", default="32768")
parser.add_argument("--check-tokens", default="15300")
a = parser.parse_args()

print("| pruned | method | mean KL | perplexity | with --recover: mean KL | perplexity |\n|---|---|---|---|---|---|")
for pattern in a.patterns:
    found = []
    for method in a.methods:
        cells = []
        for recover in [False, True]:
            with tempfile.TemporaryDirectory() as folder:
                command = [a.program, a.model, "--prune", pattern, "--prune-method", method, "--text", a.text, "--context", a.context]
                command += ["--check-tokens", a.check_tokens, "--accept", "--json", "-q", "-o", os.path.join(folder, "out")]
                if recover or method != "magnitude":
                    command += ["--calibrate", a.calibration, "--calibrate-tokens", a.tokens]
                if recover:
                    command += ["--recover"]
                report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            check = report["check"]
            cells += [f"{check['kl']['mean']:.4f}", f"{check['compressed']['perplexity']:.2f}"]
            found.append((check["kl"]["mean"], method + (" + recovery" if recover else "")))
        print(f"| {pattern} | {method} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{pattern}, best first: " + ", ".join(name for _, name in sorted(found)) + "\n", flush=True)
