"""Preparation: rows to packed Arrow with masks, compared with the bare tokenizer and with trl's preparation.

    python benchmarks/prepare.py [--rows FILE.jsonl[.gz]] [--tokenizer FOLDER] [--rounds 5] [--limit N] [--long 0]

The ways take turns, round by round, each in its own process; times exclude imports. `floor` is the faster of the
tokenizer's two batch calls, on rendered strings. `sftrun` is the whole stage, from rows on disk to packed Arrow, with
every row verified. `trl-1` and `trl-2` are trl with one and with two processes, with the training version of the same
template. Prints medians, ratios and peak memory as JSON.
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
WAYS = ("floor", "sftrun", "trl-1", "trl-2")
LENGTH = 2048


def cpu() -> float:
    """Returns the CPU seconds of this process and of its finished children."""
    return sum(os.times()[:4])


def measure(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Returns the CPU and wall seconds of a function, and its own result."""
    spent, started = cpu(), time.perf_counter()
    result = work()
    return {"cpu": cpu() - spent, "wall": time.perf_counter() - started, **result}


def floor(folder: Path) -> dict[str, float]:
    """Measures the tokenizer alone."""
    import msgspec
    from tokenizers import Tokenizer

    engine = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    texts = msgspec.json.decode((folder / "texts.json").read_bytes())

    def encode(call: Callable[..., object]) -> dict[str, float]:
        for first in range(0, len(texts), 1024):
            call(texts[first : first + 1024], add_special_tokens=False)
        return {}

    both = [measure(lambda call=call: encode(call)) for call in (engine.encode_batch_fast, engine.encode_batch)]
    return {**min(both, key=lambda each: each["cpu"]), "with_offsets_cpu": both[1]["cpu"]}


def sftrun(folder: Path) -> dict[str, float]:
    """Measures the stage prepare, through the public function."""
    import jinja2  # noqa: F401
    import numpy  # noqa: F401
    import pyarrow  # noqa: F401
    import tokenizers  # noqa: F401

    import sftrun.stages.prepare  # noqa: F401
    from sftrun.flow import prepare

    os.environ["SFTRUN_CACHE"] = tempfile.mkdtemp(dir=folder)
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"

    def work() -> dict[str, float]:
        stats = prepare(folder / "recipe.yaml", (), out).read_json("prepared/stats.json")["train"]
        return {"rows": stats["rows"], "tokens": stats["tokens"], "fill": stats["packing"]["fill"]}

    result = measure(work)
    assert "torch" not in sys.modules
    return result


def trl(folder: Path, processes: int) -> dict[str, float]:
    """Measures trl's preparation of the same rows, with assistant masks and packing."""
    import datasets
    import multiprocess
    import transformers
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = (folder / "training.jinja").read_text("utf-8")
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    settings = SFTConfig(
        output_dir=str(folder / "trl"), max_length=LENGTH, packing=True, assistant_only_loss=True, use_cpu=True,
        bf16=False, dataset_num_proc=processes if processes > 1 else None, report_to=[],
    )  # fmt: skip
    cache = tempfile.mkdtemp(dir=folder)

    def work() -> dict[str, float]:
        rows = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=cache)
        trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
        multiprocess.active_children()  # joins them: only then their CPU seconds count
        return {"sequences": len(trainer.train_dataset)}

    return measure(work)


def set_up(folder: Path, args: argparse.Namespace) -> int:
    """Writes the rows, the model folder, the recipe and the rendered texts; returns the number of rows."""
    import shutil

    import msgspec
    from trl import chat_template_utils

    templates = Path(chat_template_utils.__file__).parent / "chat_templates"
    shutil.copytree(args.tokenizer, folder / "model")
    shutil.copy(templates / "qwen2_5.jinja", folder / "model" / "chat_template.jinja")
    shutil.copy(templates / "qwen2_5_training.jinja", folder / "training.jinja")
    opened = gzip.open if args.rows.suffix == ".gz" else open
    with opened(args.rows, "rb") as lines:
        rows = [msgspec.json.decode(line) for line in lines][: args.limit]
    rows = _join(rows, args.long) if args.long else rows
    (folder / "train.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)) + b"\n")
    recipe = {
        "model": {"name": str(folder / "model"), "max_seq_len": LENGTH},
        "source": {"use": "jsonl", "with": {"path": str(folder / "train.jsonl"), "val_share": 0}},
        "packing": {"strategy": "best-fit"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "texts.json").write_bytes(msgspec.json.encode(_texts(folder)))
    return len(rows)


def _join(rows: list[dict[str, object]], turns: int) -> list[dict[str, object]]:
    """Joins the turns of `turns` rows to one conversation."""
    groups = [rows[first : first + turns] for first in range(0, len(rows), turns)]
    return [{"messages": [message for row in group for message in row["messages"]]} for group in groups]


def _texts(folder: Path) -> list[str]:
    from sftrun.data.pipeline import Pipeline
    from sftrun.recipe.validate import load
    from sftrun.registry import current

    pipeline = Pipeline(load(folder / "recipe.yaml"), current())
    return [rendered.text for batch in pipeline.make_batches("train") for _, rendered in batch.pairs]


def run(way: str, folder: Path) -> dict[str, float]:
    """Runs a way in this process; returns its times and peak memory (MB), also of trl's largest child."""
    name, _, processes = way.partition("-")
    result = {"floor": floor, "sftrun": sftrun}[name](folder) if not processes else trl(folder, int(processes))
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024 if processes else 0
    return {**result, "peak_mb": peak(), "child_peak_mb": child}


def peak() -> int:
    """Returns the largest resident memory of this process in MB; ru_maxrss would include the parent's before fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main() -> None:
    """Runs all ways in turn, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=DATA / "chat52k.jsonl.gz")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "tokenizer-qwen")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--long", type=int, default=0, help="Number of rows to join into one conversation.")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one[0], Path(args.one[1]))))
        return
    ways = args.ways.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = set_up(folder, args)
        results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                command = [sys.executable, __file__, "--one", way, scratch]
                environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
                result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                results[way].append(json.loads(result.stdout.splitlines()[-1]))
    middle = {
        way: {key: statistics.median(each[key] for each in runs) for key in runs[0]} for way, runs in results.items()
    }
    ratios = {
        way: {key: round(each[key] / middle["floor"][key], 3) for key in ("cpu", "wall")}
        for way, each in middle.items()
    }
    print(json.dumps({"rows": rows, "rounds": args.rounds, "medians": middle, "times_the_floor": ratios}, indent=1))


if __name__ == "__main__":
    main()
