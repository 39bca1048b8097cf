"""Validation losses after one epoch: sftrun's defaults, other settings, and trl with its own defaults.

    python benchmarks/defaults.py [--data FOLDER] [--model FOLDER] [--seeds N] [--small]

Three jobs with few to many optimizer steps, each with several seeds: an adapter on 72 rows of GSM8K (9 steps), all
weights on 240 rows of Alpaca's shape (30 steps), an adapter on 1,000 short chats (125 steps). Every training has the
same base, rows, learning rate, batch size and number of epochs. What differs is the warm-up, the grouping by length,
and for trl also the schedule, the order of rows and the code. All losses are means over the same validation tokens.

The base is a model with 0.4 M parameters, which sftrun first trains on other texts for a minute; --model names a real
one. --small is a smoke test. It takes a few minutes on two cores. Prints a table of losses, with the difference between
the default and the best other setting of sftrun, and the default and trl.
"""

import argparse
import contextlib
import gzip
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LONGEST = 700  # characters of a row, so that no row is too long for the model
LENGTH = 768  # tokens
BATCH = 8
VALIDATION = 64  # rows
BASE = {"rows": 3000, "learning_rate": 3e-3, "batch_size": 16}
JOBS: dict[str, dict[str, Any]] = {
    "gsm8k, lora": {"rows": 72, "mode": "lora", "learning_rate": 2e-3},
    "alpaca, full": {"rows": 240, "mode": "full", "learning_rate": 2e-4},
    "chats, lora": {"rows": 1000, "mode": "lora", "learning_rate": 2e-3},
}
REAL = {"lora": 2e-4, "full": 1e-5}  # learning rates for a real model
SETTINGS: dict[str, list[str]] = {
    "default": [],
    "warmup 0": ["train.warmup=0"],
    "grouped": ["train.group_by_length=true"],
    "grouped, warmup 0": ["train.group_by_length=true", "train.warmup=0"],
    "linear": ["train.scheduler=linear"],
}


def pairs(job: str, data: Path) -> Iterator[tuple[str, str]]:
    """Yields the prompts and answers of a job, or of the base's texts."""
    if job.startswith("gsm8k"):
        with (data / "gsm8k" / "train.jsonl").open() as lines:
            rows = map(json.loads, lines)
            yield from ((row["question"], row["answer"]) for row in rows)
    elif job.startswith("alpaca"):
        for row in json.loads((data / "demos" / "alpaca_en_demo.json").read_text()):
            yield "\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]
    else:
        with gzip.open(data / "chat52k.jsonl.gz", "rt") as lines:
            # the base learns from the first rows, the job from later ones
            rows = map(json.loads, itertools.islice(lines, 0 if job == "base" else 20_000, None))
            for row in rows:
                *_, question, answer = row["messages"]
                yield question["content"], answer["content"]


def talks(job: str, data: Path, count: int) -> list[dict[str, Any]]:
    """Returns so many rows of a job that are short enough, as a prompt and a completion."""
    short = ((ask, say) for ask, say in pairs(job, data) if say.strip() and len(ask) + len(say) <= LONGEST)
    turns = [
        {"prompt": [{"role": "user", "content": ask}], "completion": [{"role": "assistant", "content": say}]}
        for ask, say in itertools.islice(short, count)
    ]
    assert len(turns) == count, f"{job} has only {len(turns)} rows"
    return turns


