"""Measures `compress MODEL --int8 --no-check`, or `compress convert` without a change of dtype with `--no-check` and with its check,
against `cp` and `sync` of the same file, and the most anonymous memory in use. All take turns, and every other turn goes
backwards, so that nobody always writes after the same neighbour. Needs nothing but Python, on Linux. MODEL.onnx with its constants in
MODEL.onnx.data (`external_onnx.py` makes one) is converted to the same.

Usage: python compress.py PROGRAM MODEL.safetensors|MODEL.onnx [--repeat 5] [--scheme int8 | --convert gguf]"""
import argparse
import os
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("--repeat", type=int, default=5)
parser.add_argument("--scheme", default="int8")
parser.add_argument("--convert", metavar="EXTENSION", help="convert to this format instead")
a = parser.parse_args()


def anonymous(pid):
    """Kilobytes of anonymous memory of a process now, 0 when it is gone."""
    try:
        for line in open(f"/proc/{pid}/status"):
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def timed(command):
    """Seconds, and the most kilobytes of anonymous memory seen every five milliseconds."""
    os.sync()
    start, most = time.monotonic(), 0
    child = subprocess.Popen(command)
    while child.poll() is None:
        most = max(most, anonymous(child.pid))
        time.sleep(0.005)
    assert child.returncode == 0, command
    return time.monotonic() - start, most


with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(a.model))) as folder:
    out = os.path.join(folder, "out." + (a.convert or "safetensors"))
    beside = [path for path in [a.model + ".data"] if os.path.exists(path)]
    written_files = [out] + [out + ".data" for _ in beside]
    copies = " && ".join(f"cp '{path}' '{to}'" for path, to in zip([a.model] + beside, written_files))
    commands = {"cp + sync": ["sh", "-c", f"{copies} && sync"]}
    if a.convert:
        commands["convert --no-check"] = [a.program, "convert", a.model, out, "--no-check", "-q"]
        commands["convert, checked"] = [a.program, "convert", a.model, out, "-q"]
    else:
        commands[a.scheme] = [a.program, a.model, "--scheme", a.scheme, "--no-check", "-q", "-o", out]
    subprocess.run(["cat", a.model] + beside, stdout=subprocess.DEVNULL, check=True)
    seconds, memory, written = {name: [] for name in commands}, dict.fromkeys(commands, 0), {}
    for turn in range(a.repeat):
        for name, command in list(commands.items())[:: -1 if turn % 2 else 1]:
            took, most = timed(command)
            seconds[name].append(took)
            memory[name] = max(memory[name], most)
            written[name] = sum(map(os.path.getsize, written_files))
            for path in written_files:
                os.remove(path)
        print(", ".join(f"{name} {seconds[name][-1]:.2f} s" for name in commands), flush=True)
    copying = seconds["cp + sync"]
    print(f"{sum(map(os.path.getsize, [a.model] + beside))} bytes in, {os.cpu_count()} cores; medians, and the ratio of each turn to cp + sync:")
    for name in commands:
        ratios = [ours / cp for ours, cp in zip(seconds[name], copying)]
        print(f"{name}: {statistics.median(seconds[name]):.2f} s, ratio {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f}), {written[name]} bytes written, anonymous {memory[name] / 1024:.0f} MiB")
