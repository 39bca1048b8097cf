"""Compares the estimate of `sftrun plan` with the peak memory of a training process on the CPU.

    python benchmarks/plan.py [--steps N] [--others | --shared] [--only WORD]

The cases are two model sizes with random weights, full tuning and LoRA, and two batch sizes. Each case is estimated,
and then trained for a few steps on rows of one length, in its own process. `--others` runs more cases: a larger
vocabulary, longer rows, more layers, checkpointing, packing, a base in 4 bits. `--shared` runs two processes that share
the model, and takes the larger peak. Prints a line for each case: parameters, estimated and measured peak (the largest
resident size of the worker), and their ratio.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"10M": (320, 6, 8192), "60M": (832, 6, 8192)}  # hidden size, layers, vocabulary
BATCHES = (2, 8)
ROWS, LENGTH = 64, 384
MODES = ("full", "lora")
Case = tuple[str, int, dict[str, Any]]  # size, length of rows, what the recipe has
CASES: dict[str, Case] = {
    f"{size} {mode} batch {batch}": (size, LENGTH, {"tuning": {"mode": mode}, "train": {"batch_size": batch}})
    for size in SIZES
    for mode in MODES
    for batch in BATCHES
}
OTHER_SIZES = {"32k": (320, 6, 32000), "deep": (256, 16, 4096)}
FULL, LORA = {"mode": "full"}, {"mode": "lora", "lora": {"dropout": 0.1}}
OTHERS: dict[str, Case] = {
    "vocabulary 32k, full": ("32k", LENGTH, {"tuning": FULL, "train": {"batch_size": 4}}),
    "vocabulary 32k, lora": ("32k", LENGTH, {"tuning": LORA, "train": {"batch_size": 4}}),
    "checkpointing, full": (
        "10M",
        LENGTH,
        {"tuning": FULL, "train": {"batch_size": 8, "gradient_checkpointing": True}},
    ),
    "long rows, full": ("10M", 4 * LENGTH, {"tuning": FULL, "train": {"batch_size": 2}}),
    "packed, lora": ("10M", 96, {"tuning": LORA, "train": {"batch_size": 4}, "packing": {"strategy": "best-fit"}}),
    "16 layers, lora": ("deep", LENGTH, {"tuning": LORA, "train": {"batch_size": 4}}),
    "16 layers, summed": ("deep", LENGTH, {"tuning": FULL, "train": {"batch_size": 2, "grad_accum": 4}}),
    "4 bits": ("60M", LENGTH, {"tuning": {"mode": "qlora"}, "backend": "bnb", "train": {"batch_size": 2}}),
}
STRATEGIES = {
    "fsdp": {"strategy": "fsdp"},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}
SHARED: dict[str, Case] = {
    f"60M {mode} {name}": (
        "60M",
        LENGTH,
        {"tuning": {"mode": mode}, "train": {"batch_size": 2}, "launch": {"processes": 2, **launch}},
    )
    for name, launch in STRATEGIES.items()
    for mode in MODES
}


def model(folder: Path, hidden: int, layers: int, words: int) -> None:
    """Saves a llama with random weights and the tokenizer of the embedded model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sftrun import tiny

    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "vocab_size": words}
    config = LlamaConfig(**sizes, num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, eos_token_id=2)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.folder() / name, folder / name)


def recipe(folder: Path, file: str, case: Case, steps: int) -> Path:
    """Writes the recipe of a case."""
    size, length, keys = case
    rows = [{"role": "user", "content": "say x"}, {"role": "assistant", "content": "x" * length}]
    (folder / f"rows-{length}.jsonl").write_text((json.dumps({"messages": rows}) + "\n") * ROWS)
    train = {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no", **keys["train"]}
    always = {
        "model": {"name": str(folder / size), "max_seq_len": max(2 * length, 2 * LENGTH)},
        "source": {"use": "jsonl", "with": {"path": f"rows-{length}.jsonl", "val_share": 0}},
    }
    (folder / file).write_text(json.dumps({**keys, **always, "train": train}))
    return folder / file


def case(file: Path) -> dict[str, Any]:
    """Estimates a recipe and trains it; this process must have had no larger children before."""
    import sftrun
    from sftrun.tools.plan import plan

    planned = plan(file)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sftrun.run(file, out=file.with_suffix(""))
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most > before, "the estimating worker took more memory than the training worker"
    return {"parameters": planned["parameters"], "estimated": planned["peak"], "measured": most * 1024}


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--others", action="store_true", help="cases that the estimate was not fitted to")
    parser.add_argument("--shared", action="store_true", help="two processes that share the model")
    parser.add_argument("--only", default="", help="cases whose name contains this word")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(arguments.case)))
        return
    cases = OTHERS if arguments.others else SHARED if arguments.shared else CASES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = [(name, each) for name, each in cases.items() if arguments.only in name]
        for size, sizes in {**SIZES, **OTHER_SIZES}.items():
            if size in {each[0] for _, each in wanted}:
                model(folder / size, *sizes)
        for number, (name, each) in enumerate(wanted):
            file = recipe(folder, f"case-{number}.yaml", each, arguments.steps)
            command = [sys.executable, __file__, "--case", str(file)]
            cache = {**os.environ, "SFTRUN_CACHE": str(folder / "cache")}
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=cache).stdout
            show(name, json.loads(output.splitlines()[-1]))


def show(name: str, result: dict[str, Any]) -> None:
    """Prints the line of a case."""
    estimated, measured, parameters = result["estimated"], result["measured"], result["parameters"]
    counts = f"{parameters['trained'] / 1e6:7.2f} M trained {parameters['frozen'] / 1e6:7.2f} M frozen"
    sizes = f"estimated {estimated / 1e6:7.0f} MB  measured {measured / 1e6:7.0f} MB"
    print(f"{name:21} {counts}  {sizes}  ratio {estimated / measured:.3f}", flush=True)


if __name__ == "__main__":
    main()
