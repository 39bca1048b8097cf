"""Masker `spans`: train on marked stretches of the answers, such as the final answer after the working."""

import re
from collections.abc import Sequence
from typing import Annotated

import sftrun
from sftrun.builtin.maskers import _parts

WHERE = ("masker", "with")
Mark = Annotated[str, sftrun.Meta(min_length=1)]


class SpansOptions(_parts.PartOptions):
    """What is trained: what a pattern matches, or what stands between two marks."""

    pattern: Annotated[
        str | None,
        sftrun.Meta(
            description="A regular expression of Python. Of a match, the group named train is trained, else the first "
            "group, else all of it."
        ),
    ] = None
    start: Annotated[
        Mark | None, sftrun.Meta(description="In place of a pattern: what follows this mark is trained…")
    ] = None
    end: Annotated[
        Mark | None, sftrun.Meta(description="…up to this mark, or to the end of the answer where there is none.")
    ] = None
    reasoning: Annotated[bool, sftrun.Meta(description="Look in thoughts too.")] = False
    tool_calls: Annotated[bool, sftrun.Meta(description="Look in the calls of tools too.")] = False
    end_of_turn: Annotated[
        bool, sftrun.Meta(description="Train on the token that ends an answer, also where nothing in it is found.")
    ] = True


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("spans", Spans, options=SpansOptions)


class Spans:
    """Keep the loss on stretches of assistant turns that a pattern or marks point out."""

    def __init__(self, options: SpansOptions) -> None:
        self.options = options
        self.pattern = _pattern(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return [span.role == "assistant" and _parts.takes(self.options, span) for span in spans]

    def narrow(self, text: str) -> list[tuple[int, int]]:
        whole = [(0, len(text))]
        seen = whole if self.options.reasoning else _parts.without_thoughts(text)
        return [found for start, end in seen for found in self._found(text[start:end], start)]

    def _found(self, text: str, at: int) -> list[tuple[int, int]]:
        group = "train" if "train" in self.pattern.groupindex else min(self.pattern.groups, 1)
        spans = (match.span(group) for match in self.pattern.finditer(text))
        return [(at + start, at + end) for start, end in spans if start < end]


def _pattern(options: SpansOptions) -> re.Pattern[str]:
    if (options.pattern is None) == (options.start is None):
        raise _wrong("give either a pattern or a start", WHERE)
    if options.pattern is None:
        close = "" if options.end is None else re.escape(options.end) + "|"
        return re.compile(rf"{re.escape(str(options.start))}(.*?)(?:{close}\Z)", re.DOTALL)
    if options.end is not None:
        raise _wrong("end has no effect with a pattern", (*WHERE, "end"))
    try:
        return re.compile(options.pattern)
    except re.error as error:
        raise _wrong(f"not a regular expression: {error}", (*WHERE, "pattern")) from None


def _wrong(message: str, path: tuple[str, ...]) -> sftrun.UserError:
    return sftrun.UserError(sftrun.Problem(message, path=path))
