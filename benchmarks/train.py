"""Training on a CPU: sftrun next to a bare PyTorch loop on the same batches, and next to trl on the same rows.

    python benchmarks/train.py [--rounds N] [--rows N] [--batch N] [--hidden N] [--layers N] [--words N]
    python benchmarks/train.py --gsm8k [--data FOLDER]

The ways take turns, round by round, each in its own process. Each sees the rows twice, and the second pass is measured.
`bare` is a loop of a few lines, with the same batches (asserted), a head on trained positions and fused AdamW. `sftrun`
is the worker of the stage train. `trl` is SFTTrainer with completion masks and its defaults for batches, padding and
the head. All compute in fp32 without checkpointing. The model is a Qwen2 with random weights, 110 M parameters by
default. With --gsm8k, the rows come from GSM8K, with Qwen's tokenizer of 151,936 tokens, sftrun packs them, and the
result is trained tokens a second.

Two rounds take eight to ten minutes on two cores. Prints JSON: medians of rounds, and the median over rounds of each
ratio; above 1 sftrun is slower than bare, or faster than trl. Wall times are not reliable on a busy machine; with
OMP_NUM_THREADS=1, CPU times are.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _ways

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WAYS = {"bare": _ways.bare, "sftrun": _ways.sftrun, "trl": _ways.trl}


def model(folder: Path, args: argparse.Namespace) -> None:
    """Saves a Qwen2 with random weights to a folder with a tokenizer."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=args.words,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=max(args.hidden // 128, 1),
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    torch.manual_seed(_ways.SEED)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def random_rows(count: int) -> list[dict[str, str]]:
    """Returns rows with the lengths of short chats: a few dozen to a few hundred tokens."""
    draw = random.Random(_ways.SEED)
    letters = "abcdefghijklmnopqrstuvwxyz "

    def text(middle: float) -> str:
        return "".join(draw.choices(letters, k=min(max(int(draw.lognormvariate(middle, 0.7)), 8), 600))).strip() or "a"

    return [{"prompt": text(4.8), "completion": text(5.0)} for _ in range(count)]


def gsm8k(count: int, data: Path) -> list[dict[str, str]]:
    """Returns the first rows of GSM8K."""
    with (data / "gsm8k" / "train.jsonl").open() as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    return [{"prompt": row["question"], "completion": row["answer"]} for row in rows]


def set_up(folder: Path, args: argparse.Namespace) -> None:
    """Writes the model, the rows and the recipe."""
    from sftrun import tiny

    model(folder / "model", args)
    for name in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.folder() / name, folder / "model" / name)
    keys: dict[str, Any] = {"model": {"max_seq_len": 1024}, "tuning": {"mode": "full"}}
    train = {"batch_size": args.batch, "precision": "fp32"}
    if not args.gsm8k:
        _ways.write(folder, random_rows(args.rows), {**keys, "train": train})
        return
    for file in (args.data / "tokenizer-qwen").iterdir():
        shutil.copyfile(file, folder / "model" / file.name)
    packed = {"packing": {"strategy": "best-fit"}, "train": {**train, "batch_size": 2}}
    _ways.write(folder, gsm8k(args.rows, args.data), {**keys, **packed})


def compare(rounds: list[dict[str, Any]], gsm8k: bool) -> dict[str, float]:
    """Returns the median over rounds of each ratio."""

    def middle(over: str, under: str, key: str) -> float:
        return round(statistics.median(each[over][key] / each[under][key] for each in rounds), 3)

    if gsm8k:
        return {"trained tokens a second, sftrun / trl": middle("sftrun", "trl", "trained_per_s")}
    return {
        "time of the same rows, sftrun / bare": middle("sftrun", "bare", "seconds"),
        "time of the same rows, trl / sftrun": middle("trl", "sftrun", "seconds"),
        "CPU time, sftrun / bare": middle("sftrun", "bare", "cpu_seconds"),
        "CPU time, trl / sftrun": middle("trl", "sftrun", "cpu_seconds"),
        "peak memory, sftrun / bare": middle("sftrun", "bare", "peak_mb"),
        "peak memory, trl / sftrun": middle("trl", "sftrun", "peak_mb"),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all rounds."""
    ways = ("sftrun", "trl") if args.gsm8k else ("bare", "sftrun", "trl")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        set_up(folder, args)
        more = ("--gsm8k-batch", str(args.batch)) if args.gsm8k else ()
        rounds = [
            {way: _ways.measure_in_process(__file__, way, folder, *more) for way in ways} for _ in range(args.rounds)
        ]
    if not args.gsm8k:
        assert all(each["bare"]["tokens"] == each["sftrun"]["tokens"] for each in rounds), "not the same batches"
    keys = ("ms_per_step", "seconds", "cpu_seconds", "trained_per_s", "peak_mb")
    medians = {
        way: {key: round(statistics.median(each[way][key] for each in rounds)) for key in keys if key in rounds[0][way]}
        for way in ways
    }
    return {"ratios": compare(rounds, args.gsm8k), "medians": medians, "rounds": rounds}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=None)
    for name in ("rows", "batch", "hidden", "layers", "words"):
        parser.add_argument(f"--{name}", type=int, default=None)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--gsm8k-batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    usual = {"rounds": 2, "rows": 16, "batch": 4, "hidden": 768, "layers": 12, "words": 32768}
    if args.gsm8k:
        usual = {"rounds": 2, "rows": 32, "batch": 8, "hidden": 384, "layers": 8, "words": 151936}
    for name, value in usual.items():
        setattr(args, name, getattr(args, name) or value)
    if args.one:
        settings = {"per_device_train_batch_size": args.gsm8k_batch} if args.gsm8k_batch else {}
        way, folder = args.one
        work = WAYS[way]
        print(json.dumps(_ways.measure(lambda: work(Path(folder), **(settings if way == "trl" else {})))))
        return
    print(json.dumps({"settings": {name: getattr(args, name) for name in usual}, **measure(args)}, indent=1))


if __name__ == "__main__":
    main()
