"""Merges an adapter into its base and compares what both say on prepared rows."""

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
# Largest difference of a log-probability: what rounding does. Logits of 16 bits lie 0.06 to 0.125 apart; 8-bit layers
# round what they are given too, which no merged weight can repeat.
BOUNDS = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.5}
BOUND_8_BIT = 0.5


def merge(recipe: sftrun.Recipe, run: sftrun.RunDir, max_difference: float | None) -> dict[str, Any]:
    """Writes `export/merged`; raises UserError when merged and unmerged differ by more than `max_difference`.

    What the adapter was trained on is what it is merged into: a base in 4 or 8 bits is dequantised first. Merged in
    place, the sum would be rounded to 4 bits again and most of the adapter lost; merged into the weights from before
    quantisation, it would meet others than those it has learned to correct.
    """
    model = load.load_tuned(recipe, run).eval()
    quantisation = base_model.trained_on(run).get("quantisation")
    rows = [sample.ids for sample in islice(sftrun.data.read_samples(run.prepared / "train.arrow"), ROWS)]
    before = [_log_probabilities(model, ids) for ids in rows]
    if quantisation:
        model = _on_plain_weights(model, recipe, run)
    merged = model.merge_and_unload(safe_merge=True)
    facts = _compared(before, (_log_probabilities(merged, ids) for ids in rows))
    bound = max_difference or _bound(recipe, quantisation)
    if not facts["max_difference"] <= bound:  # also where it is no number
        raise sftrun.UserError(
            f"the merged model differs from the adapter by {facts['max_difference']:.3g} in a log-probability, "
            f"more than {bound:g}; it was not written",
            hint="train and merge in fp32 (train.precision), or serve the adapter as it is",
        )
    _write(merged, recipe, run)
    return {"path": "export/merged", **facts, "base": _base(quantisation)}


def _on_plain_weights(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """The adapter on the weights that the 4 or 8 bits of its base stand for."""
    plain = quantise.dequantised(model.unload(), compute.DTYPES[compute.precision(recipe)])
    return PeftModel.from_pretrained(plain, run.model).eval()


def _bound(recipe: sftrun.Recipe, quantisation: dict[str, Any] | None) -> float:
    held = quantisation or {}
    computed = {compute.precision(recipe), held.get("compute_dtype", "auto")} - {"auto"}
    return max(BOUND_8_BIT if held.get("bits") == 8 else 0, *(BOUNDS[each] for each in computed))


def _base(quantisation: dict[str, Any] | None) -> str:
    return f"dequantised from {quantisation['bits']} bits" if quantisation else "as it was"


def _compared(before: list[torch.Tensor], after: Iterator[torch.Tensor]) -> dict[str, Any]:
    """How far two models are apart: the largest difference of a log-probability, and the share of equal argmaxes."""
    largest, tokens, same, same_rows = 0.0, 0, 0, 0
    for a, b in zip(before, after, strict=True):
        equal = a.argmax(-1) == b.argmax(-1)
        difference = float((a - b).abs().max())
        largest = difference if not difference <= largest else largest
        tokens, same, same_rows = tokens + len(equal), same + int(equal.sum()), same_rows + int(equal.all())
    argmax = round(same / max(tokens, 1), 4)
    return {"rows": len(before), "max_difference": largest, "same_argmax": argmax, "same_argmax_rows": same_rows}


def _write(merged: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> None:
    merged.generation_config.eos_token_id = saved.stop_ids(run, merged) or None
    with sftrun.files.whole_folder(run.export / "merged") as making:
        merged.save_pretrained(making)
        sftrun.data.load_tokenizer(recipe.model).save(making)


@torch.inference_mode()
def _log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]).to(model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)
