"""Answers of a model to held-out prompts, for evaluators that compare them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import sftrun


class AnswerOptions(sftrun.Options):
    """Which prompts are answered, and how."""

    split: Annotated[
        Literal["val", "test"] | None,
        sftrun.Meta(description="Split whose prompts are answered; null for test, or val where there is no test."),
    ] = None
    limit: Annotated[
        Annotated[int, sftrun.Meta(ge=1)] | None,
        sftrun.Meta(description="Prompts used, the first ones of the split; null for all."),
    ] = 200
    max_new_tokens: Annotated[int, sftrun.Meta(ge=1, description="Longest answer, in tokens.")] = 256
    batch_size: Annotated[int, sftrun.Meta(ge=1, description="Prompts answered at a time.")] = 16


def pick(options: AnswerOptions, prompts: Mapping[str, Sequence[sftrun.Prompt]]) -> Sequence[sftrun.Prompt]:
    """The prompts that the options ask for; raises UserError where there are none."""
    split = options.split or ("test" if "test" in prompts else "val")
    if not prompts.get(split):
        there = ", ".join(prompts) or "none"
        raise sftrun.UserError(
            f"no held-out prompts in the split {split} (there are: {there})", hint="add a test.jsonl"
        )
    return prompts[split][: options.limit]


def answer(options: AnswerOptions, model: sftrun.Model, prompts: Sequence[sftrun.Prompt]) -> list[str]:
    """Greedy answers, white space at both ends left out."""
    made = model.generate([prompt.ids for prompt in prompts], options.max_new_tokens, options.batch_size)
    return [model.decode(ids).strip() for ids in made]


def sample(prompt: sftrun.Prompt, text: str, **found: Any) -> dict[str, Any]:
    """One sample of an evaluator's scores."""
    shared = {"origin": prompt.origin, "messages": prompt.messages, "reference": prompt.reference}
    return {**shared, "answer": text, **found}
