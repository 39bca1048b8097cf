"""Judge `keyword`: words that an answer must have, and words that it must not have."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

import sftrun

SFTRUN_API = 1
Keyword = Annotated[str, sftrun.Meta(min_length=1)]


class KeywordOptions(sftrun.Options):
    """The keywords, and the penalty."""

    required: Annotated[
        tuple[Keyword, ...], sftrun.Meta(description="Words or phrases; the score is the share that the answer has.")
    ] = ()
    forbidden: Annotated[
        tuple[Keyword, ...], sftrun.Meta(description="Words or phrases that each cost the penalty.")
    ] = ()
    penalty: Annotated[
        float, sftrun.Meta(gt=0, le=1, description="Amount that each forbidden keyword takes off the score.")
    ] = 0.5


@sftrun.hookimpl
def register_judges(register: sftrun.Register) -> None:
    register("keyword", KeywordJudge, options=KeywordOptions)


class KeywordJudge:
    """The share of required keywords that an answer has, less a penalty for forbidden ones; case is ignored."""

    def __init__(self, options: KeywordOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        required, forbidden = (
            {word.casefold() for word in words} for words in (self.options.required, self.options.forbidden)
        )
        if not required | forbidden:
            yield sftrun.Problem("the judge keyword has no keywords", hint="add required or forbidden to its options")
        for word in sorted(required & forbidden):
            yield sftrun.Problem(f"the keyword {word!r} is both required and forbidden", hint="take one of them out")

    def grade(self, work: sftrun.kinds.Grading) -> sftrun.Grade:
        missing = [word for word in self.options.required if not _has(work.answer, word)]
        found = [word for word in self.options.forbidden if _has(work.answer, word)]
        share = 1 - len(missing) / len(self.options.required) if self.options.required else 1.0
        return sftrun.Grade(max(0.0, share - self.options.penalty * len(found)), _reason(missing, found))


def _has(answer: str, keyword: str) -> bool:
    # whole words: "fund" is not in "refund"
    return re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", answer, re.IGNORECASE) is not None


def _reason(missing: Sequence[str], found: Sequence[str]) -> str:
    reasons = [f"{what}: {', '.join(words)}" for what, words in (("missing", missing), ("forbidden", found)) if words]
    return "; ".join(reasons) or "all that is required, nothing that is forbidden"
