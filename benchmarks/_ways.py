"""Ways of training the same rows, each in its own process: a bare loop, sftrun, and trl with its defaults.

Every way sees the rows twice. The first pass is a warm-up; the second pass is timed. So every way is timed on the same
rows, with any batches.
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
    """Writes rows and a recipe next to the model in `folder`/model, and prepares them."""
    from sftrun.flow import prepare

    lines = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in rows
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "pairs.json").write_text(json.dumps(rows))
    model = {"name": str(folder / "model"), **keys.pop("model", {})}
    train = {"epochs": 2, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", **keys.pop("train", {})}
    train["group_by_length"] = True  # `bare` has the same batches
    source = {"use": "jsonl", "with": {"path": str(folder / "train.jsonl"), "val_share": 0}}
    recipe = {"model": model, "source": source, "seed": SEED, **keys, "train": train}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    prepare(folder / "recipe.yaml", (), folder / "prepared-run")


def load_recipe(folder: Path) -> Any:
    """Returns the recipe of a folder."""
    import sftrun

    return sftrun.load(folder / "recipe.yaml")


def bare(folder: Path) -> dict[str, Any]:
    """Trains with a plain loop on sftrun's own batches; its head also computes trained positions only."""
    import torch
    import transformers

    from sftrun.training import batches
    from sftrun.training.rows import Rows

    recipe = load_recipe(folder)
    size = recipe.train.batch_size
    rows = Rows(folder / "prepared-run" / "prepared" / "train.arrow")
    order, collate = batches.LengthGroupedSampler(rows.lengths, size, SEED), batches.choose_collator(rows, 0)
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
    """Runs the stage train as its worker does; a step lasts from one event to the next."""
    from sftrun.events import Step
    from sftrun.runs.directory import RunDir
    from sftrun.stages.train import train_in_worker

    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    shutil.copytree(folder / "prepared-run", run)
    steps: list[Step] = []
    at: list[tuple[float, float]] = []

    def note(event: Any) -> None:
        if isinstance(event, Step):
            steps.append(event)
            at.append(clocks(event.step in (event.steps // 2, event.steps)))

    train_in_worker(load_recipe(folder), RunDir(run), note)
    shutil.rmtree(run.parent)
    # no event marks the start of the first step, which belongs to the warm-up
    return {**between([at[0], *at]), "tokens": steps[-1].tokens, "trained": steps[-1].trained_tokens}


def clocks(wait: bool) -> tuple[float, float]:
    """Returns wall and CPU seconds; with `wait`, synchronises the GPU first, as between the two passes."""
    import torch

    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def between(at: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Returns the seconds of steps, from the clocks between them."""
    pairs = list(itertools.pairwise(at))
    return {name: [after[i] - before[i] for before, after in pairs] for i, name in enumerate(("steps", "cpu"))}


def trl(folder: Path, model: Any = None, peft_config: Any = None, **settings: Any) -> dict[str, Any]:
    """Trains with trl's trainer, completion masks, its own batches, padding and head, in the same precision."""
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
    recipe, pairs = load_recipe(folder), json.loads((folder / "pairs.json").read_text())
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


def measure(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a way; adds the seconds of its second pass and the peak memory of this process (MB)."""
    output = work()
    second, spent = (output[name][len(output["steps"]) // 2 :] for name in ("steps", "cpu"))
    result = {**output, "seconds": sum(second), "cpu_seconds": sum(spent)}
    result |= {"ms_per_step": 1000 * sum(second) / len(second), "peak_mb": peak()}
    if output.get("trained"):
        result["trained_per_s"] = output["trained"] / 2 / sum(second)
    return result


def peak() -> int:
    """Returns the largest resident memory of this process in MB; ru_maxrss would include the parent's before fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def measure_in_process(script: str, way: str, folder: Path, *more: str) -> dict[str, Any]:
    """Measures a way in its own process and environment."""
    environment = {**os.environ, "SFTRUN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, "--one", way, str(folder), *more]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{way} failed:\n{result.stderr[-3000:]}")
    return dict(json.loads(result.stdout.splitlines()[-1]))
