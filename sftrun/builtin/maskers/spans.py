"""Masker `spans`: train on stretches of the answers, such as the final answer after the working."""

import re
from collections.abc import Sequence
from typing import Annotated

import sftrun
from sftrun.builtin.maskers import _parts

PATH = ("masker", "with")
Mark = Annotated[str, sftrun.Meta(min_length=1)]


class SpansOptions(_parts.PartOptions):
    """The stretches to train on: matches of a pattern, or the text between two marks."""

    pattern: Annotated[
        str | None,
        sftrun.Meta(
            description="A regular expression of Python. The group named train is trained, or else the first group, "
            "or else the whole match."
        ),
    ] = None
    start: Annotated[
        Mark | None, sftrun.Meta(description="In place of a pattern: the text after this mark is trained…")
    ] = None
    end: Annotated[
        Mark | None, sftrun.Meta(description="…up to this mark, or to the end of the answer if the mark is missing.")
    ] = None
    reasoning: Annotated[bool, sftrun.Meta(description="Search thoughts too.")] = False
    tool_calls: Annotated[bool, sftrun.Meta(description="Search tool calls too.")] = False
    end_of_turn: Annotated[
        bool, sftrun.Meta(description="Train on the end-of-turn token, even if nothing in the answer is found.")
    ] = True


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("spans", Spans, options=SpansOptions)


class Spans:
    """Keep the loss on stretches of assistant turns that match a pattern or stand between marks."""

    def __init__(self, options: SpansOptions) -> None:
        self.options = options
        self.pattern = _compile_pattern(options)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        return [span.role == "assistant" and _parts.is_chosen(self.options, span) for span in spans]

    def narrow(self, text: str) -> list[tuple[int, int]]:
        whole = [(0, len(text))]
        seen = whole if self.options.reasoning else _parts.find_outside_thoughts(text)
        return [found for start, end in seen for found in self._find_matches(text[start:end], start)]

    def _find_matches(self, text: str, at: int) -> list[tuple[int, int]]:
        group = "train" if "train" in self.pattern.groupindex else min(self.pattern.groups, 1)
        spans = (match.span(group) for match in self.pattern.finditer(text))
        return [(at + start, at + end) for start, end in spans if start < end]


def _compile_pattern(options: SpansOptions) -> re.Pattern[str]:
    if (options.pattern is None) == (options.start is None):
        raise _make_error("set either pattern or start", PATH)
    if options.pattern is None:
        close = "" if options.end is None else re.escape(options.end) + "|"
        return re.compile(rf"{re.escape(str(options.start))}(.*?)(?:{close}\Z)", re.DOTALL)
    if options.end is not None:
        raise _make_error("end has no effect with a pattern", (*PATH, "end"))
    try:
        return re.compile(options.pattern)
    except re.error as error:
        raise _make_error(f"not a regular expression: {error}", (*PATH, "pattern")) from None


def _make_error(message: str, path: tuple[str, ...]) -> sftrun.UserError:
    return sftrun.UserError(sftrun.Problem(message, path=path))
