"""Evaluator `loss`: loss, perplexity and token accuracy on the trained tokens of prepared splits."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import sftrun


class LossOptions(sftrun.Options):
    """Which splits are scored."""

    splits: Annotated[
        tuple[Literal["train", "val", "test"], ...],
        sftrun.Meta(min_length=1, description="Splits to score; one that the data has not is left out."),
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

    def score(self, model: sftrun.Model, prompts: Mapping[str, Sequence[sftrun.Prompt]]) -> sftrun.Scores:
        metrics: dict[str, float] = {}
        for split in self.splits:
            sums = model.losses(split)
            if sums and sums.tokens:
                loss = sums.loss / sums.tokens
                metrics[f"{split}_loss"] = loss
                metrics[f"{split}_perplexity"] = math.exp(min(loss, 700))
                metrics[f"{split}_token_accuracy"] = sums.correct / sums.tokens
        return sftrun.Scores(metrics)
