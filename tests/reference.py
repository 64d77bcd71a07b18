#!/usr/bin/env python3
"""Makes reference records for `tests/it/golden.rs` of any models that transformers loads.

    python3 tests/reference.py MODELS OUT [--tokens 40]
    MODELPRESS_GOLDEN=OUT cargo test --test it golden::hidden

MODELS is a folder of model folders. OUT gets a folder for each: links to its files, and `golden.safetensors` with `input_ids` I64
[1, tokens], `hidden_states.N` F32 [1, tokens, hidden] after each block (the last one after the final norm) and, for decoders, `logits`
F32 [1, tokens, vocabulary], computed in float32 from the weights as stored. Where MODELS has a `golden.safetensors` of its own, its
`input_ids` are taken, and the largest difference from its record is printed. Needs torch, transformers and safetensors.
"""

import argparse
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file


def record(folder, input_ids):
    config = transformers.AutoConfig.from_pretrained(folder)
    encoder = config.model_type in ("bert", "roberta", "distilbert")
    kind = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    # The other ways to multiply experts take no odd widths.
    experts = {"experts_implementation": "eager"} if hasattr(config, "num_experts_per_tok") else {}
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **experts).eval()
    if input_ids is None:
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(0, config.vocab_size, (1, arguments.tokens), generator=generator)
        if config.model_type == "roberta":
            # Positions after a padding token within the text are counted otherwise.
            input_ids[input_ids == config.pad_token_id] = config.pad_token_id + 1
    with torch.no_grad():
        out = model(input_ids=input_ids, output_hidden_states=True)
    tensors = {f"hidden_states.{i}": states.contiguous().clone() for i, states in enumerate(out.hidden_states)}
    if not encoder:
        tensors["logits"] = out.logits.contiguous()
    return tensors | {"input_ids": input_ids}


def main():
    for folder in sorted(path.parent for path in arguments.models.glob("*/config.json")):
        target = arguments.out / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name != "golden.safetensors" and not (target / file.name).exists():
                (target / file.name).symlink_to(file.resolve())
        theirs = folder / "golden.safetensors"
        old = load_file(theirs) if theirs.exists() else {}
        new = record(folder, old.get("input_ids"))
        save_file(new, target / "golden.safetensors")
        shared = [name for name in new if name in old and name != "input_ids"]
        apart = max((float((new[name] - old[name]).abs().max()) for name in shared), default=None)
        print(folder.name, "" if apart is None else f"differs from its own record by up to {apart:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=40)
    arguments = parser.parse_args()
    main()
