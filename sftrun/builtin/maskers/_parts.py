"""What maskers share: which parts of an answer are trained, and where thoughts stand in a text."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated

import sftrun

Stretches = list[tuple[int, int]]
Narrow = Callable[[str], Stretches]

_NAMES = "think|thinking|thought|reasoning"
_MARK = re.compile(rf"<(?:{_NAMES})>|\[THINK\]|((?:</(?:{_NAMES})>|\[/THINK\])\s*)")
"""What opens thoughts in a content, or (group 1) closes them."""


class PartOptions(sftrun.Options):
    """Which parts of an answer are trained."""

    reasoning: Annotated[
        bool,
        sftrun.Meta(
            description="Train on thoughts: the message's reasoning, and what stands in think tags in its content."
        ),
    ] = True
    tool_calls: Annotated[bool, sftrun.Meta(description="Train on the calls of tools.")] = True
    end_of_turn: Annotated[bool, sftrun.Meta(description="Train on the token that ends an answer.")] = True


def takes(options: PartOptions, span: sftrun.Span) -> bool:
    """Whether a span is text of an answer and of a part that is trained."""
    if not span.generated:
        return False
    if span.end_of_turn:
        return options.end_of_turn
    return span.part == "content" or (options.reasoning if span.part == "reasoning" else options.tool_calls)


def with_ends(spans: Sequence[sftrun.Span], flags: Sequence[bool]) -> list[bool]:
    """The same without the ends of turns of whose text nothing is trained; that of an empty answer stays."""
    texts = [(span, flag) for span, flag in zip(spans, flags, strict=True) if span.generated and not span.end_of_turn]
    silent = {span.message for span, _ in texts} - {span.message for span, flag in texts if flag}
    return [flag and not (span.end_of_turn and span.message in silent) for span, flag in zip(spans, flags, strict=True)]


def narrower(options: PartOptions) -> Narrow | None:
    """What takes the thoughts out of a text; None where they are trained."""
    return None if options.reasoning else without_thoughts


def without_thoughts(text: str) -> Stretches:
    """The stretches of a text outside thoughts.

    A closing mark without an opening one ends thoughts that began before the text; an opening mark without a
    closing one begins thoughts that go on to its end.
    """
    found: Stretches = []
    begin: int | None = 0  # of what is outside thoughts
    for index, mark in enumerate(_MARK.finditer(text)):
        if mark[1] is None and begin is not None:
            found.append((begin, mark.start()))
            begin = None
        elif mark[1] and (begin is None or index == 0):
            begin = mark.end()
    found += [] if begin is None else [(begin, len(text))]
    return [(start, end) for start, end in found if start < end]
