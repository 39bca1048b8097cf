"""Training on one GPU: tokens a second, TFLOP/s, MFU and peak memory of sftrun, next to trl with its defaults.

    python benchmarks/gpu.py [--case NAME] [--ways NAMES] [--rounds N] [--minutes N] [--out FILE] [--set KEY=VALUE]…
    python benchmarks/gpu.py --plan

Cases: `llama-8b-lora`, the shape of Llama 3 8B with LoRA (r 16, all linear layers) in bf16 on rows that fill packs of
4,096 tokens; and `qwen-0.5b-full`, the shape of Qwen2.5 0.5B in full tuning on packed rows with the lengths of short
chats. Weights and text are random, and the tokenizer is the embedded one: nothing is downloaded. The ways take turns,
each in its own process: `sftrun`; `trl`, SFTTrainer with its defaults (checkpointing, padding, no packing) and about
the same rows a step, with smaller micro-batches if memory runs out; `trl-plain`, the same without checkpointing; and
`unsloth` through sftrun, if it and sftrun-unsloth are installed (its model is written to disk first). Every step is
logged. Each way sees the rows twice, and the second pass is measured. `--set train.batch_size=2` changes sftrun's
recipe. A failed way is recorded, and the others continue. FILE is written after each way; rounds of an existing FILE
stay, and new ones are added. With `--minutes` nothing starts that would not end in time, so several short calls add up.
`--plan` compares the estimate of `sftrun plan` with torch's peak memory, for both shapes with two settings each.
`--small` runs tiny shapes, also on a CPU.

`mfu` is FLOP/s over the dense bf16 peak of the GPU's data sheet. FLOPs are those that the training needs; padding and
recomputed activations do not count. `tflops_by_parameters` uses the common estimate of 4 FLOPs for each token and
parameter of a frozen base; see `_shapes.flops`.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _shapes
import _ways

PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "RTX 4090": 165}
PLANS: list[tuple[str, dict[str, Any]]] = [
    ("llama-8b-lora", {}),
    ("llama-8b-lora", {"batch_size": 4, "gradient_checkpointing": True}),
    ("qwen-0.5b-full", {}),
    ("qwen-0.5b-full", {"batch_size": 16, "gradient_checkpointing": True}),
]
OUT_OF_MEMORY = "out of memory"


def sftrun(folder: Path, name: str) -> dict[str, Any]:
    """Trains with sftrun's worker; the base is built in place, not read from a disk."""
    from sftrun.training.model import load

    load.load_base = lambda *_, **__: _shapes.build_model(folder, name)
    return _ways.sftrun(folder)


def unsloth(folder: Path, name: str) -> dict[str, Any]:
    """Trains the same recipe with the backend unsloth, which pads."""
    import torch

    _shapes.build_model(folder, name).save_pretrained(folder / "model")
    torch.cuda.empty_cache()
    recipe = json.loads((folder / "recipe.yaml").read_text())
    recipe["packing"], recipe["backend"] = {"strategy": "none"}, "unsloth"
    recipe["train"]["batch_size"] = _shapes.CASES[name]["trl_batch"]
    other = folder / "unsloth"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    (other / "recipe.yaml").write_text(json.dumps(recipe))
    shutil.copytree(folder / "prepared-run", other / "prepared-run")
    return _ways.sftrun(other)


