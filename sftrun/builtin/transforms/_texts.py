"""The texts of messages in any shape: reads and rewrites them."""

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import Any

import sftrun

Change = Callable[[str], str]

NOT_TEXT = {"role", "name", "id", "tool_call_id", "type"}  # keys of a message whose strings are no text
# Scripts without spaces count each character as a word. Punctuation is ignored; other signs are words, so that
# `2+2` differs from `2-2`.
UNSPACED_SCRIPTS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
LETTER = rf"[^\W{UNSPACED_SCRIPTS}]"
WORD = rf"[{UNSPACED_SCRIPTS}]|[^\W{UNSPACED_SCRIPTS}]+|[^\w\s.,;:!?'\"’‘“”„«»…。、，！？]"


def get_texts(message: sftrun.Message) -> list[str]:
    """Returns the texts of a message's content: one, one for each text part, or none."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in found if isinstance(text, str)]


def get_role_texts(conversation: sftrun.Conversation, roles: Collection[str]) -> list[str]:
    """Returns the texts of the messages with some roles, in order."""
    return [text for message in conversation.messages if message.get("role") in roles for text in get_texts(message)]


def change_content(message: sftrun.Message, change: Change) -> sftrun.Message:
    """Returns a message with each text of its content changed."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return (
        {**message, "content": [_change_part(part, change) for part in content]}
        if isinstance(content, list)
        else message
    )


def _change_part(part: Any, change: Change) -> Any:
    if isinstance(part, str):
        return change(part)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": change(part["text"])}
    return part


def rewrite(message: sftrun.Message, change: Change) -> sftrun.Message:
    """Returns a message with all its texts changed: content, reasoning, and the arguments of tool calls."""
    changed = {
        key: change(value) if isinstance(value, str) and key not in NOT_TEXT else value
        for key, value in message.items()
    }
    if isinstance(changed.get("content"), list):
        changed = change_content(changed, change)
    if isinstance(changed.get("tool_calls"), list):
        changed["tool_calls"] = [_change_call(call, change) for call in changed["tool_calls"]]
    return changed


def _change_call(call: Any, change: Change) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _change_call(call["function"], change)}
    return {**call, "arguments": _change_arguments(call["arguments"], change)} if "arguments" in call else call


def _change_arguments(arguments: Any, change: Change) -> Any:
    """Changes arguments, given as a value or as JSON text, which stays JSON."""
    if not isinstance(arguments, str):
        return _change_inside(arguments, change)
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        return change(arguments)
    changed = _change_inside(read, change)
    return arguments if changed == read else json.dumps(changed, ensure_ascii=False)


def _change_inside(value: Any, change: Change) -> Any:
    if isinstance(value, dict):
        return {key: _change_inside(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_change_inside(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def list_strings(message: sftrun.Message) -> list[str]:
    """Returns all texts of a message that `rewrite` changes."""
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    rewrite(message, keep)
    return found


def find_strings(value: Any) -> Iterator[str]:
    """Yields every string inside a value, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from find_strings(inner)


def split_words(text: str) -> list[str]:
    """Splits a text into words for comparison: case, width and punctuation do not count."""
    return re.findall(WORD, unicodedata.normalize("NFKC", text).casefold())


def is_text_only(message: sftrun.Message) -> bool:
    """Returns True if a content is nothing but text."""
    content = message.get("content")
    return not isinstance(content, list) or len(get_texts(message)) == len(content)
