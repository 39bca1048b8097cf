"""Merges an adapter with unsloth, and compares the log-probabilities of both models on prepared rows."""

from itertools import islice
from pathlib import Path
from typing import Any

from sftrun_unsloth import _model  # isort: skip # imports unsloth before anything else does

import torch

import sftrun
import sftrun.data
from sftrun.training import saved

ROWS = 8


def merge(recipe: sftrun.Recipe, path: Path, max_difference: float) -> dict[str, Any]:
    """Writes `export/unsloth-merged`; raises UserError if merged and unmerged differ by more than `max_difference`."""
    run = sftrun.RunDir(path)
    model = _model.load_tuned(recipe, run).eval()
    rows = [sample.ids for sample in islice(sftrun.data.Samples(run.prepared / "train.arrow"), ROWS)]
    before = [_log_probabilities(model, ids) for ids in rows]
    with sftrun.files.atomic_folder(run.export / "unsloth-merged") as making:
        _write(model, recipe, run, making)
        merged = _model.load(str(making), recipe, merged=True).eval()
        after = [_log_probabilities(merged, ids) for ids in rows]
        difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
        if difference > max_difference:
            raise sftrun.UserError(
                f"the merged model differs from the adapter by {difference:.3g} in a log-probability, "
                f"more than {max_difference:g}; it was not written",
                hint="serve the adapter as it is, or raise max_difference after looking at the answers",
            )
    same = [bool(torch.equal(a.argmax(-1), b.argmax(-1))) for a, b in zip(before, after, strict=True)]
    facts = {"path": "export/unsloth-merged", "rows": len(rows), "max_difference": difference}
    return {**facts, "same_argmax_rows": sum(same)}


def _write(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir, folder: Path) -> None:
    model.generation_config.eos_token_id = saved.stop_ids(run, model) or None
    try:
        model.save_pretrained_merged(str(folder), None, save_method="merged_16bit")
    except NotImplementedError as error:
        raise sftrun.UserError(f"unsloth cannot merge: {error}", hint="serve the adapter as it is") from error
    sftrun.data.load_tokenizer(recipe.model).save(folder)


@torch.inference_mode()
def _log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]).to(model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)
