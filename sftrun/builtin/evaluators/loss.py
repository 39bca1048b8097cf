"""Evaluator `loss`: loss, perplexity and token accuracy on the trained tokens of prepared splits."""

import math
from typing import Annotated, Literal

import sftrun


class LossOptions(sftrun.Options):
    """The splits to score."""

    splits: Annotated[
        tuple[Literal["train", "val", "test"], ...],
        sftrun.Meta(min_length=1, description="Splits to score; a split that the data do not have is left out."),
    ] = ("val", "test")


@sftrun.hookimpl
def register_evaluators(register: sftrun.Register) -> None:
    register("loss", Loss, options=LossOptions)


class Loss:
    """Loss (nats a token), perplexity and token accuracy on trained tokens, per split.

    Perplexity is exp(loss); accuracy is the share of trained tokens that are the argmax (teacher forcing).
    """

    def __init__(self, options: LossOptions) -> None:
        self.splits = options.splits

    def score(self, work: sftrun.kinds.Scoring) -> sftrun.Scores:
        metrics: dict[str, sftrun.Measure] = {}
        for split in self.splits:
            sums = work.model.losses(split)
            if sums and sums.tokens:
                loss = sums.loss / sums.tokens
                metrics[f"{split}_loss"] = _cost(loss, 0.0)
                metrics[f"{split}_perplexity"] = _cost(math.exp(min(loss, 700)), 1.0)
                metrics[f"{split}_token_accuracy"] = sftrun.Measure(sums.correct / sums.tokens, per_row=False)
        return sftrun.Scores(metrics)


def _cost(value: float, lowest: float) -> sftrun.Measure:
    return sftrun.Measure(value, higher_is_better=False, range=(lowest, None), per_row=False)
