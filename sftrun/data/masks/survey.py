"""Surveys: renders of messages with stand-ins and of their prefixes, to find the end of each generation prompt.

Renders are compared from the last slot on. Earlier text may differ: a template may drop the reasoning of older turns.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sftrun.data.masks.stand_ins import STAND_IN, MarkedText, StandIns, find_slots, unescape
from sftrun.data.masks.template import Template
from sftrun.errors import RowError
from sftrun.types import Message

_QUESTION = [{"role": "user", "content": "x"}]
_UNFINISHED = re.compile(r"[<\[][^<>\[\]\s]*$")
_WORD = re.compile(r"[^\s<>\[\]]+$")
_REASONING = re.compile(  # `<think>`, `[THINK]`, `<|START_THINKING|>`, `<|channel|>analysis`, `Here is my reasoning:`
    r"[<\[](?!/|\|end)[^<>\[\]]*(?:think|thought|reason|analysis|inner)[^<>\[\]]*[>\]]"
    r"|<\|channel\|>(?:analysis|thought)"
    r"|^[^\n]*\breason(?:ing|s)?\b[^\n]*:$",
    re.IGNORECASE | re.MULTILINE,
)
LONG = 48  # messages; of longer beginnings of a talk only the last ones are rendered, or the time would be quadratic
NEAR = 16  # messages before the one in question that are always rendered


class Survey:
    """Renders of messages with stand-ins, or of the first of them, with or without a generation prompt.

    With `shortens`, only the last of many first messages are rendered; the full render always has all of them.
    """

    def __init__(
        self,
        template: Template,
        stand_ins: StandIns,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        shortens: bool = False,
    ) -> None:
        self.stand_ins = stand_ins
        self.shortens = shortens and len(stand_ins.messages) > LONG
        self._template = template
        self._tools = tools
        self._kwargs = kwargs or {}
        self.full = find_slots(self.render_text(stand_ins.messages), stand_ins)
        self._renders: dict[tuple[int, bool], MarkedText] = {(len(stand_ins.messages), False): self.full}

    def render(self, count: int, prompt: bool = False) -> MarkedText:
        """Renders the first `count` messages, with a generation prompt if `prompt` is set."""
        if (count, prompt) not in self._renders:
            text = self.render_text(self.get_first(count), prompt)
            self._renders[count, prompt] = find_slots(text, self.stand_ins)
        return self._renders[count, prompt]

    def forget_shortened(self) -> None:
        """Renders all first messages from now on."""
        self.shortens = False
        self._renders.clear()

    def get_first(self, count: int) -> list[Message]:
        """Returns the first messages: all of them, or the system messages and the last ones, from a question on."""
        messages = self.stand_ins.messages
        if not self.shortens or count <= LONG:
            return messages[:count]
        head = next((at for at in range(count) if self.stand_ins.role(at) not in ("system", "developer")), 0)
        question = self._find_last("user", head, count - NEAR)
        begin = question + 1
        if count - begin > LONG:  # one question, then many calls and their answers
            begin = self._find_last("assistant", begin, count - NEAR)
        return [*messages[:head], messages[question], *messages[begin:count]]

    def _find_last(self, role: str, first: int, last: int) -> int:
        return next((at for at in range(last, first, -1) if self.stand_ins.role(at) == role), first)

    def render_text(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Renders any messages, with the same tools and variables."""
        text = self._template.render(messages, tools=self._tools, add_generation_prompt=prompt, **self._kwargs)
        return unescape(text, self.stand_ins)

    def is_stop_token(self, token: str) -> bool:
        """Returns True if the model's files say that it stops at a token."""
        return token in self._template.stop_tokens

    @property
    def eos_token(self) -> str:
        """The tokenizer's end-of-sequence token; empty if it has none."""
        return self._template.variables.get("eos_token", "")

    def find_own(self, marked: MarkedText, message: int) -> list[int]:
        """Returns the positions of a message's texts."""
        return [start for start, number in marked.slots if self.stand_ins.slots[number].message == message]

    def render_prompt(self, message: int) -> MarkedText:
        """Renders the text that the model continues with this message."""
        # The first text of a template may depend on the presence of a message.
        found = None if message else self._render_before(message)
        if found is not None:
            return found
        try:
            return self.render(message, prompt=True)
        except RowError as error:
            found = self._render_before(message)  # some templates refuse messages without a user
            if found is None:
                why = f"the messages before it cannot be rendered: {error}{self._advise_question(message)}"
                raise self.make_refusal(message, why) from None
            return found

    def _advise_question(self, message: int) -> str:
        roles = [self.stand_ins.role(index) for index in range(message)]
        return "" if "user" in roles else "; begin the row with a message of the user"

    def _render_before(self, message: int) -> MarkedText | None:
        """Returns the text before a message, if it ends with the usual generation prompt."""
        before = self.full.text[: next(iter(self.find_own(self.full, message)), 0)]
        opening = self.usual_prompt
        return find_slots(before, self.stand_ins) if opening and before.endswith(opening) else None

    @cached_property
    def usual_prompt(self) -> str:
        """The generation prompt after a question."""
        try:
            prompt, before = self.render_text(_QUESTION, prompt=True), self.render_text(_QUESTION)
        except RowError:
            return ""
        opening = prompt[len(before) :] if prompt.startswith(before) else ""
        return opening if opening.strip() else ""

    def get_opening(self, message: int) -> str:
        """Returns the generation prompt before a message; empty if the template does not just append it."""
        prompt, before = self.render_prompt(message).text, self.render(message).text
        return prompt[len(before) :] if prompt.startswith(before) else ""

    def find_anchor(self, marked: MarkedText, message: int) -> tuple[int, str]:
        """Returns the end of the last text before a message, and the rest of its prompt after that text."""
        prompt = self.render_prompt(message)
        if not prompt.slots:
            return 0, prompt.text
        last, number = prompt.slots[-1]
        limit = next(iter(self.find_own(marked, message)), len(marked.text))
        places = [start for start, other in marked.slots if other == number and start < limit]
        if not places:
            owner = self.stand_ins.slots[number].message
            raise self.make_refusal(message, f"the template does not write the text of message {owner} before it")
        return places[-1] + 1, prompt.text[last + 1 :]

    def find_start(self, marked: MarkedText, message: int) -> tuple[int, str]:
        """Returns the end of a message's prompt in a render, and the rest of the prompt that is not there.

        A text continues the generation prompt before it. The prompt may only hold more if it opens reasoning: it may
        end with `<think>` before an answer without thoughts. Their common beginning is then not generated.
        """
        anchor, tail = self.find_anchor(marked, message)
        size = count_shared(tail, marked.text[anchor:])
        if size < len(tail) and size < _find_reasoning(tail):
            raise self.make_refusal(message, _describe_mismatch(tail, marked.text[anchor:], size))
        return anchor + size, tail[size:]

    def has_prompt(self) -> bool:
        """Returns True if a generation prompt changes the render of a question."""
        try:
            return self.render_text(_QUESTION, prompt=True) != self.render_text(_QUESTION)
        except RowError:
            return True

    def get_tail(self, message: int, prompt: bool = False) -> str:
        """Returns the text after a message's last text if it is the last message."""
        marked = self.render(message + 1, prompt)
        here = [number for _, number in self.full.slots if self.stand_ins.slots[number].message == message]
        if not here:
            return marked.text[self.find_start(marked, message)[0] :]
        if not marked.slots or marked.slots[-1][1] != here[-1]:
            raise self.make_refusal(message, "the template writes its texts in another order if more messages follow")
        return marked.text[marked.slots[-1][0] + 1 :]

    def make_refusal(self, message: int, why: str) -> RowError:
        """Makes the error for a message whose text cannot be located."""
        return RowError(f"message {message} ({self.stand_ins.role(message)}): {why}")


