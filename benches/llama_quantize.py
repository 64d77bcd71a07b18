#!/usr/bin/env python3
"""llama-quantize, by the library that llama-cpp-python brings: the function that the program calls, for where the program is not.

Usage: python llama_quantize.py INPUT.gguf OUTPUT.gguf TYPE [THREADS]: the arguments of llama-quantize. benches/quantize.py takes this file
for LLAMA_QUANTIZE."""
import ctypes
import sys

import llama_cpp.llama_cpp as llama

TYPES = {name.removeprefix("LLAMA_FTYPE_MOSTLY_").lower(): getattr(llama, name) for name in dir(llama) if name.startswith("LLAMA_FTYPE_MOSTLY_")}


@llama.llama_log_callback
def silent(level, text, user):
    pass


llama.llama_log_set(silent, ctypes.c_void_p(0))
llama.llama_backend_init()
params = llama.llama_model_quantize_default_params()
params.ftype = TYPES[sys.argv[3].lower()]
params.nthread = int(sys.argv[4]) if len(sys.argv) > 4 else 0
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
