"""Measures `compress MODEL --int8 --no-check` against `cp` and `sync` of the same file, in turn, and the most anonymous
memory that it has in use. Needs nothing but Python, on Linux.

Usage: python compress.py PROGRAM MODEL.safetensors [--repeat 5] [--scheme int8]"""
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
    copy, out = os.path.join(folder, "copy"), os.path.join(folder, "out.safetensors")
    subprocess.run(["cat", a.model], stdout=subprocess.DEVNULL, check=True)
    rows = []
    for _ in range(a.repeat):
        copying, _ = timed(["sh", "-c", f"cp '{a.model}' '{copy}' && sync"])
        os.remove(copy)
        ours, most = timed([a.program, a.model, "--scheme", a.scheme, "--no-check", "-q", "-o", out])
        written = os.path.getsize(out)
        os.remove(out)
        rows.append((copying, ours, most))
        print(f"cp + sync {copying:.2f} s, compress {ours:.2f} s, ratio {ours / copying:.2f}, anonymous {most / 1024:.0f} MiB", flush=True)
    ratios = [ours / copying for copying, ours, _ in rows]
    size = os.path.getsize(a.model)
    print(f"{size} bytes in, {written} out, {os.cpu_count()} cores")
    print(f"median: cp + sync {statistics.median(r[0] for r in rows):.2f} s, compress {statistics.median(r[1] for r in rows):.2f} s, "
          f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
          f"most anonymous memory {max(r[2] for r in rows) / 1024:.0f} MiB")