def count_shared(first: str, second: str) -> int:
    """Counts the common characters at the start of two texts, in whole words and whole control tokens."""
    size = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if size is None:
        return min(len(first), len(second))
    size -= _match_length(_UNFINISHED.search(first[:size]))
    if first[size].isalnum() or second[size].isalnum():
        size -= _match_length(_WORD.search(first[:size]))
    return size


def is_reasoning_mark(text: str) -> bool:
    """Returns True if a template's text opens reasoning, as `<think>` does."""
    return _REASONING.match(text.strip()) is not None


def _find_reasoning(prompt: str) -> int:
    """Returns the length of a prompt up to the mark that opens reasoning; more than its length if there is none."""
    marks = list(_REASONING.finditer(prompt))
    return len(prompt[: marks[-1].start()].rstrip()) if marks else len(prompt) + 1


def _describe_mismatch(prompt: str, text: str, size: int) -> str:
    start = max(prompt.rfind("\n", 0, size) + 1, 0)
    found = (
        f"the generation prompt has {quote_excerpt(prompt[start:])} where the text has {quote_excerpt(text[start:])}"
    )
    written = STAND_IN.split(text, maxsplit=1)[0]
    differs = "; they differ in white space" if written.split() == prompt.split() else ""
    return f"{found}{differs}; write both alike in the chat template, or set model.chat_template to another"


def _match_length(match: re.Match[str] | None) -> int:
    return len(match[0]) if match else 0


def quote_excerpt(text: str, size: int = 24) -> str:
    """Quotes the beginning of a text, with an ellipsis for each stand-in."""
    text = STAND_IN.sub("…", text)
    return repr(text if len(text) <= size else text[:size] + "…")
