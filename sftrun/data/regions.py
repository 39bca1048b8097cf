"""Where, in the render of a probe, the text is that the model has to emit.

A region starts after the generation prompt and ends with the token that ends the turn. Both are found by
rendering the messages before it, with and without a generation prompt, and comparing from the last slot on:
what a template writes earlier (it may drop the reasoning of older turns) does not matter.
"""

import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

from sftrun.data.probe import Leaf, Marked, Probe, mark
from sftrun.data.template import Template
from sftrun.errors import RowError

_UNFINISHED = re.compile(r"[<\[][^<>\[\]\s]*$")
_WORD = re.compile(r"[^\s<>\[\]]+$")
_TOKEN = re.compile(r"<(?!/)[^<>\s]+>|\[(?!/)[^\[\]\s]+\]")
_QUESTION = [{"role": "user", "content": "x"}]
_PAIR = re.compile(r"begin|start|end|\W|_|▁")


class Region(NamedTuple):
    """`[start, end)` of a probe's render: what the model emits for one message.

    The token that ends the turn is at `[cut, end)`. `left` is what the generation prompt has beyond `start`,
    if the message's own text begins there.
    """

    message: int
    start: int
    cut: int
    end: int
    left: str


def refuse(probe: Probe, message: int, why: str) -> RowError:
    """The error for a message whose text cannot be placed."""
    return RowError(f"message {message} ({probe.role(message)}): {why}")


def shared(first: str, second: str) -> int:
    """How far two texts agree, counted in whole words and whole control tokens."""
    size = len(commonprefix([first, second]))
    if size in (len(first), len(second)):
        return size
    size -= _length(_UNFINISHED.search(first[:size]))
    if first[size].isalnum() or second[size].isalnum():
        size -= _length(_WORD.search(first[:size]))
    return size


def _length(match: re.Match[str] | None) -> int:
    return len(match[0]) if match else 0


