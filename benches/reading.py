"""Measures what reading the same weights costs in each format: `compress check MODEL MODEL`, which compares every number with itself
and writes nothing, of the safetensors file and of its conversions, in turns, every other one backwards, and the most anonymous
memory in use. Needs nothing but Python, on Linux; for onnx (constants in a file beside the graph) also the package onnx.

Usage: python reading.py PROGRAM MODEL.safetensors [--formats npz pt onnx] [--repeat 5]"""
import argparse
import os
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("--formats", nargs="+", default=["npz", "pt"])
parser.add_argument("--repeat", type=int, default=5)
a = parser.parse_args()


def timed(command):
    """Seconds, and the most kilobytes of anonymous memory seen every five milliseconds."""
    os.sync()
    start, most = time.monotonic(), 0
    child = subprocess.Popen(command)
    while child.poll() is None:
        try:
            lines = open(f"/proc/{child.pid}/status").readlines()
            most = max([most] + [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")])
        except OSError:
            pass
        time.sleep(0.005)
    assert child.returncode == 0, command
    return time.monotonic() - start, most


with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.model))) as folder:
    # Alone in a folder, without a config, it has weights to compare and nothing to run.
    models = {"safetensors": os.path.join(folder, "model.safetensors")}
    os.link(a.model, models["safetensors"])
    for extension in a.formats:
        models[extension] = os.path.join(folder, "model." + extension)
        if extension == "onnx":
            import external_onnx

            external_onnx.make(a.model, models[extension])
            subprocess.run(["cat", models[extension] + ".data"], stdout=subprocess.DEVNULL, check=True)
            continue
        subprocess.run([a.program, "convert", a.model, models[extension], "-q"], check=True)
    seconds, memory = {name: [] for name in models}, dict.fromkeys(models, 0)
    for model in models.values():
        subprocess.run(["cat", model], stdout=subprocess.DEVNULL, check=True)
    for turn in range(a.repeat):
        for name, model in list(models.items())[:: -1 if turn % 2 else 1]:
            took, most = timed([a.program, "check", model, model, "-q"])
            seconds[name].append(took)
            memory[name] = max(memory[name], most)
        print(", ".join(f"{name} {took[-1]:.2f} s" for name, took in seconds.items()), flush=True)

print(f"{os.path.getsize(a.model)} bytes in, {os.cpu_count()} cores; medians, and the ratio of each turn to safetensors:")
for name, took in seconds.items():
    ratios = [mine / base for mine, base in zip(took, seconds["safetensors"])]
    print(
        f"{name}: {statistics.median(took):.2f} s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), fastest {min(took):.2f} s, anonymous {memory[name] // 1024} MiB"
    )
