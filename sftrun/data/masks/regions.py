"""Regions: the text of a render that the model has to emit for one message, no more and no less.

A region starts after the generation prompt and ends with the end-of-turn token. It must contain all text of its
message, and no text of another one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sftrun.data.masks.refusal import THOUGHTS
from sftrun.data.masks.stand_ins import Leaf
from sftrun.data.masks.survey import Survey, count_shared, quote_excerpt
from sftrun.data.masks.template import REASONING
from sftrun.errors import RowError
from sftrun.types import Message

_TOKEN = re.compile(r"<(?!/)[^<>\s]+>|\[(?!/)[^\[\]\s]+\]")
_NO_NAME = re.compile(r"begin|start|end|\W|_|▁")


class Region(NamedTuple):
    """A region `[start, end)` of a render with stand-ins; its end-of-turn token is at `[cut, end)`.

    `left` is the part of the generation prompt beyond `start`, if the message's own text begins there.
    """

    message: int
    start: int
    cut: int
    end: int
    left: str


class Ends(NamedTuple):
    """The ends that a template writes after plain answers.

    `texts` are the texts that end turns; None while the conventions of the template are being learned. `opens` is the
    beginning of a next turn that the template writes after the last answer. Some answers get no end unless the template
    `is_complete`; `eot_token` of the recipe then ends them.
    """

    texts: tuple[str, ...] | None = None
    opens: str = ""
    is_complete: bool = True
    eot_token: str | None = None


def find_regions(survey: Survey, ends: Ends) -> list[Region]:
    """Returns one region for each message with the role `assistant`; raises RowError if one cannot be proven."""
    messages = survey.stand_ins.messages
    assistants = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    _check_questions(survey, assistants)
    return [_find_region(survey, message, ends) for message in assistants]


def _find_region(survey: Survey, message: int, ends: Ends) -> Region:
    start, left = survey.find_start(survey.full, message)
    own = survey.find_own(survey.full, message)
    _check_start(survey, message, start, own)
    text_end = own[-1] + 1 if own else start
    closing = _find_closing(survey, message, text_end, ends)
    end = text_end + len(closing)
    ending = _find_ending(survey, message, (start, end), closing, ends)
    if ends.eot_token and not ends.is_complete and not ending:
        end, ending = _find_written_token(survey, message, end, ends.eot_token)
    _check_other_messages(survey, message, start, end)
    _check_own_texts(survey, message, end)
    _check_stop(survey, message, start, end - len(ending))
    return Region(message, start, end - len(ending), end, left if start in own else "")


def _find_written_token(survey: Survey, message: int, end: int, token: str) -> tuple[int, str]:
    """Returns the end of an answer, after the recipe's token if the template writes it there, and the token.

    The token may open the next turn, as `<|user|>` does: the model emits it. It cannot end an answer before another
    turn.
    """
    text = survey.full.text
    after = text[end : next((at for at, _ in survey.full.slots if at >= end), None)]
    if after.lstrip().startswith(token):
        return end + after.index(token) + len(token), token
    first = text[: next((at for at, _ in survey.full.slots), 0)]
    if after.strip() and token in first and not first.startswith(token):  # a text may begin with the token as BOS
        why = f"model.eot_token {token!r} opens another turn than the one that follows: {quote_excerpt(after)}"
        raise survey.make_refusal(message, why)
    return end, ""


def _check_start(survey: Survey, message: int, start: int, own: Sequence[int]) -> None:
    if own and own[0] < start:
        raise survey.make_refusal(message, "the template writes its text before the generation prompt")
    opening = survey.usual_prompt
    if opening and opening in survey.full.text[start : own[0] if own else start + len(opening)]:
        why = f"the template opens it with {opening!r}, which its generation prompt does not have here"
        raise survey.make_refusal(message, why)


def _find_closing(survey: Survey, message: int, text_end: int, ends: Ends) -> str:
    """Returns the template's text after a message's last text, up to the end of the turn."""
    whole = survey.full
    after = whole.text[text_end : next((start for start, _ in whole.slots if start >= text_end), None)]
    if message == len(survey.stand_ins.messages) - 1:
        return _cut_next_turn(after, ends.opens)
    tail = _cut_next_turn(survey.get_tail(message), ends.opens)
    size = count_shared(tail, after)
    closing = after[:size].rstrip()
    is_end = bool(closing) if ends.texts is None else closing.endswith(ends.texts)
    if is_end or (size >= len(tail) and (tail or not _has_end(after, ends))):
        return closing
    return _find_closing_before_more(survey, message, after, ends)


def _cut_next_turn(text: str, opens: str) -> str:
    """Removes the beginning of a next turn from the end of a text."""
    return text.rstrip().removesuffix(opens.rstrip()).rstrip()


def _has_end(after: str, ends: Ends) -> bool:
    return any(end in after for end in ends.texts or ())


def _find_closing_before_more(survey: Survey, message: int, after: str, ends: Ends) -> str:
    # Some templates end the last turn with one token and the others with another (gpt-oss: `<|return|>`
    # and `<|end|>`). The end of this turn then precedes the next generation prompt.
    opening, tail = survey.get_opening(message), survey.get_tail(message, prompt=True)
    closing = tail.removesuffix(opening).rstrip()
    if opening.strip() and tail.endswith(opening) and closing and after.startswith(closing):
        return closing
    # Other templates write a message without texts in another way if more messages follow (Qwen3 leaves out the
    # marks of thoughts). An end that the message has once as the last message, it has once here. Others again end
    # every turn but the last one.
    alone = survey.get_tail(message)
    known = [end for end in ends.texts or () if alone.count(end) == 1 or not alone.strip()]
    found = [after.find(end) + len(end) for end in known if end in after]
    if found and after[: min(found)].count(opening.strip() or "\0") == 0:
        return after[: min(found)]
    if not ends.is_complete and not _has_end(after, ends):
        return ""  # only the last turn has an end
    raise survey.make_refusal(message, f"its end cannot be separated from what follows: {quote_excerpt(after)}")


def _find_ending(survey: Survey, message: int, at: tuple[int, int], closing: str, ends: Ends) -> str:
    """Returns the end-of-turn token: the usual one or, after a call, the last token of the closing text."""
    if ends.texts is None:
        return closing
    known = [ending for ending in ends.texts if closing.endswith(ending)]
    if known or not ends.texts or not survey.stand_ins.messages[message].get("tool_calls"):
        return max(known, key=len, default="")
    tokens = _TOKEN.findall(survey.full.text[at[0] : at[1]])
    if not tokens or not closing.endswith(tokens[-1]) or _closes_a_pair(tokens):
        return ""
    if not survey.is_stop_token(tokens[-1]) and _opens_tool_answer(survey, message, at[1]):
        why = f"{tokens[-1]} ends its call and opens the tool's answer, so it is not clear who writes that token"
        advice = "if the model stops at it, add its id to eos_token_id in the model's generation_config.json"
        raise survey.make_refusal(message, f"{why}; {advice}")
    return str(tokens[-1])


def _closes_a_pair(tokens: Sequence[str]) -> bool:
    """Returns True if the last token closes an earlier one, as `<|call_end|>` closes `<|call_begin|>`."""
    names = [_NO_NAME.sub("", token) for token in tokens]
    return names[-1] in names[:-1]


def _opens_tool_answer(survey: Survey, message: int, end: int) -> bool:
    """Returns True if the tool's answer continues the end of a call, in this text or with an answer added."""
    if survey.full.text[end : end + 1].isalnum():
        return True
    answer = {"role": "tool", "content": "x", "name": "x", "tool_call_id": "x"}
    try:
        text = survey.render_text([*survey.get_first(message + 1), answer])
    except RowError:
        return False  # the template takes no such answer
    call = survey.render(message + 1).text.rstrip()
    return not text.startswith(call) or text[len(call) : len(call) + 1].isalnum()


