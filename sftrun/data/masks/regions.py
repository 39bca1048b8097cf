"""Regions: the text in a render that the model has to emit for one message, neither more nor less.

A region starts where the generation prompt ends, and ends with the token that ends the turn. Other text
than the message's own and the template's must not be in it, and all of the message's own must.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sftrun.data.masks.stand_ins import Leaf
from sftrun.data.masks.survey import Survey, excerpt, shared
from sftrun.data.masks.template import REASONING
from sftrun.errors import RowError
from sftrun.types import Message

_TOKEN = re.compile(r"<(?!/)[^<>\s]+>|\[(?!/)[^\[\]\s]+\]")
_NO_NAME = re.compile(r"begin|start|end|\W|_|▁")


class Region(NamedTuple):
    """`[start, end)` of a probe's render; the token that ends the turn is at `[cut, end)`.

    `left` is what the generation prompt has beyond `start`, if the message's own text begins there.
    """

    message: int
    start: int
    cut: int
    end: int
    left: str


def regions(survey: Survey, endings: Sequence[str] | None) -> list[Region]:
    """One region a message with the role `assistant`. Raises RowError where one cannot be proven.

    `endings` are the ends of plain answers; None where they are yet to be learned, from a talk of such.
    """
    messages = survey.probe.messages
    assistants = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    _check_asked(survey, assistants)
    return [_region(survey, message, endings) for message in assistants]


def _region(survey: Survey, message: int, endings: Sequence[str] | None) -> Region:
    start, left = survey.start(survey.whole, message)
    own = survey.own(survey.whole, message)
    _check_start(survey, message, start, own)
    text_end = own[-1] + 1 if own else start
    closing = _closing(survey, message, text_end, endings)
    end = text_end + len(closing)
    ending = _ending(survey, message, (start, end), closing, endings)
    _check_alone(survey, message, start, end)
    _check_complete(survey, message, end)
    return Region(message, start, end - len(ending), end, left if start in own else "")


def _check_start(survey: Survey, message: int, start: int, own: Sequence[int]) -> None:
    if own and own[0] < start:
        raise survey.refuse(message, "the template writes its text before the generation prompt")
    opening = survey.usual_opening
    if opening and opening in survey.whole.text[start : own[0] if own else start + len(opening)]:
        why = f"the template opens it with {opening!r}, which its generation prompt does not have here"
        raise survey.refuse(message, why)


def _closing(survey: Survey, message: int, text_end: int, endings: Sequence[str] | None) -> str:
    """What the template writes after a message's last text, up to the end of the turn."""
    whole = survey.whole
    after = whole.text[text_end : next((start for start, _ in whole.slots if start >= text_end), None)]
    if message == len(survey.probe.messages) - 1:
        return after.rstrip()
    tail = survey.tail(message)
    size = shared(tail, after)
    closing = after[:size].rstrip()
    is_end = bool(closing) if endings is None else closing.endswith(tuple(endings))
    if is_end or size >= len(tail.rstrip()):
        return closing
    return _closing_before_more(survey, message, after, endings or ())


def _closing_before_more(survey: Survey, message: int, after: str, endings: Sequence[str]) -> str:
    # Some templates end the last turn with one token and the others with another (gpt-oss: `<|return|>`
    # and `<|end|>`). What precedes the next generation prompt is then the end of this turn.
    opening, tail = survey.opening(message), survey.tail(message, prompt=True)
    closing = tail.removesuffix(opening).rstrip()
    if opening.strip() and tail.endswith(opening) and closing and after.startswith(closing):
        return closing
    # Or they write a message without texts in another way where more follows (Qwen3 leaves out the marks of
    # thoughts). An end that it has once where it is the last message, it has once here.
    alone = survey.tail(message)
    ends = [after.find(ending) + len(ending) for ending in endings if alone.count(ending) == 1 and ending in after]
    if ends and after[: min(ends)].count(opening.strip() or "\0") == 0:
        return after[: min(ends)]
    raise survey.refuse(message, f"its end cannot be told from what follows: {excerpt(after)}")


