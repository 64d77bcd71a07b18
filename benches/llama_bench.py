#!/usr/bin/env python3
"""llama-bench, by the library that llama-cpp-python brings, for where the program is not: the calls that the program makes, and of its
JSON what benches/peers.py reads, which takes this file for LLAMA_BENCH.

Usage: python llama_bench.py -m MODEL.gguf [-p 512] [-n 128] [-t 2] [-r 5] [-o json]

As in the program: random tokens; one pass that is not counted; a context as long as a test; prompts in batches of 512; a cache of keys and
values in f16 that is emptied for each repeat."""
import argparse
import ctypes
import json
import random
import statistics
import sys
import time

import llama_cpp.llama_cpp as llama

BATCH = 512

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-m", dest="model", required=True)
parser.add_argument("-p", dest="prompt", type=int, default=512)
parser.add_argument("-n", dest="tokens", type=int, default=128)
parser.add_argument("-t", dest="threads", type=int, default=2)
parser.add_argument("-r", dest="repeat", type=int, default=5)
parser.add_argument("-o", dest="output", choices=["json"], default="json")
a = parser.parse_args()


@llama.llama_log_callback
def silent(level, text, user):
    pass


llama.llama_log_set(silent, ctypes.c_void_p(0))
llama.llama_backend_init()
model = llama.llama_model_load_from_file(a.model.encode(), llama.llama_model_default_params())
if not model:
    sys.exit(f"{a.model}: llama.cpp does not load it")
vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))


def decode(context, count):
    """`count` random tokens through the model, together."""
    tokens = (llama.llama_token * count)(*(random.randrange(vocabulary) for _ in range(count)))
    if llama.llama_decode(context, llama.llama_batch_get_one(tokens, count)):
        sys.exit(f"{a.model}: llama.cpp does not decode it")
    llama.llama_synchronize(context)


def prompt(context, count):
    for first in range(0, count, BATCH):
        decode(context, min(BATCH, count - first))


def generate(context, count):
    for _ in range(count):
        decode(context, 1)


def measure(run, count):
    """Tokens a second of each repeat."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = count, BATCH, BATCH
    params.n_threads = params.n_threads_batch = a.threads
    context = llama.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"{a.model}: llama.cpp makes no context of {count} tokens")
    run(context, count if run is prompt else 1)
    speeds = []
    for _ in range(a.repeat):
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        start = time.perf_counter()
        run(context, count)
        speeds.append(count / (time.perf_counter() - start))
    llama.llama_free(context)
    return speeds


found = []
for run, prompted, generated in [(prompt, a.prompt, 0), (generate, 0, a.tokens)]:
    if prompted + generated:
        speeds = measure(run, prompted + generated)
        spread = statistics.stdev(speeds) if len(speeds) > 1 else 0.0
        found.append({"model_filename": a.model, "n_threads": a.threads, "n_prompt": prompted, "n_gen": generated,
                      "avg_ts": statistics.fmean(speeds), "stddev_ts": spread, "samples_ts": speeds})
print(json.dumps(found, indent=2))
