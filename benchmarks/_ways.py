"""Ways of training the same rows, each for a process of its own: a bare loop, sftrun, and trl as it comes.

Rows are seen twice. The first pass is a warm-up; times are of the second, so that every way has worked on the very same
rows, whatever it makes batches of.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED = 0
TURN = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


def write(folder: Path, rows: list[dict[str, str]], keys: dict[str, Any]) -> None:
    """Puts rows and a recipe next to the model in `folder`/model, and prepares them."""
    from sftrun.flow import prepare

    lines = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in rows
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "pairs.json").write_text(json.dumps(rows))
    model = {"name": str(folder / "model"), **keys.pop("model", {})}
    train = {"epochs": 2, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", **keys.pop("train", {})}
    source = {"use": "jsonl", "with": {"path": str(folder / "train.jsonl"), "val_share": 0}}
    recipe = {"model": model, "source": source, "seed": SEED, **keys, "train": train}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    prepare(folder / "recipe.yaml", (), folder / "prepared-run")


def loaded(folder: Path) -> Any:
    """The recipe of a folder."""
    import sftrun

    return sftrun.load(folder / "recipe.yaml")


def bare(folder: Path) -> dict[str, Any]:
    """A plain loop on sftrun's own batches, whose head also sees trained positions alone."""
    import torch
    import transformers

    from sftrun.training import batches
    from sftrun.training.rows import Rows

    recipe = loaded(folder)
    size = recipe.train.batch_size
    rows = Rows(folder / "prepared-run" / "prepared" / "train.arrow")
    order, collate = batches.ByLength(rows.lengths, size, SEED), batches.collator(rows, 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    taken, spent, tokens = [], [], 0
    for epoch in range(2):
        order.set_epoch(epoch)
        drawn = list(order)
        for start in range(0, len(drawn), size):
            began, before = time.perf_counter(), time.process_time()
            batch = collate([rows[row] for row in drawn[start : start + size]])
            trained = batch["labels"][:, 1:] != batches.IGNORED
            hidden = model.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][trained])
            torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][trained]).backward()
            del logits, hidden
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - began)
            spent.append(time.process_time() - before)
            tokens += int(batch["attention_mask"].sum())
    return {"steps": taken, "cpu": spent, "tokens": tokens}


def sftrun(folder: Path) -> dict[str, Any]:
    """The stage train, as its worker runs it; a step is from one event to the next."""
    from sftrun.runs.directory import RunDir
    from sftrun.stages.train import train_here

    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    shutil.copytree(folder / "prepared-run", run)
    events: list[dict[str, Any]] = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            events.append({**event, "at": clocks(event["step"] in (event["steps"] // 2, event["steps"]))})

    train_here(loaded(folder), RunDir(run), note)
    shutil.rmtree(run.parent)
    return _of_events(events)


def _of_events(steps: list[dict[str, Any]]) -> dict[str, Any]:
    # the first step's own beginning is not told: it is of the warm-up
    at = [steps[0]["at"], *(event["at"] for event in steps)]
    return {**between(at), "tokens": steps[-1]["tokens"], "trained": steps[-1]["trained_tokens"]}


def clocks(wait: bool) -> tuple[float, float]:
    """Wall and CPU seconds; with `wait`, as between the two passes, when a GPU has ended its work."""
    import torch

    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def between(at: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Seconds of steps, from the clocks between them."""
    pairs = list(itertools.pairwise(at))
    return {name: [after[i] - before[i] for before, after in pairs] for i, name in enumerate(("steps", "cpu"))}


def trl(folder: Path, model: Any = None, peft_config: Any = None, **settings: Any) -> dict[str, Any]:
    """trl's trainer with masks by completion, its own batches, padding and head; computing in the same precision."""
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    at: list[tuple[float, float]] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **more: Any) -> None:
            at.extend([] if at else [clocks(True)])

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            at.append(clocks(state.global_step in (state.max_steps // 2, state.max_steps)))

    datasets.disable_progress_bars()
    recipe, pairs = loaded(folder), json.loads((folder / "pairs.json").read_text())
    texts = [{"prompt": TURN.format(prompt=row["prompt"]), "completion": row["completion"] + END} for row in pairs]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.eos_token = END
    usual: dict[str, Any] = {
        "output_dir": str(folder / "trl"), "num_train_epochs": 2, "max_length": recipe.model.max_seq_len,
        "per_device_train_batch_size": recipe.train.batch_size, "bf16": False, "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(), "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    model = model or transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**{**usual, **settings}), train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer, callbacks=[Clock()], peft_config=peft_config,
    )  # fmt: skip
    trained = sum(label != -100 for row in trainer.train_dataset for label in row["labels"][1:])
    trainer.train()
    return {**between(at), "tokens": int(trainer._total_train_tokens), "trained": 2 * trained}


def measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a way found, with the seconds of its second pass and the most memory that this process had (MB)."""
    found = work()
    second, spent = (found[name][len(found["steps"]) // 2 :] for name in ("steps", "cpu"))
    result = {**found, "seconds": sum(second), "cpu_seconds": sum(spent)}
    result |= {"ms_per_step": 1000 * sum(second) / len(second), "peak_mb": peak()}
    if found.get("trained"):
        result["trained_per_s"] = found["trained"] / 2 / sum(second)
    return result


def peak() -> int:
    """Largest resident memory of this process in MB; the kernel's ru_maxrss counts what forked it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def apart(script: str, way: str, folder: Path, *more: str) -> dict[str, Any]:
    """The same in a process of its own, with an environment of its own."""
    environment = {**os.environ, "SFTRUN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, "--one", way, str(folder), *more]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if said.returncode:
        raise SystemExit(f"{way} failed:\n{said.stderr[-3000:]}")
    return dict(json.loads(said.stdout.splitlines()[-1]))
