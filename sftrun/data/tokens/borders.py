"""Borders: trained texts whose first or last token also holds text that is not trained.

A tokenizer may join the space at the end of a prompt with the first word of the answer. The model never emits such a
token after that prompt, so it is not trained; without a word, the answer would lose its first word in silence.
"""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sftrun.types import Rendered, Span

OPTION = "model.space_to_answer: true"


class Joined(NamedTuple):
    """A token that is not trained because it also holds other text: a description, what to change, and what is lost.

    With `loses_all`, no token of the message's text is trained, at most its end of turn or the rest of that.
    """

    reason: str
    hint: str
    loses_all: bool


class SplitBorders(msgspec.Struct):
    """The rows of one split with a joined token: their number, and the first of them."""

    rows: int
    origin: str
    reason: str
    hint: str


class Borders:
    """The rows of a preparation in which a trained text loses a token at its border, by split."""

    def __init__(self) -> None:
        self.splits: dict[str, SplitBorders] = {}

    def add(self, split: str, origin: str, found: Joined) -> None:
        """Counts a row."""
        if split in self.splits:
            self.splits[split].rows += 1
        else:
            self.splits[split] = SplitBorders(1, origin, found.reason, found.hint)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts and the first row of each split, for the mask proof."""
        return {split: msgspec.to_builtins(found) for split, found in self.splits.items()}


def find_joined(rendered: Rendered, token: tuple[int, int], inside: Any, kept: set[int]) -> Joined:
    """Describes a joined token, given as its characters `[start, end)`.

    `inside[n]` counts the trained characters before character n; `kept` are the messages whose text has a trained
    token.
    """
    start, end = token
    is_trained = [bool(inside[at + 1] > inside[at]) for at in range(start, end)]
    first = start + is_trained.index(True)
    span = _find_span(rendered.spans, first)
    lost = "".join(rendered.text[at] for at in range(start, end) if is_trained[at - start])
    loses_all = span.message not in kept and not span.end_of_turn and bool(lost.strip())
    if span.end_of_turn and start < span.start and not _find_span(rendered.spans, start).generated:
        return _describe_lost_end(rendered, token, span)
    who = f"message {span.message} ({span.role})" if span.message >= 0 else "the template's text"
    what = "none of its text is trained" if loses_all else f"{lost!r} is not trained"
    where = "before" if first > start else "after"
    token_text = rendered.text[start:end]
    reason = f"{who}: {what}: the tokenizer joins it with the text {where} it into the token {token_text!r}"
    return Joined(reason, _advise(rendered, start, first, span), loses_all)


def _describe_lost_end(rendered: Rendered, token: tuple[int, int], span: Span) -> Joined:
    """Describes the token that the end of an empty answer shares with the template's text before the answer."""
    end, shared = rendered.text[span.start : span.end], rendered.text[slice(*token)]
    reason = (
        f"message {span.message} ({span.role}): its end {end!r} is not trained as a whole: the answer is empty, so the "
        f"tokenizer joins the end with the text before it into the token {shared!r}"
    )
    return Joined(reason, "remove the empty answer, or set its train to false with masker: flagged", True)


def _advise(rendered: Rendered, start: int, first: int, span: Span) -> str:
    other = _find_span(rendered.spans, start)
    if first == start:
        return "end the trained text with a whole word or a line break"
    if other.message == span.message and other.role == span.role and other.generated:
        return "let the masker begin before the space, so that a whole token is trained"
    if rendered.text[start:first].strip(" \t"):
        return "begin the answer with a letter or a digit, not with white space or a mark"
    if other.message < 0:
        return f"set {OPTION}, or remove the space from the end of the template's generation prompt"
    return f"move the space from the end of the prompt to the beginning of the answer, or set {OPTION}"


def _find_span(spans: Sequence[Span], at: int) -> Span:
    return spans[bisect.bisect_right(spans, at, key=lambda span: span.end)]
