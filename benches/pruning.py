"""What pruning costs, by method, with and without recovery: mean KL divergence and perplexity of the written file against the
original, and the order of methods at each density. Says at the end which of the bars below hold; ends with 1 if one does not.

Usage: python pruning.py PROGRAM MODEL [--patterns 0.3 0.5 0.7 2:4 4:8] [--tokens 8192]
MODEL is a folder with calib.txt, to calibrate on, and valid.txt, to judge on. Needs nothing but Python."""
import argparse
import json
import os
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("--patterns", nargs="+", default=["0.3", "0.5", "0.7", "2:4", "4:8"])
parser.add_argument("--tokens", default="8192")
a = parser.parse_args()

METHODS = ["magnitude", "wanda", "sparsegpt"]


def run(pattern, method, recover, out):
    command = [a.program, a.model, "-o", out, "--json", "-q", "--accept", "--force", "--prune", pattern]
    command += ["--text", os.path.join(a.model, "valid.txt"), "--check-tokens", a.tokens, "--prune-method", method]
    if recover or method != "magnitude":
        command += ["--calibrate", os.path.join(a.model, "calib.txt")]
    command += ["--recover"] if recover else []
    check = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["check"]
    return check["kl"]["mean"], check["compressed"]["perplexity"], check["original"]["perplexity"]


kl = {}
print("| removed | method | KL | perplexity | KL, recovered | perplexity, recovered |\n|---|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    for pattern in a.patterns:
        for method in METHODS:
            plain = run(pattern, method, False, os.path.join(folder, "o"))
            recovered = run(pattern, method, True, os.path.join(folder, "o"))
            kl[pattern, method] = plain[0], recovered[0]
            cells = f"{plain[0]:.4f} | {plain[1]:.2f} | {recovered[0]:.4f} | {recovered[1]:.2f}"
            print(f"| {pattern} | {method} | {cells} |", flush=True)
print(f"\nThe original's perplexity is {plain[2]:.2f}.\n")
for pattern in a.patterns:
    named = [(kl[pattern, m][i], m + (", recovered" if i else "")) for m in METHODS for i in (0, 1)]
    print(f"{pattern}, best first: " + "; ".join(name for _, name in sorted(named)))

bars = {}
if "0.5" in a.patterns:
    magnitude, wanda, sparsegpt = (kl["0.5", method] for method in METHODS)
    bars["50%: magnitude is worse than wanda and sparsegpt"] = magnitude[0] > max(wanda[0], sparsegpt[0])
    bars["50%: recovery brings magnitude below plain wanda"] = magnitude[1] < wanda[0]
if "2:4" in a.patterns:
    magnitude, wanda, sparsegpt = (kl["2:4", method] for method in METHODS)
    bars["2:4: sparsegpt no worse than wanda, both better than magnitude"] = sparsegpt[0] <= wanda[0] < magnitude[0]
bars["recovery improves every method at every density"] = all(after < before for before, after in kl.values())
print()
for bar, holds in bars.items():
    print(f"{'holds' if holds else 'FAILS'}: {bar}")
sys.exit(not all(bars.values()))
