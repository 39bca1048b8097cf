"""Merges an adapter into its base, and compares the outputs of two models on prepared rows.

Backends and exporters of plugins may use `merge_adapter`, `sample_rows`, `outputs`, `compare_log_probabilities` and
`check_difference`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from peft import PeftModel

import sftrun
import sftrun.data
from sftrun.training import base_model, compute, saved
from sftrun.training.model import load, quantise

ROWS = 8
# positions per row whose log-probabilities are kept: 8 rows of them are 160 MB at a vocabulary of 150,000
POSITIONS = 32
# Largest difference of a log-probability: what rounding does. Logits of 16 bits lie 0.06 to 0.125 apart; 8-bit layers
# round what they are given too, which no merged weight can repeat.
BOUNDS = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.5}
BOUND_8_BIT = 0.5


class Outputs(NamedTuple):
    """Outputs of a model for one row: the argmax of every position ([tokens]), and the log-probabilities of some
    ([positions, vocabulary], fp32), both on the CPU.
    """

    argmax: torch.Tensor
    log_probabilities: torch.Tensor


def merge(recipe: sftrun.Recipe, run: sftrun.RunDir, max_difference: float | None) -> dict[str, Any]:
    """Writes `export/merged` and returns facts; raises UserError as `merge_adapter` does."""
    merged, facts = merge_adapter(recipe, run, max_difference)
    with sftrun.files.atomic_folder(run.export / "merged") as making:
        with saved.savable_generation(merged):
            merged.save_pretrained(making)
        saved.write_generation(merged, run, making)
        sftrun.data.load_tokenizer(recipe.model).save(making)
    return {"path": "export/merged", **facts}


def merge_adapter(
    recipe: sftrun.Recipe, run: sftrun.RunDir, max_difference: float | None = None
) -> tuple[Any, dict[str, Any]]:
    """Returns the tuned model with its adapter merged, and how far its outputs are from those before the merge.

    The adapter is merged into the weights it was trained on: a base in 4 or 8 bits is dequantised first. Merged in
    place, the sum would be rounded to 4 bits again and most of the adapter lost; merged into the weights from before
    quantisation, it would meet others than those it has learned to correct.

    Raises UserError if a log-probability differs by more than `max_difference` (None: as much as rounding explains).
    """
    model = load.load_tuned(recipe, run).eval()
    quantisation = base_model.read_base_facts(run).get("quantisation")
    rows = sample_rows(run)
    before = list(outputs(model, rows))
    if quantisation:
        model = _on_dequantised_base(model, recipe, run)
    merged = model.merge_and_unload(safe_merge=True)
    facts = compare_log_probabilities(before, outputs(merged, rows))
    bound = _bound(recipe, quantisation) if max_difference is None else max_difference
    check_difference(facts, bound, "train and merge in fp32 (train.precision), or serve the adapter as it is")
    return merged, {**facts, "base": _base(quantisation)}


def sample_rows(run: sftrun.RunDir) -> list[list[int]]:
    """Returns the token ids of the first prepared training rows, to compare two models on."""
    return [sample.ids for sample in islice(sftrun.data.Samples(run.prepared / "train.arrow"), ROWS)]


@torch.inference_mode()
def outputs(model: Any, rows: Iterable[Sequence[int]]) -> Iterator[Outputs]:
    """Yields the outputs of a model for each row of token ids; no more than one row's logits are held at a time."""
    for ids in rows:
        logits = model(input_ids=torch.tensor([list(ids)]).to(model.device), use_cache=False).logits[0]
        some = logits[_positions(len(ids)).to(logits.device)].float()
        yield Outputs(logits.argmax(-1).cpu(), some.log_softmax(-1).cpu())


def _positions(tokens: int) -> torch.Tensor:
    """Returns positions of a row, evenly spaced from the first to the last."""
    return torch.linspace(0, tokens - 1, min(tokens, POSITIONS)).round().long()


def compare_log_probabilities(before: Iterable[Outputs], after: Iterable[Outputs]) -> dict[str, Any]:
    """Returns how far the outputs of two models for the same rows are apart.

    `max_difference` is the largest difference of a log-probability, NaN if there is one; `same_argmax` is the share of
    positions with the same argmax, and `same_argmax_rows` counts the rows in which all are the same.
    """
    largest, rows, tokens, same, same_rows = 0.0, 0, 0, 0, 0
    for one, other in zip(before, after, strict=True):
        equal = one.argmax == other.argmax
        difference = float((one.log_probabilities - other.log_probabilities).abs().max())
        largest = largest if difference <= largest or math.isnan(largest) else difference  # NaN stays
        rows += 1
        tokens += len(equal)
        same += int(equal.sum())
        same_rows += int(equal.all())
    argmax = round(same / max(tokens, 1), 4)
    return {"rows": rows, "max_difference": largest, "same_argmax": argmax, "same_argmax_rows": same_rows}


def check_difference(facts: dict[str, Any], bound: float, hint: str) -> None:
    """Raises UserError, with the hint, if `max_difference` is above the bound, or is NaN."""
    if not facts["max_difference"] <= bound:
        raise sftrun.UserError(
            f"the merged model differs from the adapter by {facts['max_difference']:.3g} in a log-probability, "
            f"more than {bound:g}; it was not written",
            hint=hint,
        )


def _on_dequantised_base(model: Any, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Any:
    """Returns the adapter on the weights that the 4 or 8 bits of its base stand for."""
    plain = quantise.dequantise(model.unload(), compute.DTYPES[compute.precision(recipe)])
    return PeftModel.from_pretrained(plain, run.model).eval()


def _bound(recipe: sftrun.Recipe, quantisation: dict[str, Any] | None) -> float:
    options = quantisation or {}
    precisions = {compute.precision(recipe), options.get("compute_dtype", "auto")} - {"auto"}
    return max(BOUND_8_BIT if options.get("bits") == 8 else 0, *(BOUNDS[each] for each in precisions))


def _base(quantisation: dict[str, Any] | None) -> str:
    return f"dequantised from {quantisation['bits']} bits" if quantisation else "as it was"