def _ending(survey: Survey, message: int, at: tuple[int, int], closing: str, endings: Sequence[str] | None) -> str:
    """The token that ends a turn: as the template ends plain answers, or, after a call, its last token."""
    if endings is None:
        return closing
    known = [ending for ending in endings if closing.endswith(ending)]
    if known or not endings or not survey.probe.messages[message].get("tool_calls"):
        return max(known, key=len, default="")
    tokens = _TOKEN.findall(survey.whole.text[at[0] : at[1]])
    if not tokens or not closing.endswith(tokens[-1]) or _only_closes(tokens):
        return ""
    if _opens_answer(survey, message, at[1]):
        why = f"{tokens[-1]} ends its call and opens the tool's answer, so it is not clear who writes it"
        raise survey.refuse(message, why)
    return str(tokens[-1])


def _only_closes(tokens: Sequence[str]) -> bool:
    """Whether the last token closes what another one opened, as `<|call_end|>` closes `<|call_begin|>`."""
    names = [_NO_NAME.sub("", token) for token in tokens]
    return names[-1] in names[:-1]


def _opens_answer(survey: Survey, message: int, end: int) -> bool:
    """Whether the end of a call goes on as the tool's answer, in the text or where such an answer follows."""
    if survey.whole.text[end : end + 1].isalnum():
        return True
    answer = {"role": "tool", "content": "x", "name": "x", "tool_call_id": "x"}
    try:
        text = survey.text([*survey.probe.messages[: message + 1], answer])
    except RowError:
        return False  # it takes no such answer
    call = survey.render(message + 1).text.rstrip()
    return not text.startswith(call) or text[len(call) : len(call) + 1].isalnum()


def _check_alone(survey: Survey, message: int, start: int, end: int) -> None:
    for at, number in survey.whole.slots:
        owner = survey.probe.slots[number].message
        if start <= at < end and owner != message:
            other = f"message {owner} ({survey.probe.role(owner)})"
            raise survey.refuse(message, f"the template puts the text of {other} into it")


def _check_complete(survey: Survey, message: int, end: int) -> None:
    """Every text of the message is in its region; the prompt may hold the beginning of it."""
    anchor, _ = survey.anchor(survey.whole, message)
    text = survey.whole.text[anchor:end]
    leaves = [leaf for leaf in survey.probe.leaves if leaf.message == message]
    for leaf in leaves:
        if leaf.is_answer and not _holds(text, leaf):
            why = (
                " (it takes </think> for the end of thoughts)" if any("</think>" in part for part in leaf.parts) else ""
            )
            raise survey.refuse(message, f"the template leaves out text of its {leaf.path[0]}{why}")
    for name in called(survey.probe.messages[message]):
        if name not in text:
            raise survey.refuse(message, f"the template leaves out its call of {name}")
    thoughts = [leaf for leaf in leaves if leaf.part == "reasoning"]
    # Templates drop the reasoning of older turns on purpose: the model does not see it again.
    seen = text if not thoughts else text + survey.render(message + 1).text
    if thoughts and not any(_holds(seen, leaf) for leaf in thoughts):
        name = next(step for step in thoughts[0].path if step in REASONING)
        why = f"the template never writes its {name}; take that out, or use another template"
        raise survey.refuse(message, why)


def _check_asked(survey: Survey, assistants: Sequence[int]) -> None:
    """No text of the other messages is left out: an answer would be learned without what it answers."""
    for leaf in survey.probe.leaves:
        if leaf.message not in assistants and leaf.is_answer and not _holds(survey.whole.text, leaf):
            raise survey.refuse(leaf.message, "the template leaves out its text; set model.chat_template to another")


def _holds(text: str, leaf: Leaf) -> bool:
    """Whether all stretches of a leaf are in a text, in order."""
    at = 0
    for part in leaf.parts:
        at = text.find(part.strip(), at)
        if at < 0:
            return False
        at += len(part.strip())
    return True


def called(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    calls = message.get("tool_calls")
    functions = [call.get("function", call) for call in calls or () if isinstance(call, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [name for name in names if isinstance(name, str)]
