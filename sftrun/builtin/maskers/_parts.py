"""Shared parts of maskers: the trained parts of an answer, and the positions of thoughts in a text."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated

import sftrun

Stretches = list[tuple[int, int]]
Narrow = Callable[[str], Stretches]

_NAMES = "think|thinking|thought|reasoning"
_MARK = re.compile(rf"<(?:{_NAMES})>|\[THINK\]|((?:</(?:{_NAMES})>|\[/THINK\])\s*)")
"""Matches a mark that opens thoughts in a content, or (group 1) one that closes them."""


class PartOptions(sftrun.Options):
    """The parts of an answer that are trained."""

    reasoning: Annotated[
        bool,
        sftrun.Meta(description="Train on thoughts: the message's reasoning, and text in think tags of its content."),
    ] = True
    tool_calls: Annotated[bool, sftrun.Meta(description="Train on tool calls.")] = True
    end_of_turn: Annotated[bool, sftrun.Meta(description="Train on the end-of-turn token.")] = True


def is_chosen(options: PartOptions, span: sftrun.Span) -> bool:
    """Returns True for generated text of a part that is trained."""
    if not span.generated:
        return False
    if span.end_of_turn:
        return options.end_of_turn
    return span.part == "content" or (options.reasoning if span.part == "reasoning" else options.tool_calls)


def drop_silent_ends(spans: Sequence[sftrun.Span], flags: Sequence[bool]) -> list[bool]:
    """Unsets the flags of ends of turns in which no text is trained; the end of an empty answer stays."""
    texts = [(span, flag) for span, flag in zip(spans, flags, strict=True) if span.generated and not span.end_of_turn]
    silent = {span.message for span, _ in texts} - {span.message for span, flag in texts if flag}
    return [flag and not (span.end_of_turn and span.message in silent) for span, flag in zip(spans, flags, strict=True)]


def make_narrower(options: PartOptions) -> Narrow | None:
    """Returns a function that removes the thoughts from a text; None if they are trained."""
    return None if options.reasoning else find_outside_thoughts


def find_outside_thoughts(text: str) -> Stretches:
    """Returns the stretches of a text outside thoughts.

    A closing mark without an opening one ends thoughts that began before the text; an opening mark without a closing
    one begins thoughts that continue to its end.
    """
    found: Stretches = []
    begin: int | None = 0  # start of the current stretch; None inside thoughts
    for index, mark in enumerate(_MARK.finditer(text)):
        if mark[1] is None and begin is not None:
            found.append((begin, mark.start()))
            begin = None
        elif mark[1] and (begin is None or index == 0):
            begin = mark.end()
    if begin is not None:
        found.append((begin, len(text)))
    return [(start, end) for start, end in found if start < end]
