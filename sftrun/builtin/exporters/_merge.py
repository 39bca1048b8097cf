"""Merges an adapter into its base and compares what both say on prepared rows."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import sftrun
from sftrun.builtin.backends import _hf_model

ROWS = 8


def merge(recipe: sftrun.Recipe, path: Path, max_difference: float) -> dict[str, Any]:
    """Writes `export/merged`; raises UserError when merged and unmerged differ by more than `max_difference`."""
    run = sftrun.RunDir(path)
    model = _hf_model.load_tuned(recipe, run).eval()
    rows = [sample.ids for sample in islice(sftrun.read_samples(run.prepared / "train.arrow"), ROWS)]
    before = [_log_probabilities(model, ids) for ids in rows]
    merged = model.merge_and_unload()
    after = [_log_probabilities(merged, ids) for ids in rows]
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    if difference > max_difference:
        raise sftrun.UserError(
            f"the merged model differs from the adapter by {difference:.3g} in a log-probability, "
            f"more than {max_difference:g}; it was not written",
            hint="train and merge in fp32 (train.precision), or serve the adapter as it is",
        )
    same = [bool(torch.equal(a.argmax(-1), b.argmax(-1))) for a, b in zip(before, after, strict=True)]
    _write(merged, recipe, run)
    return {"path": "export/merged", "rows": len(rows), "max_difference": difference, "same_argmax_rows": sum(same)}


def _write(merged: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> None:
    making, done = run.export / ".merged", run.export / "merged"
    shutil.rmtree(making, ignore_errors=True)
    merged.generation_config.eos_token_id = _hf_model.stop_ids(run, merged) or None
    merged.save_pretrained(making)
    sftrun.load_tokenizer(recipe.model).save(making)
    shutil.rmtree(done, ignore_errors=True)
    making.rename(done)


@torch.inference_mode()
def _log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]).to(model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)