def _check_other_messages(survey: Survey, message: int, start: int, end: int) -> None:
    for at, number in survey.full.slots:
        owner = survey.stand_ins.slots[number].message
        if start <= at < end and owner != message:
            other = f"message {owner} ({survey.stand_ins.role(owner)})"
            raise survey.make_refusal(message, f"the template puts the text of {other} into it")


def _check_stop(survey: Survey, message: int, start: int, cut: int) -> None:
    """Raises RowError if the template writes the stop token before the end of a region: no model goes on after it."""
    token = survey.eos_token
    if token and token in survey.full.text[start:cut]:
        why = f"the template writes the stop token {token!r} in the middle of it, as if it were two turns"
        advice = "if one of its texts is empty, leave it out or set it to null"
        raise survey.make_refusal(message, f"{why}; {advice}")


def _check_own_texts(survey: Survey, message: int, end: int) -> None:
    """Raises RowError unless the region has every text of its message; the prompt may hold the beginning."""
    anchor, _ = survey.find_anchor(survey.full, message)
    text = survey.full.text[anchor:end]
    leaves = [leaf for leaf in survey.stand_ins.leaves if leaf.message == message]
    for leaf in leaves:
        if leaf.is_answer and not _contains(text, leaf):
            why = (
                f" (it reads </think> as the end of thoughts); {THOUGHTS}"
                if any("</think>" in part for part in leaf.parts)
                else ""
            )
            raise survey.make_refusal(message, f"the template leaves out text of its {leaf.path[0]}{why}")
    for name in find_called_names(survey.stand_ins.messages[message]):
        if name not in text:
            raise survey.make_refusal(message, f"the template leaves out its call of {name}")
    thoughts = [leaf for leaf in leaves if leaf.part == "reasoning"]
    # Templates drop the reasoning of older turns on purpose: the model never reads it again.
    seen = text if not thoughts else text + survey.render(message + 1).text
    if thoughts and not any(_contains(seen, leaf) for leaf in thoughts):
        name = next(step for step in thoughts[0].path if step in REASONING)
        why = f"the template never writes its {name}; remove it from the rows, or use another template"
        raise survey.make_refusal(message, why)


def _check_questions(survey: Survey, assistants: Sequence[int]) -> None:
    """Raises RowError if text of another message is left out: the answer would be learned without its question."""
    for leaf in survey.stand_ins.leaves:
        if leaf.message not in assistants and leaf.is_answer and not _contains(survey.full.text, leaf):
            raise survey.make_refusal(
                leaf.message, "the template leaves out its text; set model.chat_template to another"
            )


def _contains(text: str, leaf: Leaf) -> bool:
    """Returns True if a text contains every part of a leaf, in order."""
    at = 0
    for part in leaf.parts:
        at = text.find(part.strip(), at)
        if at < 0:
            return False
        at += len(part.strip())
    return True


def find_called_names(message: Message) -> list[str]:
    """Returns the names of the functions that a message calls."""
    calls = message.get("tool_calls")
    functions = [call.get("function", call) for call in calls or () if isinstance(call, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [name for name in names if isinstance(name, str)]
