"""Merges an adapter into its base, and compares the log-probabilities of both on prepared rows."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from peft import PeftModel

import sftrun
import sftrun.data
from sftrun.training import base_model, compute, saved
from sftrun.training.model import load, quantise

ROWS = 8
# Largest difference of a log-probability; rounding stays below it. Logits of 16 bits are 0.06 to 0.125 apart. 8-bit
# layers round their inputs too, which merged weights cannot reproduce.
BOUNDS = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.5}
BOUND_8_BIT = 0.5


def merge(recipe: sftrun.Recipe, run: sftrun.RunDir, max_difference: float | None) -> dict[str, Any]:
    """Writes `export/merged`; raises UserError if merged and unmerged model differ by more than `max_difference`.

    The adapter is merged into the weights that it was trained on: a base in 4 or 8 bits is dequantised first. A merge
    in place would round the sum to 4 bits again and lose most of the adapter. The original weights differ from the
    quantised ones that the adapter has learned to correct.
    """
    model = load.load_tuned(recipe, run).eval()
    quantisation = base_model.read_base_facts(run).get("quantisation")
    rows = [sample.ids for sample in islice(sftrun.data.Samples(run.prepared / "train.arrow"), ROWS)]
    before = [_log_probabilities(model, ids) for ids in rows]
    if quantisation:
        model = _on_dequantised_base(model, recipe, run)
    merged = model.merge_and_unload(safe_merge=True)
    facts = _compare(before, (_log_probabilities(merged, ids) for ids in rows))
    bound = max_difference or _bound(recipe, quantisation)
    if not facts["max_difference"] <= bound:  # also true for NaN
        raise sftrun.UserError(
            f"the merged model differs from the adapter by {facts['max_difference']:.3g} in a log-probability, "
            f"more than {bound:g}; it was not written",
            hint="train and merge in fp32 (train.precision), or serve the adapter as it is",
        )
    _write(merged, recipe, run)
    return {"path": "export/merged", **facts, "base": _base(quantisation)}


def _on_dequantised_base(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """Returns the adapter on the dequantised weights of its base."""
    plain = quantise.dequantise(model.unload(), compute.DTYPES[compute.precision(recipe)])
    return PeftModel.from_pretrained(plain, run.model).eval()


def _bound(recipe: sftrun.Recipe, quantisation: dict[str, Any] | None) -> float:
    options = quantisation or {}
    precisions = {compute.precision(recipe), options.get("compute_dtype", "auto")} - {"auto"}
    return max(BOUND_8_BIT if options.get("bits") == 8 else 0, *(BOUNDS[each] for each in precisions))


def _base(quantisation: dict[str, Any] | None) -> str:
    return f"dequantised from {quantisation['bits']} bits" if quantisation else "as it was"


def _compare(before: list[torch.Tensor], after: Iterator[torch.Tensor]) -> dict[str, Any]:
    """Returns the largest difference of a log-probability, and the shares of equal argmaxes."""
    largest = 0.0
    tokens = same = same_rows = 0
    for a, b in zip(before, after, strict=True):
        equal = a.argmax(-1) == b.argmax(-1)
        difference = float((a - b).abs().max())
        largest = difference if not difference <= largest else largest  # NaN stays
        tokens += len(equal)
        same += int(equal.sum())
        same_rows += int(equal.all())
    argmax = round(same / max(tokens, 1), 4)
    return {"rows": len(before), "max_difference": largest, "same_argmax": argmax, "same_argmax_rows": same_rows}


def _write(merged: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> None:
    merged.generation_config.eos_token_id = saved.stop_ids(run, merged) or None
    with sftrun.files.atomic_folder(run.export / "merged") as making:
        merged.save_pretrained(making)
        sftrun.data.load_tokenizer(recipe.model).save(making)


@torch.inference_mode()
def _log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]).to(model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)
