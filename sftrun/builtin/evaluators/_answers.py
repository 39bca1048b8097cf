"""Answers of a model to held-out prompts, for evaluators that compare them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import sftrun


class AnswerOptions(sftrun.Options):
    """The prompts to answer, and the settings of generation."""

    split: Annotated[
        Literal["val", "test"] | None,
        sftrun.Meta(description="Split whose prompts are answered; null for test, or val if there is no test."),
    ] = None
    limit: Annotated[
        Annotated[int, sftrun.Meta(ge=1)] | None,
        sftrun.Meta(description="Prompts used, the first ones of the split; null for all."),
    ] = 200
    max_new_tokens: Annotated[int, sftrun.Meta(ge=1, description="Largest number of tokens of an answer.")] = 256
    batch_size: Annotated[int, sftrun.Meta(ge=1, description="Prompts answered at a time.")] = 16


def check_prompts(options: AnswerOptions, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
    """Yields a problem if the data have no prompts in the split of the options."""
    splits = [split for split in ("test", "val") if (run.prepared / f"prompts-{split}.jsonl").is_file()]
    if not splits or (options.split and options.split not in splits):
        message = f"no held-out prompts to answer: the data have no rows in {options.split or 'test or val'}"
        hint = "add a test.jsonl, raise the source's val_share, or leave the evaluator out"
        yield sftrun.Problem(message, path=("evaluators",), hint=hint)


def pick(options: AnswerOptions, prompts: Mapping[str, Sequence[sftrun.Prompt]]) -> Sequence[sftrun.Prompt]:
    """Returns the prompts that the options ask for; raises UserError if there are none."""
    split = options.split or ("test" if "test" in prompts else "val")
    if not prompts.get(split):
        raise sftrun.UserError(f"there are no held-out prompts in {split}", hint="add a test.jsonl")
    return prompts[split][: options.limit]


def answer(options: AnswerOptions, model: sftrun.kinds.Model, prompts: Sequence[sftrun.Prompt]) -> list[str]:
    """Returns greedy answers, without white space at both ends."""
    decoding = sftrun.types.Decoding(max_new_tokens=options.max_new_tokens, batch_size=options.batch_size)
    answers = model.generate([prompt.ids for prompt in prompts], decoding)
    return [model.decode(ids).strip() for ids in answers]


def sample(prompt: sftrun.Prompt, text: str, **scores: Any) -> dict[str, Any]:
    """Returns one sample of an evaluator's scores; `scores` has its values by name."""
    shared = {"origin": prompt.origin, "messages": prompt.messages, "reference": prompt.reference}
    return {**shared, "answer": text, **scores}
