"""Renders of a probe and of its beginnings, and where the generation prompt ends in them.

Everything is compared from the last slot on: what a template writes earlier (it may drop the reasoning of
older turns) does not matter.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sftrun.data.masks.stand_ins import STAND_IN, Marked, Probe, mark
from sftrun.data.masks.template import Template
from sftrun.errors import RowError
from sftrun.types import Message

_QUESTION = [{"role": "user", "content": "x"}]
_UNFINISHED = re.compile(r"[<\[][^<>\[\]\s]*$")
_WORD = re.compile(r"[^\s<>\[\]]+$")


class Survey:
    """Renders the messages of a probe, or the first of them, with or without a generation prompt."""

    def __init__(
        self,
        template: Template,
        probe: Probe,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.probe = probe
        self._template = template
        self._tools = tools
        self._kwargs = kwargs or {}
        self._renders: dict[tuple[int, bool], Marked] = {}
        self.whole = self.render(len(probe.messages))

    def render(self, count: int, prompt: bool = False) -> Marked:
        """The first `count` messages, with a generation prompt if `prompt` is set."""
        if (count, prompt) not in self._renders:
            text = self.text(self.probe.messages[:count], prompt)
            self._renders[count, prompt] = mark(text, self.probe)
        return self._renders[count, prompt]

    def text(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Any messages, with the probe's tools and variables."""
        return self._template.render(messages, tools=self._tools, add_generation_prompt=prompt, **self._kwargs)

    def own(self, marked: Marked, message: int) -> list[int]:
        """Where the texts of a message are."""
        return [start for start, number in marked.slots if self.probe.slots[number].message == message]

    def prompt(self, message: int) -> Marked:
        """The text that the model continues with this message."""
        # What a template writes first may depend on there being a message at all.
        found = None if message else self._before(message)
        if found is not None:
            return found
        try:
            return self.render(message, prompt=True)
        except RowError as error:
            found = self._before(message)  # some templates render nothing without a user's message
            if found is None:
                raise self.refuse(message, f"the messages before it cannot be rendered: {error}") from None
            return found

    def _before(self, message: int) -> Marked | None:
        """The text before a message, where it ends as every generation prompt does."""
        before = self.whole.text[: next(iter(self.own(self.whole, message)), 0)]
        opening = self.usual_opening
        return mark(before, self.probe) if opening and before.endswith(opening) else None

    @cached_property
    def usual_opening(self) -> str:
        """The generation prompt after a question."""
        try:
            prompt, before = self.text(_QUESTION, prompt=True), self.text(_QUESTION)
        except RowError:
            return ""
        opening = prompt[len(before) :] if prompt.startswith(before) else ""
        return opening if opening.strip() else ""

    def opening(self, message: int) -> str:
        """The generation prompt before a message; empty if the template does not just append it."""
        prompt, before = self.prompt(message).text, self.render(message).text
        return prompt[len(before) :] if prompt.startswith(before) else ""

    def anchor(self, marked: Marked, message: int) -> tuple[int, str]:
        """The end of the last text before a message, and what its prompt has after that text."""
        prompt = self.prompt(message)
        if not prompt.slots:
            return 0, prompt.text
        last, number = prompt.slots[-1]
        limit = next(iter(self.own(marked, message)), len(marked.text))
        places = [start for start, other in marked.slots if other == number and start < limit]
        if not places:
            owner = self.probe.slots[number].message
            raise self.refuse(message, f"the text of message {owner}, which leads to it, is not before it")
        return places[-1] + 1, prompt.text[last + 1 :]

    def start(self, marked: Marked, message: int) -> tuple[int, str]:
        """Where the prompt of a message ends in a render, and what of the prompt is left there.

        A prompt may hold more than the text goes on with: it may end with `<think>` where the answer has no
        thoughts. What both have in common is not generated; the rest of the text is.
        """
        anchor, tail = self.anchor(marked, message)
        size = shared(tail, marked.text[anchor:])
        left = tail[size:]
        if left and not self._reaches_opening(message, size, len(tail)):
            found = marked.text[anchor + size :]
            why = f"the generation prompt has {excerpt(left)} where the text has {excerpt(found)}"
            raise self.refuse(message, why)
        return anchor + size, left

    def _reaches_opening(self, message: int, size: int, whole: int) -> bool:
        """Whether `size` characters of a prompt's tail hold more than the end of the turn before."""
        if self.prompt(message).text.startswith(self.render(message).text):
            return size > whole - len(self.opening(message))
        return size > 0

    def tail(self, message: int, prompt: bool = False) -> str:
        """What comes after a message's last text where it is the last message."""
        marked = self.render(message + 1, prompt)
        here = [number for _, number in self.whole.slots if self.probe.slots[number].message == message]
        if not here:
            return marked.text[self.start(marked, message)[0] :]
        if not marked.slots or marked.slots[-1][1] != here[-1]:
            raise self.refuse(message, "the template writes it in another order where more messages follow")
        return marked.text[marked.slots[-1][0] + 1 :]

    def refuse(self, message: int, why: str) -> RowError:
        """The error for a message whose text cannot be placed."""
        return RowError(f"message {message} ({self.probe.role(message)}): {why}")


def shared(first: str, second: str) -> int:
    """How far two texts agree, counted in whole words and whole control tokens."""
    size = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if size is None:
        return min(len(first), len(second))
    size -= _length(_UNFINISHED.search(first[:size]))
    if first[size].isalnum() or second[size].isalnum():
        size -= _length(_WORD.search(first[:size]))
    return size


def _length(match: re.Match[str] | None) -> int:
    return len(match[0]) if match else 0


def excerpt(text: str, size: int = 24) -> str:
    """The beginning of a text, quoted, with an ellipsis for each stand-in."""
    text = STAND_IN.sub("…", text)
    return repr(text if len(text) <= size else text[:size] + "…")