def write(folder: Path, model: str, splits: dict[str, Any], tuning: str, train: dict[str, Any]) -> Path:
    """Writes rows and a recipe."""
    folder.mkdir()
    for split, turns in splits.items():
        rows = [{"messages": [*each["prompt"], *each["completion"]]} for each in turns]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = {"epochs": 1, "precision": "fp32", "save_strategy": "no", "eval_batch_size": 16}
    recipe = {
        "model": {"name": model, "max_seq_len": LENGTH},
        "source": {"use": "jsonl", "with": {"path": str(folder), "val_share": 0}},
        "tuning": {"mode": tuning},
        "train": {**usual, **train},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder / "recipe.yaml"


def train(recipe: Path, out: Path, sets: list[str]) -> tuple[Any, list[Any]]:
    """Trains in this process; returns the run and its events."""
    import sftrun
    from sftrun.flow import prepare

    run, events = prepare(recipe, sets, out), []
    loaded = run.recipe()
    sftrun.create("backend", loaded.backend).train(sftrun.kinds.Training(recipe=loaded, run=run, emit=events.append))
    return run, events


def make_base(folder: Path, data: Path, rows: int) -> str:
    """Trains the embedded model on texts that no job has; returns its folder."""
    settings = {name: value for name, value in BASE.items() if name != "rows"}
    texts = {"train": talks("base", data, rows)}
    recipe = write(folder, "sftrun/tiny", texts, "full", {**settings, "epochs": 2, "eval_strategy": "no"})
    return str(train(recipe, folder / "run", ["masker=all"])[0].model)


def sftrun_loss(recipe: Path, out: Path, sets: list[str]) -> float:
    """Trains with sftrun; returns the validation loss of the epoch's end."""
    from sftrun.events import Eval

    _, events = train(recipe, out, sets)
    return [event.loss for event in events if isinstance(event, Eval)][-1]


def trl_loss(recipe: Path, prepared: Path, turns: list[Any], seed: int) -> float:
    """Trains with trl's SFTTrainer and its own defaults; returns the loss of sftrun's validation tokens."""
    import datasets
    import peft
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    import sftrun
    from sftrun.data import Samples
    from sftrun.training.loaded import loss_sums
    from sftrun.training.model import head

    loaded = sftrun.load(recipe)
    lora = loaded.tuning.lora
    full = loaded.tuning.mode == "full"
    transformers.set_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(loaded.model.name, dtype=torch.float32)
    adapter = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )  # fmt: skip
    args = SFTConfig(
        output_dir=str(prepared / "trl"), num_train_epochs=1, learning_rate=loaded.train.learning_rate, seed=seed,
        per_device_train_batch_size=loaded.train.batch_size, max_length=LENGTH, bf16=False, save_strategy="no",
        use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=datasets.Dataset.from_list(turns),
        processing_class=transformers.AutoTokenizer.from_pretrained(loaded.model.name),
        peft_config=None if full else adapter,
    )  # fmt: skip
    trainer.train()
    tuned = trainer.model.eval()
    head.patch_forward(tuned)
    samples = Samples(prepared / "prepared" / "val.arrow")
    sums = loss_sums(tuned, (samples.arrays(row) for row in range(len(samples))), 16, head.score)
    return sums.loss / sums.tokens


def measure(job: str, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Returns the validation loss of a job by setting."""
    about = JOBS[job]
    rows, held = (16, 8) if args.small else (about["rows"], VALIDATION)
    turns = talks(job, args.data, held + rows)
    mode = about["mode"]
    rate = REAL[mode] if args.model else about["learning_rate"]
    learning = {"learning_rate": rate, "batch_size": 4 if args.small else BATCH}
    recipe = write(folder, args.base, {"val": turns[:held], "train": turns[held:]}, mode, learning)
    losses = {
        name: sftrun_loss(recipe, folder / f"run-{index}", [f"seed={seed}", *sets])
        for index, (name, sets) in enumerate(SETTINGS.items())
    }
    return {**losses, "trl": trl_loss(recipe, folder / "run-0", turns[held:], seed)}


def show(results: dict[str, list[dict[str, float]]]) -> None:
    """Prints losses as a table in Markdown: each seed, and the mean."""
    names = [*SETTINGS, "trl"]
    print("| job | seed |", " | ".join(names), "| default − best of sftrun | default − trl |")
    print("|---|---" + "|--:" * (len(names) + 2) + "|")
    for job, seeds in results.items():
        mean = {name: statistics.mean(each[name] for each in seeds) for name in names}
        for label, losses in [*((str(seed), each) for seed, each in enumerate(seeds)), ("mean", mean)]:
            best = min(losses[name] for name in SETTINGS)
            numbers = [*(f"{losses[name]:.4f}" for name in names), f"{losses['default'] - best:+.4f}"]
            print(f"| {job} | {label} |", " | ".join([*numbers, f"{losses['default'] - losses['trl']:+.4f}"]), "|")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", help="a folder of a real model, instead of the small base")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    # transformers prints logs to the standard output, which is for the table
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        args.base = args.model or make_base(folder / "base", args.data, 64 if args.small else BASE["rows"])
        results = {
            job: [measure(job, seed, folder / f"{index}-{seed}", args) for seed in range(args.seeds)]
            for index, job in enumerate(JOBS)
        }
    show(results)


if __name__ == "__main__":
    main()
