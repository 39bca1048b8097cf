"""Checks answers before they are trained: an empty one would teach the model to stop at once."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from sftrun.errors import EMPTY_ANSWER, RowError
from sftrun.types import Message

INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode categories: control, format, and separators
OTHER_TEXTS = ("tool_calls", "reasoning_content", "thinking", "reasoning")  # keys of an answer that is not empty
ANSWERING = ("assistant", "completion", "text")  # roles of messages that are answers


def find_empty(messages: Sequence[Message]) -> list[int]:
    """Returns the indices of answers without a text, a call or reasoning."""
    return [
        index
        for index, message in enumerate(messages)
        if message["role"] in ANSWERING
        and _is_blank(message.get("content"))
        and not any(message.get(key) for key in OTHER_TEXTS)
    ]


def make_empty_answer(messages: Sequence[Message], index: int) -> RowError:
    """Makes the error for an empty answer that is trained."""
    who = f"message {index} ({messages[index]['role']})"
    why = "only its end of turn would be trained; write an answer, or remove the row"
    return RowError(f"{who} is empty: {why}", EMPTY_ANSWER)


def remove_ends(messages: Sequence[Message], ends: tuple[str, ...], plain: bool) -> list[Message] | None:
    """Returns messages without end-of-turn tokens at the ends of answers; None if there are none.

    In plain text, only the last message is an answer that ends.
    """
    found = None
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            return None  # the renderer refuses it
        if (index == len(messages) - 1) if plain else (message.get("role") == "assistant"):
            content = message.get("content")
            text = _remove_end(content, ends) if isinstance(content, str) else content
            if text is not content:
                found = list(messages) if found is None else found
                found[index] = {**message, "content": text}
    return found


def _remove_end(text: str, ends: tuple[str, ...]) -> str:
    while (short := text.rstrip()).endswith(ends):
        text = short.removesuffix(next(end for end in ends if short.endswith(end)))
    return text


def _is_blank(content: Any) -> bool:
    """Returns True for a content without a visible character: a text, a list of parts, or nothing."""
    if isinstance(content, str):
        return not content[:1].isalnum() and all(unicodedata.category(char) in INVISIBLE for char in content)
    if isinstance(content, list):
        return all(isinstance(part, dict) and _is_blank(part.get("text")) for part in content)
    return content is None
