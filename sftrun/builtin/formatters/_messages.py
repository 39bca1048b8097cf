"""Messages in the shapes and spellings that people have them in, as OpenAI writes them."""

import difflib
from collections.abc import Sequence
from typing import Any

import sftrun
from sftrun.builtin.formatters._tools import Arguments, calls
from sftrun.builtin.formatters._values import cleaned, from_json, kind, shown

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLING = ("function_call", "tool_call")
"""Roles whose content is a call."""

PLAIN = ("user", "assistant", "system")
FLAGS = ("train", "weight", "loss")
REASONING = ("reasoning_content", "thinking", "reasoning")
NAMES = ("name", "tool_call_id")
CALLS = ("tool_calls", "function_call")
READ = frozenset({"role", "content", "from", "value", *FLAGS, *REASONING, *NAMES, *CALLS})


def are_plain(messages: Sequence[Any]) -> bool:
    """Whether messages need no reading, as most do: roles and texts alone, the last one an assistant's."""
    roles: Sequence[str] = PLAIN
    role = None
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return False
        role = message.get("role")
        if role not in roles or type(message.get("content")) is not str:
            return False
        roles = PLAIN[:2]
    return role == "assistant"


def messages(value: Any, column: str, arguments: Arguments) -> list[sftrun.Message]:
    """A column of messages, given as a list or as JSON text."""
    found = from_json(value, column) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise sftrun.RowError(f"{column} must be a list, not {kind(found)}")
    return [message(item, f"{column}[{index}]", arguments) for index, item in enumerate(found)]


def message(item: Any, where: str, arguments: Arguments) -> sftrun.Message:
    """One message; without what is null, because Arrow gives every message the keys of all."""
    if not isinstance(item, dict):
        raise sftrun.RowError(f"{where} must be an object, not {kind(item)}")
    if len(item) == 2 and item.get("role") in PLAIN and type(item.get("content")) is str:
        return item
    given = {key: each for key, each in item.items() if each is not None}
    _check_keys(given, where)
    role_key, content_key = ("from", "value") if "from" in given else ("role", "content")
    spelled = _role(given, role_key, where)
    if spelled in CALLING:
        given = _calling(given, spelled, content_key, where)
    role = ROLES[spelled]
    called = _calls(given, role, where, arguments)
    if not called and content_key not in item:
        raise sftrun.RowError(f"{where} has no '{content_key}'")
    # Templates that take a content for text fail on null, and none writes an empty text in another way.
    content = given.get(content_key, "" if called else None)
    return {
        "role": role,
        "content": _text(content, where),
        **_names(given, where),
        **_reasoning(given, role, where),
        **called,
        **_flag(given, where),
    }


def check(talk: Sequence[sftrun.Message]) -> None:
    """Raises RowError for messages that make no conversation to learn from."""
    if not talk:
        raise sftrun.RowError("the conversation is empty")
    for index, each in enumerate(talk):
        if each["role"] == "system" and index:
            raise sftrun.RowError(f"message {index}: a system prompt must come first")
    if talk[-1]["role"] != "assistant":
        raise sftrun.RowError(f"ends on a {talk[-1]['role']} turn; there is no answer to train on")


def _check_keys(given: dict[str, Any], where: str) -> None:
    for key in given:
        if key not in READ:
            close = difflib.get_close_matches(str(key), READ, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise sftrun.RowError(f"{where} has {shown(key)}, which is not read{hint}")
    for one, other in (("from", "role"), ("value", "content")):
        if one in given and other in given:
            raise sftrun.RowError(f"{where} has both '{one}' and '{other}'; keep one of them")


def _role(given: dict[str, Any], key: str, where: str) -> str:
    if key not in given:
        raise sftrun.RowError(f"{where} has no '{key}'")
    role = given[key]
    if not isinstance(role, str) or role not in ROLES:
        raise sftrun.RowError(f"{where} has the role {shown(role)}; known are {', '.join(ROLES)}")
    return role


def _text(content: Any, where: str) -> str:
    """A content, which may be given as parts that are all texts."""
    if isinstance(content, list) and content:
        return "".join(_part(cleaned(part, where), f"{where}, part {index}") for index, part in enumerate(content))
    if not isinstance(content, str):
        given = "an empty list" if content == [] else kind(content)
        raise sftrun.RowError(f"{where}: content must be a string, not {given}")
    return content


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise sftrun.RowError(f"{where} must be an object, not {kind(part)}")
    if part.get("type") != "text":
        raise sftrun.RowError(f"{where} has the type {shown(part.get('type'))}; only text is read")
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise sftrun.RowError(f"{where} must be {{'type': 'text', 'text': …}} and nothing else")
    return str(part["text"])


def _calling(given: dict[str, Any], role: str, content_key: str, where: str) -> dict[str, Any]:
    """ShareGPT's way to write a call, as a message with a role of its own, as a field of an assistant's message."""
    if "function_call" in given or not given.get(content_key):
        raise sftrun.RowError(f"{where} has the role {role}, so its {content_key} must be a call, as JSON")
    rest = {key: each for key, each in given.items() if key != content_key}
    return {**rest, "function_call": given[content_key]}


def _calls(given: dict[str, Any], role: str, where: str, arguments: Arguments) -> dict[str, Any]:
    there = [key for key in CALLS if given.get(key) not in (None, [], "", {})]
    if not there:
        return {}
    if len(there) > 1:
        raise sftrun.RowError(f"{where} has both tool_calls and function_call; keep one of them")
    if role != "assistant":
        raise sftrun.RowError(f"{where} has {there[0]}, but only an assistant calls tools; its role is {role}")
    return {"tool_calls": calls(given[there[0]], f"{where}.{there[0]}", arguments)}


def _names(given: dict[str, Any], where: str) -> dict[str, str]:
    return {key: _string(given[key], f"{where}.{key}") for key in NAMES if given.get(key) not in (None, "")}


def _reasoning(given: dict[str, Any], role: str, where: str) -> dict[str, str]:
    found = {key: _string(given[key], f"{where}.{key}") for key in REASONING if key in given}
    if role != "assistant":
        if any(found.values()):
            raise sftrun.RowError(f"{where} has {next(iter(found))}, but only an assistant reasons; its role is {role}")
        return {}
    if len(set(found.values())) > 1:
        raise sftrun.RowError(f"{where} has {' and '.join(found)} with different texts; keep one of them")
    return found


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise sftrun.RowError(f"{where} must be a string, not {kind(value)}")
    return value


def _flag(given: dict[str, Any], where: str) -> dict[str, bool]:
    """`train`, which is also spelled `weight` (0 or 1) and `loss`."""
    found = {key: given[key] for key in FLAGS if key in given}
    for key, value in found.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise sftrun.RowError(f"{where}.{key} must be true or false, or 1 or 0, not {shown(value)}")
    if len({bool(value) for value in found.values()}) > 1:
        raise sftrun.RowError(f"{where}: {' and '.join(found)} contradict each other; keep one of them")
    return {"train": any(found.values())} if found else {}
