"""Runs `compress bench` and its peers in turn on the same models, and holds the ratios against what issue "Fast" asks for.

The peers: llama.cpp's llama-bench, for a Llama of 1.1 B random parameters and for kjv-small in f16, Q8_0, Q4_0 and Q4_K_M; and
onnxruntime's dynamic int8 per channel, for all-MiniLM-L6-v2 (its graph is written here with `onnx`, from the safetensors file).

Usage: python peers.py --compress target/release/compress --llama-bench llama.cpp/build/bin/llama-bench --models DIR
       [--minilm DIR] [--repeat 3] [--threads 2] [--prompt 512] [--tokens 32] [--only WORD] [--list]

DIR holds kjv-small/ (config, tokenizer, weights); llama-1b/ is made there if it is missing (benches/make_llama.py: 2.2 GB), and
the compressed files are written to DIR/peers and kept. Needs Python 3.10; for MiniLM also numpy, onnx and onnxruntime
(`python -m venv v && v/bin/pip install numpy onnx onnxruntime`), else that row is left out and said to be.

Where there is no llama-bench, LLAMA_BENCH=benches/llama_bench.py measures the same by the library of llama-cpp-python.
llama.cpp is best built so that it uses what most machines have, and not AMX, which stops with an illegal instruction on some:
  cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \\
        -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON -DGGML_AVX512_VBMI=ON
  cmake --build build --target llama-bench"""
import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--compress", required=True)
parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"))
parser.add_argument("--models", required=True)
parser.add_argument("--minilm", default=os.environ.get("MODELPRESS_MINILM"))
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--tokens", type=int, default=32)
parser.add_argument("--only", action="append", default=[], help="rows whose name has this; may be repeated")
parser.add_argument("--list", action="store_true")
a = parser.parse_args()

# Row, what we run, what the peer runs, what is compared, must, aim; and for decoding the share of the roof, must and aim.
ROWS = [
    ("decode, f16 original", "llama-1b:f16", "llama-1b:f16", "decode", 1.25, None, None, 0.95),
    ("decode, int8", "llama-1b:int8", "llama-1b:q8_0", "decode", 1.3, None, 0.8, 0.95),
    ("decode, int4 (group 128)", "llama-1b:int4", "llama-1b:q4_0", "decode", 1.6, None, 0.75, 0.9),
    ("decode, Q4_0", "llama-1b:q4_0", "llama-1b:q4_0", "decode", 1.6, None, 0.75, 0.9),
    ("decode, Q4_K_M", "llama-1b:q4_k_m", "llama-1b:q4_k_m", "decode", 1.3, None, 0.7, 0.9),
    ("prefill, int8 (W8A8)", "llama-1b:int8", "llama-1b:q8_0", "prefill", 4, 8, None, None),
    ("prefill, Q4_0", "llama-1b:q4_0", "llama-1b:q4_0", "prefill", 3, 6, None, None),
    ("prefill, Q4_K_M", "llama-1b:q4_k_m", "llama-1b:q4_k_m", "prefill", 3, 6, None, None),
    ("prefill, int4 (W4A16)", "llama-1b:int4", "llama-1b:q4_0", "prefill", 3, 6, None, None),
    ("prefill, f16 original", "llama-1b:f16", "llama-1b:f16", "prefill", 3, 6, None, None),
    ("kjv-small decode, f16", "kjv-small:f16", "kjv-small:f16", "decode", 1.2, 2, None, None),
    ("kjv-small decode, Q8_0", "kjv-small:q8_0", "kjv-small:q8_0", "decode", 1.2, 2, None, None),
    ("kjv-small decode, Q4_0", "kjv-small:q4_0", "kjv-small:q4_0", "decode", 1.2, 2, None, None),
    ("kjv-small decode, Q4_K_M", "kjv-small:q4_k_m", "kjv-small:q4_k_m", "decode", 1.2, 2, None, None),
    ("MiniLM, 32 sentences, int8", "minilm:int8", "minilm:onnx", "encode", 1.5, 3, None, None),
    ("check of f16 against int8, 2048 tokens", "llama-1b:int8", None, "check", 40, 15, None, None),
    ("prefill int8, 2 threads against 1", "llama-1b:int8", None, "scaling", 1.7, 1.95, None, None),
]
rows = [row for row in ROWS if not a.only or any(word in row[0] for word in a.only)]
if a.list:
    print("\n".join(row[0] for row in rows))
    sys.exit()

peers = os.path.join(a.models, "peers")
os.makedirs(peers, exist_ok=True)


