"""Checks answers before they are trained: an empty one would teach the model to stop at once."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from sftrun.errors import EMPTY_ANSWER, RowError
from sftrun.types import Message

INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode categories: control, format, and separators
OTHER_TEXTS = ("tool_calls", "reasoning_content", "thinking", "reasoning")  # keys of an answer that is not empty
ANSWERING = ("assistant", "completion", "text")  # roles of messages that are answers


def check_answers(messages: Sequence[Message], find_trained: Callable[[], set[int]]) -> None:
    """Raises RowError if a trained answer is empty; `find_trained` returns the indices of the trained answers."""
    empty = [index for index, message in enumerate(messages) if _is_empty_answer(message)]
    for index in sorted(set(empty) & find_trained()) if empty else ():
        who = f"message {index} ({messages[index]['role']})"
        why = "only its end of turn would be trained; write an answer, or remove the row"
        raise RowError(f"{who} is empty: {why}", EMPTY_ANSWER)


def _is_empty_answer(message: Message) -> bool:
    return (
        message.get("role") in ANSWERING
        and _is_blank(message.get("content"))
        and not any(message.get(key) for key in OTHER_TEXTS)
    )


def _is_blank(content: Any) -> bool:
    """Returns True for a content without a visible character: a text, a list of parts, or nothing."""
    if isinstance(content, str):
        return all(unicodedata.category(char) in INVISIBLE for char in content)
    if isinstance(content, list):
        return all(isinstance(part, dict) and _is_blank(part.get("text")) for part in content)
    return content is None
