"""What `sftrun plan` estimates, beside what a training process really takes at most, on the CPU.

    python benchmarks/plan.py [--steps N]

Each case, of two sizes of models with random weights, full tuning and LoRA, and two batch sizes, is estimated and then
trained for a few steps on rows of one length, in processes of their own. Prints a line a case: parameters, estimated
and measured peak (the largest resident size of the worker, as the system counts it), and their ratio.
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

SIZES = {"10M": (320, 6), "60M": (832, 6)}  # hidden size, layers
BATCHES = (2, 8)
WORDS, ROWS, LENGTH = 8192, 64, 384
MODES = ("full", "lora")


def model(folder: Path, hidden: int, layers: int) -> None:
    """A llama with random weights and the tokenizer of the embedded model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sftrun import tiny

    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "vocab_size": WORDS}
    config = LlamaConfig(**sizes, num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, eos_token_id=2)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.folder() / name, folder / name)


def recipe(folder: Path, size: str, mode: str, batch: int, steps: int) -> Path:
    """A recipe of one case."""
    rows = [{"role": "user", "content": "say x"}, {"role": "assistant", "content": "x" * LENGTH}]
    (folder / "rows.jsonl").write_text((json.dumps({"messages": rows}) + "\n") * ROWS)
    keys = {
        "model": {"name": str(folder / size), "max_seq_len": 2 * LENGTH},
        "source": {"use": "jsonl", "with": {"path": "rows.jsonl", "val_share": 0}},
        "tuning": {"mode": mode},
        "train": {"max_steps": steps, "batch_size": batch, "eval_strategy": "no", "save_strategy": "no"},
    }
    file = folder / f"{size}-{mode}-{batch}.yaml"
    file.write_text(json.dumps(keys))
    return file


def case(file: Path) -> dict[str, Any]:
    """Estimates one recipe, trains it, and compares; this process has had no other children that large."""
    import sftrun
    from sftrun.planning import plan

    planned = plan(file)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sftrun.run(file, out=file.with_suffix(""))
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most > before, "the worker that estimates took more than the one that trains"
    return {"parameters": planned["parameters"], "estimated": planned["peak"], "measured": most * 1024}


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(case(given.case)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for size, (hidden, layers) in SIZES.items():
            model(folder / size, hidden, layers)
        for size, mode, batch in [(size, mode, batch) for size in SIZES for mode in MODES for batch in BATCHES]:
            file = recipe(folder, size, mode, batch, given.steps)
            command = [sys.executable, __file__, "--case", str(file)]
            cache = {**os.environ, "SFTRUN_CACHE": str(folder / "cache")}
            said = subprocess.run(command, capture_output=True, text=True, check=True, env=cache).stdout
            show(f"{size} {mode} batch {batch}", json.loads(said.splitlines()[-1]))


def show(name: str, found: dict[str, Any]) -> None:
    """One line."""
    estimated, measured, parameters = found["estimated"], found["measured"], found["parameters"]
    counts = f"{parameters['trained'] / 1e6:7.2f} M trained {parameters['frozen'] / 1e6:7.2f} M frozen"
    sizes = f"estimated {estimated / 1e6:7.0f} MB  measured {measured / 1e6:7.0f} MB"
    print(f"{name:18} {counts}  {sizes}  ratio {estimated / measured:.3f}", flush=True)


if __name__ == "__main__":
    main()