def output(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def folder(model):
    """The original of a model."""
    if model == "minilm":
        return a.minilm
    path = os.path.join(a.models, model)
    if model == "llama-1b":
        if not os.path.exists(os.path.join(path, "model.safetensors")):
            output([sys.executable, os.path.join(HERE, "make_llama.py"), path])
        # Any tokenizer will do: nobody reads what random weights say. llama.cpp wants one in the file.
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            if not os.path.exists(os.path.join(path, name)):
                shutil.copy(os.path.join(a.models, "kjv-small", name), path)
    return path


def written(name, gguf):
    """The file or folder of a model in a scheme, made if it is missing."""
    model, scheme = name.split(":")
    if scheme == "f16" and not gguf and model == "llama-1b":
        return folder(model)
    path = os.path.join(peers, f"{model}-{scheme}" + (".gguf" if gguf else ""))
    if not os.path.exists(path):
        output([a.compress, folder(model), "--scheme", scheme, "-o", path, "--no-check", "-q"])
    return path


def ours(name, what, threads=None):
    """Numbers of one round, by `compress bench`."""
    gguf = name.split(":")[1] not in ("int8", "int4") and not (name == "llama-1b:f16")
    prompt = {"decode": "1", "encode": "16"}.get(what, str(a.prompt))
    found = json.loads(output([
        a.compress, "bench", written(name, gguf), "--repeat", "1", "--threads", str(threads or a.threads),
        "--prompt-tokens", prompt, "--tokens", str(a.tokens if what == "decode" else 1), "--json", "-q",
    ]))
    model = found["models"][0]
    machines.append(found["machine"])
    if what == "encode":
        return model["encode"]["sentences_per_second"], None
    part = model["prefill" if what == "scaling" else what]
    roof = model["decode"]["bytes_per_token"] / (found["machine"]["read_bandwidth_gb_s"] * 1e9)
    return part["tokens_per_second"], roof


def llama(name, what):
    """Tokens a second, by llama-bench."""
    counts = ["-p", "0", "-n", str(a.tokens)] if what == "decode" else ["-p", str(a.prompt), "-n", "0"]
    found = json.loads(output([a.llama_bench, "-m", written(name, True), *counts, "-r", "1", "-t", str(a.threads), "-o", "json"]))
    return found[0]["avg_ts"]


def check():
    """Seconds for `compress check` of the original against int8."""
    start = time.monotonic()
    output([a.compress, "check", folder("llama-1b"), written("llama-1b:int8", False), "--check-tokens", "2048",
            "--threads", str(a.threads), "--max-kl", "100", "-q"])
    return time.monotonic() - start


machines, minilm = [], None
if any(row[3] == "encode" for row in rows):
    try:
        from minilm_onnx import Minilm

        minilm = Minilm(a.minilm, peers, a.threads) if a.minilm else None
    except ImportError as error:
        print(f"MiniLM is left out: {error}", file=sys.stderr)
    if minilm is None:
        rows = [row for row in rows if row[3] != "encode"]
if not a.llama_bench:
    print("without --llama-bench only rows without that peer", file=sys.stderr)
    rows = [row for row in rows if row[3] in ("encode", "check", "scaling")]

# Everything is written before anything is timed; then all rows in turn, so that a machine that changes changes for all.
for _, our, peer, what, *_ in rows:
    ours_gguf = our.split(":")[1] not in ("int8", "int4") and our != "llama-1b:f16"
    written(our, ours_gguf)
    if peer and what != "encode":
        written(peer, True)
found = {row[0]: [] for row in rows}
for turn in range(a.repeat):
    for name, our, peer, what, *_ in rows:
        print(f"{turn + 1}/{a.repeat} {name}", file=sys.stderr, flush=True)
        if what == "check":
            found[name].append((check(), None, None))
        elif what == "scaling":
            two, one = ours(our, what, 2)[0], ours(our, what, 1)[0]
            found[name].append((two, None, one))
        elif what == "encode":
            found[name].append((ours(our, what)[0], None, minilm.sentences_per_second()))
        else:
            theirs = llama(peer, what)
            speed, roof = ours(our, what)
            found[name].append((speed, roof, theirs))

bandwidth = max((m["read_bandwidth_gb_s"] for m in machines), default=0)
processor = machines[0]["processor"] if machines else platform.processor()
print(f"{datetime.date.today()}, {processor}, {os.cpu_count()} cores, {a.threads} threads, reads {bandwidth:.1f} GB/s, "
      f"median of {a.repeat}\n`python3 benches/peers.py {shlex.join(sys.argv[1:])}`\n")
print("| | ours | peer | ratio (least to most) | of the roof | must | aim | |\n|---|---|---|---|---|---|---|---|")
for name, our, peer, what, must, aim, roof_must, roof_aim in rows:
    runs = found[name]
    speed = statistics.median(run[0] for run in runs)
    if what == "check":
        verdict = "aim met" if speed < aim else "met" if speed < must else "NOT MET"
        print(f"| {name} | {speed:.1f} s | | | | {must} s | {aim} s | {verdict} |")
        continue
    ratios = [run[0] / run[2] for run in runs]
    ratio, theirs = statistics.median(ratios), statistics.median(run[2] for run in runs)
    # The roof is the best that any run saw.
    share = None
    if what == "decode" and our.startswith("llama-1b"):
        share = speed * statistics.median(run[1] for run in runs)
        share *= statistics.median(m["read_bandwidth_gb_s"] for m in machines) / bandwidth
    met = ratio >= must and (roof_must is None or share >= roof_must)
    aimed = (aim is None or ratio >= aim) and (roof_aim is None or share >= roof_aim)
    extra = ""
    if what == "encode":
        mine, other = minilm.cosines(a.compress, written(our, False))
        met = met and mine > other
        extra = f"; cosine {mine:.4f} against {other:.4f}"
    verdict = ("aim met" if met and aimed else "met" if met else "NOT MET") + extra
    asked = f"{must} ×" + (f", {roof_must} of the roof" if roof_must else "")
    hoped = f"{aim} ×" if aim else f"{roof_aim} of the roof"
    part = f"{share:.2f}" if share is not None else ""
    print(f"| {name} | {speed:.1f} | {theirs:.1f} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {part} | {asked} | {hoped} | {verdict} |")
if any(m["busy"] for m in machines):
    print(f"\nThe machine was busy in {sum(m['busy'] for m in machines)} of {len(machines)} measurements: only the ratios say something.")