def trl(folder: Path, name: str, checkpointing: bool, batch: int, steps: int) -> dict[str, Any]:
    """Trains with trl's trainer, with a micro-batch of `batch` rows and `steps` of gradient accumulation."""
    import peft
    import torch

    more: dict[str, Any] = {"learning_rate": 1e-5}
    if _shapes.CASES[name]["mode"] == "lora":
        adapter = {"r": _shapes.RANK, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        more = {"learning_rate": 2e-4, "peft_config": peft.LoraConfig(**adapter)}
    return _ways.trl(
        folder, _shapes.build_model(folder, name), bf16=torch.cuda.is_available(), gradient_checkpointing=checkpointing,
        per_device_train_batch_size=batch, gradient_accumulation_steps=steps, logging_steps=1, **more,
    )  # fmt: skip


def estimate_peak(folder: Path) -> dict[str, Any]:
    """Returns the peak that `sftrun plan` estimates for torch's allocator, without the libraries."""
    from sftrun.memory import batches
    from sftrun.training.memory import estimate

    recipe = _ways.load_recipe(folder)
    rows = batches.read_row_lengths(folder / "prepared-run" / "prepared", "train", packed=True)
    moments = estimate.estimate(recipe, batches.largest_training_batch(recipe, rows), None).memory.values()
    return {"estimated_mb": max(sum(each.values()) - each["libraries"] for each in moments) // 2**20}


def one(way: str, folder: Path, name: str, batch: int, steps: int) -> dict[str, Any]:
    """Runs a way in this process; returns its times and its peak memory on the device."""
    import torch

    if way == "plan":
        return estimate_peak(folder)
    ways = {
        "sftrun": lambda: sftrun(folder, name),
        "trl": lambda: trl(folder, name, True, batch, steps),
        "trl-plain": lambda: trl(folder, name, False, batch, steps),
        "unsloth": lambda: unsloth(folder, name),
    }
    result = _ways.measure(ways[way])
    if torch.cuda.is_available():
        result |= {"gpu_mb": torch.cuda.max_memory_allocated() // 2**20, "device": torch.cuda.get_device_name()}
        result["reserved_mb"] = torch.cuda.max_memory_reserved() // 2**20
    return result


def try_way(way: str, folder: Path, name: str, batch: int) -> dict[str, Any]:
    """Runs a way in its own process; splits trl's batch if memory runs out, and returns the error of a failure."""
    for steps in (2**power for power in range(batch.bit_length())):
        more = ("--case", name, "--batch", str(batch // steps), "--steps", str(steps))
        try:
            return {**_ways.measure_in_process(__file__, way, folder, *more), "split": steps}
        except SystemExit as error:
            failed = {"failed": str(error)[-1500:]}
            if not way.startswith("trl") or OUT_OF_MEMORY not in str(error):
                break
    return failed


def rates(result: dict[str, Any], needed: dict[str, float], peak: float | None) -> dict[str, Any]:
    """Returns tokens, trained tokens and TFLOP a second, MFU and memory of a way."""
    if "failed" in result:
        return {}
    per_second = {key: needed[key] / result["seconds"] for key in needed}
    tflops = {key: round(per_second[key] / 1e12, 3) for key in needed if "flop" in key}
    return {
        "tokens_per_s": round(per_second["tokens"]),
        "trained_per_s": round(per_second["trained"]),
        "tflops": tflops["flop"],
        "tflops_by_parameters": tflops["flop_by_parameters"],
        "mfu": round(tflops["flop"] / peak, 3) if peak else None,
        "gpu_mb": result.get("gpu_mb"),
        "reserved_mb": result.get("reserved_mb"),
        "split": result["split"],
    }


def summarise(rounds: list[dict[str, Any]], needed: dict[str, float], peak: float | None) -> dict[str, Any]:
    """Returns medians over the complete rounds of each way."""
    medians: dict[str, Any] = {}
    device = "CPU"
    for way in dict.fromkeys(way for each in rounds for way in each):
        ended = [each[way] for each in rounds if "failed" not in each.get(way, {"failed": "not begun"})]
        device = next((each["device"] for each in ended if "device" in each), device)
        known = peak or next((value for key, value in PEAKS.items() if key in device), None)
        values = [rates(each, needed, known) for each in ended]
        medians[way] = {
            key: statistics.median(each[key] for each in values) if values[0][key] is not None else None
            for key in (values[0] if values else ())
        } or {"failed": next(each[way]["failed"].strip().splitlines()[-1] for each in rounds if way in each)}
    own = medians.get("sftrun", {}).get("tokens_per_s")
    over = {
        way: round(own / each["tokens_per_s"], 3)
        for way, each in medians.items()
        if own and way != "sftrun" and "tokens_per_s" in each
    }
    return {"device": device, "medians": medians, "sftrun_over": over, "needed": needed, "rounds": rounds}


class ResultFile:
    """The file of results: it is read at the start and written after each part; it also watches the time limit."""

    def __init__(self, file: Path | None, minutes: float) -> None:
        self.file, self.ends, self.longest = file, time.monotonic() + 60 * minutes, 0.0
        self.results: dict[str, Any] = json.loads(file.read_text()) if file and file.is_file() else {}

    def enough_time(self) -> bool:
        """Returns True if a part as long as the longest one so far would end in time."""
        return time.monotonic() + self.longest < self.ends

    def part(self, *what: Any) -> dict[str, Any]:
        """Runs a way, and records its time."""
        began = time.monotonic()
        result = try_way(*what)
        self.longest = max(self.longest, time.monotonic() - began)
        return result

    def write(self, key: str, value: Any) -> None:
        """Writes a result to the file."""
        self.results[key] = value
        if self.file:
            self.file.write_text(json.dumps(self.results, indent=1) + "\n")


def measure(name: str, args: argparse.Namespace, book: ResultFile) -> None:
    """Measures all ways of a case, round by round."""
    ways = args.ways or ["sftrun", "trl", "trl-plain"] + ["unsloth"] * bool(
        find_spec("unsloth") and find_spec("sftrun_unsloth")
    )
    sets = {
        key.removeprefix("train."): json.loads(value) for key, _, value in (each.partition("=") for each in args.set)
    }
    key = " ".join([name, *args.set])
    rounds: list[dict[str, Any]] = book.results.get(key, {}).get("rounds", [])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["SFTRUN_CACHE"] = str(folder / "cache")
        _shapes.set_up(folder, name, args.small, sets)
        needed, batch = _shapes.flops(folder, name), _shapes.case(name, args.small)["trl_batch"]
        for _ in range(args.rounds):
            rounds.append({})
            for way in ways:
                if not book.enough_time():
                    return
                rounds[-1][way] = book.part(way, folder, name, batch)
                book.write(key, summarise(rounds, needed, args.peak))


def plans(args: argparse.Namespace, book: ResultFile) -> None:
    """Compares estimates with allocated and reserved memory."""
    for name, train in PLANS:
        if not book.enough_time():
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            os.environ["SFTRUN_CACHE"] = str(folder / "cache")
            _shapes.set_up(folder, name, args.small, {**train, "max_steps": 2})
            work = {way: book.part(way, folder, name, 1) for way in ("plan", "sftrun")}
        both = {
            key: each[key]
            for each in work.values()
            for key in ("estimated_mb", "gpu_mb", "reserved_mb", "failed")
            if key in each
        }
        if both.get("gpu_mb") and "estimated_mb" in both:
            both["ratio"] = round(both["estimated_mb"] / both["gpu_mb"], 3)
        book.write(f"plan {name} {json.dumps(train)}", both)


def main() -> None:
    """Measures and prints; all numbers go to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=_shapes.CASES, default=None)
    parser.add_argument(
        "--ways", type=lambda text: text.split(","), default=None, help="Ways to run, separated by commas."
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0, help="Start nothing that would not end in time.")
    parser.add_argument("--out", type=Path, default=None, help="A file for all numbers, as JSON.")
    parser.add_argument("--peak", type=float, default=None, help="Dense bf16 TFLOP/s of a GPU that is not listed.")
    parser.add_argument("--set", action="append", default=[], metavar="train.KEY=VALUE")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--small", action="store_true")
    for hidden in ("--batch", "--steps"):
        parser.add_argument(hidden, type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], Path(args.one[1]), args.case, args.batch, args.steps)))
        return
    import torch

    if not torch.cuda.is_available() and not args.small:
        sys.exit("there is no GPU; --small runs tiny shapes")
    book = ResultFile(args.out, args.minutes)
    if args.plan:
        plans(args, book)
    for name in [] if args.plan else [args.case] if args.case else _shapes.CASES:
        measure(name, args, book)
    short = {
        name: {key: each[key] for key in each if key not in ("rounds", "needed")} for name, each in book.results.items()
    }
    print(json.dumps(short, indent=1))


if __name__ == "__main__":
    main()