class Survey:
    """Renders a probe and its beginnings, and finds the region of each assistant message.

    `endings` are the ends of plain answers; None where they are yet to be learned, from a talk of such.
    """

    def __init__(
        self,
        template: Template,
        probe: Probe,
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any],
        endings: Sequence[str] | None = None,
    ) -> None:
        self._endings = endings
        self._template = template
        self._probe = probe
        self._tools = tools
        self._kwargs = kwargs
        self._renders: dict[tuple[int, bool], Marked] = {}
        self.marked = self._render(len(probe.messages))

    def regions(self) -> list[Region]:
        """One region a message with the role `assistant`. Raises RowError where one cannot be proven."""
        roles = [message.get("role") for message in self._probe.messages]
        return [self._region(index) for index, role in enumerate(roles) if role == "assistant"]

    def _render(self, count: int, prompt: bool = False) -> Marked:
        if (count, prompt) not in self._renders:
            messages = self._probe.messages[:count]
            text = self._template.render(messages, tools=self._tools, add_generation_prompt=prompt, **self._kwargs)
            self._renders[count, prompt] = mark(text, self._probe)
        return self._renders[count, prompt]

    def _owners(self, marked: Marked) -> list[tuple[int, int]]:
        return [(start, self._probe.slots[number].message) for start, number in marked.slots]

    def _own(self, marked: Marked, message: int) -> list[int]:
        return [start for start, owner in self._owners(marked) if owner == message]

    def _region(self, message: int) -> Region:
        prompt = self._prompt(message)
        start, left = self._start(self.marked, prompt, message)
        own = self._own(self.marked, message)
        if own and own[0] < start:
            raise refuse(self._probe, message, "the template writes its text before the generation prompt")
        if opening := self._usual_opening():
            if self.marked.text.startswith(opening, start):
                why = f"the template opens it with {opening!r}, which its generation prompt does not have here"
                raise refuse(self._probe, message, why)
        text_end = own[-1] + 1 if own else start
        end = text_end + len(self._closing(message, prompt, text_end))
        region = Region(message, start, end - len(self._ending(message, start, text_end, end)), end, left)
        self._check_alone(region)
        self._check_complete(region)
        return region

    def _prompt(self, message: int) -> Marked:
        """The text that the model continues with this message."""
        try:
            return self._render(message, prompt=True)
        except RowError as error:
            # Some templates render nothing without a user's message; the text before must then end as
            # every generation prompt does.
            before = self.marked.text[: next(iter(self._own(self.marked, message)), 0)]
            opening = self._usual_opening()
            if opening and before.endswith(opening):
                return mark(before, self._probe)
            raise refuse(self._probe, message, f"the messages before it cannot be rendered: {error}") from None

    def _usual_opening(self) -> str:
        """The generation prompt after a question."""
        try:
            prompt = self._template.render(_QUESTION, add_generation_prompt=True, **self._kwargs)
            before = self._template.render(_QUESTION, **self._kwargs)
        except RowError:
            return ""
        opening = prompt[len(before) :] if prompt.startswith(before) else ""
        return opening if opening.strip() else ""

    def _start(self, marked: Marked, prompt: Marked, message: int) -> tuple[int, str]:
        """Where `marked` leaves the prompt, and what of the prompt is left there."""
        anchor, tail = self._anchor(marked, prompt, message)
        size = shared(tail, marked.text[anchor:])
        start = anchor + size
        if size == len(tail):
            return start, ""
        if not self._reaches_prompt(message, prompt, size, len(tail)):
            expected, found = _excerpt(tail[size:]), _excerpt(marked.text[start:])
            raise refuse(self._probe, message, f"the generation prompt has {expected} where the text has {found}")
        at_own_text = start in self._own(marked, message)
        return start, tail[size:] if at_own_text else ""

    def _anchor(self, marked: Marked, prompt: Marked, message: int) -> tuple[int, str]:
        """The end of the last text before a message, and what the prompt has after it."""
        if not prompt.slots:
            return 0, prompt.text
        last, number = prompt.slots[-1]
        limit = next(iter(self._own(marked, message)), len(marked.text))
        places = [start for start, other in marked.slots if other == number and start < limit]
        if not places:
            owner = self._probe.slots[number].message
            raise refuse(self._probe, message, f"the text of message {owner}, which leads to it, is not before it")
        return places[-1] + 1, prompt.text[last + 1 :]

    def _reaches_prompt(self, message: int, prompt: Marked, size: int, whole: int) -> bool:
        """Whether the first `size` characters of the prompt's tail hold more than the end of the last turn."""
        before = self._render(message).text
        if prompt.text.startswith(before):
            return size > whole - (len(prompt.text) - len(before))
        return size > 0

    def _closing(self, message: int, prompt: Marked, text_end: int) -> str:
        after = self._until_slot(self.marked, text_end)
        if message == len(self._probe.messages) - 1:
            return after.rstrip()
        tail = self._tail(self._render(message + 1), prompt, message)
        size = shared(tail, after)
        closing = after[:size].rstrip()
        if self._is_end(closing) or size >= len(tail.rstrip()):
            return closing
        closing = self._closing_before_more(message, prompt, after)
        if closing is None:
            raise refuse(self._probe, message, f"its end cannot be told from what follows: {_excerpt(after)}")
        return closing

    def _is_end(self, closing: str) -> bool:
        if self._endings is None:
            return bool(closing)
        return closing.endswith(tuple(self._endings))

    def _closing_before_more(self, message: int, prompt: Marked, after: str) -> str | None:
        # Some templates end the last turn with one token and the others with another (gpt-oss: `<|return|>`
        # and `<|end|>`). What precedes the next generation prompt is then the end of this turn.
        before = self._render(message).text
        opening = prompt.text[len(before) :] if prompt.text.startswith(before) else ""
        tail = self._tail(self._render(message + 1, prompt=True), prompt, message)
        closing = tail.removesuffix(opening).rstrip()
        if opening.strip() and tail.endswith(opening) and closing and after.startswith(closing):
            return closing
        # Or write an empty answer shorter where more follows: its end is then the next thing there.
        known = [ending for ending in self._endings or () if after.startswith(ending)]
        return max(known, key=len, default=None)

    def _ending(self, message: int, start: int, text_end: int, end: int) -> str:
        """The token that ends a turn: as the template ends plain answers, or, after a call, its last token."""
        closing = self.marked.text[text_end:end]
        if self._endings is None:
            return closing
        known = [ending for ending in self._endings if closing.endswith(ending)]
        if known or not self._endings or not self._probe.messages[message].get("tool_calls"):
            return max(known, key=len, default="")
        tokens = _TOKEN.findall(self.marked.text[start:end])
        if not tokens or not closing.endswith(tokens[-1]) or _is_paired(tokens):
            return ""
        if self._is_glued(message, end):
            why = f"{tokens[-1]} ends its call and opens the tool's answer, so it is not clear who writes it"
            raise refuse(self._probe, message, why)
        return str(tokens[-1])

    def _is_glued(self, message: int, end: int) -> bool:
        """Whether the end of a call goes on as the tool's answer, in the text or where such an answer follows."""
        if self.marked.text[end : end + 1].isalnum():
            return True
        answer = {"role": "tool", "content": "x", "name": "x", "tool_call_id": "x"}
        messages = [*self._probe.messages[: message + 1], answer]
        try:
            text = self._template.render(messages, tools=self._tools, **self._kwargs)
        except RowError:
            return False  # it takes no such answer
        call = self._render(message + 1).text.rstrip()
        return not text.startswith(call) or text[len(call) : len(call) + 1].isalnum()

    def _tail(self, marked: Marked, prompt: Marked, message: int) -> str:
        """What comes after a message's last text where that message is the last one."""
        here = [number for _, number in self.marked.slots if self._probe.slots[number].message == message]
        if not here:
            return marked.text[self._start(marked, prompt, message)[0] :]
        if not marked.slots or marked.slots[-1][1] != here[-1]:
            raise refuse(self._probe, message, "the template writes it in another order where more messages follow")
        return marked.text[marked.slots[-1][0] + 1 :]

    def _until_slot(self, marked: Marked, start: int) -> str:
        return marked.text[start : next((at for at, _ in marked.slots if at >= start), None)]

    def _check_alone(self, region: Region) -> None:
        for start, owner in self._owners(self.marked):
            if region.start <= start < region.end and owner != region.message:
                other = f"message {owner} ({self._probe.role(owner)})"
                raise refuse(self._probe, region.message, f"the template puts the text of {other} into it")

    def _check_complete(self, region: Region) -> None:
        """Every text of the message is in its region; the prompt may hold the beginning of it."""
        _, prompt_tail = self._anchor(self.marked, self._prompt(region.message), region.message)
        text = self.marked.text[max(0, region.start - len(prompt_tail)) : region.end]
        leaves = [leaf for leaf in self._probe.leaves if leaf.message == region.message]
        for leaf in leaves:
            if leaf.is_answer and not _holds(text, leaf):
                hint = "; give its thoughts as reasoning_content" if "</think>" in leaf.parts else ""
                raise refuse(self._probe, leaf.message, f"the template leaves out text of its {leaf.path[0]}{hint}")
        for name in _called(self._probe.messages[region.message]):
            if name not in text:
                raise refuse(self._probe, region.message, f"the template leaves out its call of {name}")
        reasoning = [leaf for leaf in leaves if leaf.is_reasoning]
        if reasoning and not any(_holds(text, leaf) or self._shown_when_last(leaf) for leaf in reasoning):
            why = f"the template never writes its {reasoning[0].path[0]}; take that out, or use another template"
            raise refuse(self._probe, region.message, why)

    def _shown_when_last(self, leaf: Leaf) -> bool:
        # Templates drop the reasoning of older turns on purpose: the model does not see it again.
        return _holds(self._render(leaf.message + 1).text, leaf)


def _is_paired(tokens: Sequence[str]) -> bool:
    """Whether the last token only closes what another one opened, as `<|call_end|>` closes `<|call_begin|>`."""
    names = [_PAIR.sub("", token) for token in tokens]
    return names[-1] in names[:-1]


def _holds(text: str, leaf: Leaf) -> bool:
    """Whether all stretches of a leaf are in a text, in order."""
    at = 0
    for part in leaf.parts:
        at = text.find(part.strip(), at)
        if at < 0:
            return False
        at += len(part.strip())
    return True


def _called(message: Mapping[str, Any]) -> list[str]:
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str)]


def _excerpt(text: str, size: int = 24) -> str:
    return repr(text if len(text) <= size else text[:size] + "…")
