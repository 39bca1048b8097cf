"""The texts of messages: read and rewritten, whatever shape they have."""

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any, Literal

import sftrun

Split = Literal["train", "val", "test"]
Splits = Annotated[tuple[Split, ...], sftrun.Meta(min_length=1, description="Splits to work on.")]
ALL_SPLITS: tuple[Split, ...] = ("train", "val", "test")
Change = Callable[[str], str]

NAMES = {"role", "name", "id", "tool_call_id", "type"}  # strings of a message that are no text
# Scripts without spaces are read sign by sign. What is left out ends and joins sentences; other signs tell
# `2+2` from `2-2`.
ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
LETTER = re.compile(rf"[^\W{ALONE}]")
WORD = re.compile(rf"[{ALONE}]|[^\W{ALONE}]+|[^\w\s.,;:!?'\"’‘“”„«»…。、，！？]")


def contents(message: sftrun.Message) -> list[str]:
    """The content of a message as texts: one, one for each text part, or none."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in found if isinstance(text, str)]


def of_roles(talk: sftrun.Conversation, roles: Collection[str]) -> list[str]:
    """The contents of the messages of some roles, in order."""
    return [text for message in talk.messages if message.get("role") in roles for text in contents(message)]


def with_content(message: sftrun.Message, change: Change) -> sftrun.Message:
    """A message with each text of its content changed."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return {**message, "content": [_part(part, change) for part in content]} if isinstance(content, list) else message


def _part(part: Any, change: Change) -> Any:
    if isinstance(part, str):
        return change(part)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": change(part["text"])}
    return part


def rewritten(message: sftrun.Message, change: Change) -> sftrun.Message:
    """A message with all its texts changed: content, reasoning, and the arguments of tool calls."""
    made = {
        key: change(value) if isinstance(value, str) and key not in NAMES else value for key, value in message.items()
    }
    if isinstance(made.get("content"), list):
        made = with_content(made, change)
    if isinstance(made.get("tool_calls"), list):
        made["tool_calls"] = [_call(call, change) for call in made["tool_calls"]]
    return made


def _call(call: Any, change: Change) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call(call["function"], change)}
    return {**call, "arguments": _arguments(call["arguments"], change)} if "arguments" in call else call


def _arguments(arguments: Any, change: Change) -> Any:
    """Arguments, or the JSON text of them, which stays JSON."""
    if not isinstance(arguments, str):
        return _inside(arguments, change)
    try:
        read = json.loads(arguments)
    except ValueError:
        return change(arguments)
    made = _inside(read, change)
    return arguments if made == read else json.dumps(made, ensure_ascii=False)


def _inside(value: Any, change: Change) -> Any:
    if isinstance(value, dict):
        return {key: _inside(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_inside(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def strings(message: sftrun.Message) -> list[str]:
    """All texts of a message: those that `rewritten` changes."""
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    rewritten(message, keep)
    return found


def below(value: Any) -> Iterator[str]:
    """Every string below a value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from below(inner)


def words(text: str) -> list[str]:
    """The words of a text, for comparing: case, width and punctuation do not count."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def is_text(message: sftrun.Message) -> bool:
    """Whether a content is nothing but text."""
    content = message.get("content")
    return not isinstance(content, list) or len(contents(message)) == len(content)
