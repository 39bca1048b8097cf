"""Messages: reads the shapes and spellings in use, and returns OpenAI's."""

import difflib
from collections.abc import Sequence
from typing import Any

import sftrun
from sftrun.builtin.formatters._tools import Arguments, read_calls
from sftrun.builtin.formatters._values import describe_type, parse_json, quote_value, remove_nulls

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
CALL_ROLES = ("function_call", "tool_call")
"""Roles whose content is a call."""

PLAIN_ROLES = ("user", "assistant", "system")
FLAGS = ("train", "weight", "loss")
REASONING = ("reasoning_content", "thinking", "reasoning")
NAMES = ("name", "tool_call_id")
CALLS = ("tool_calls", "function_call")
KNOWN_KEYS = frozenset({"role", "content", "from", "value", *FLAGS, *REASONING, *NAMES, *CALLS})


def are_plain(read_messages: Sequence[Any]) -> bool:
    """Returns True for messages that need no conversion: only roles and texts, the last one an assistant's."""
    roles: Sequence[str] = PLAIN_ROLES
    role = None
    for read_message in read_messages:
        if type(read_message) is not dict or len(read_message) != 2:
            return False
        role = read_message.get("role")
        if role not in roles or type(read_message.get("content")) is not str:
            return False
        roles = PLAIN_ROLES[:2]
    return role == "assistant"


def read_messages(value: Any, column: str, arguments: Arguments) -> list[sftrun.Message]:
    """Reads a column of messages, given as a list or as JSON text."""
    found = parse_json(value, column) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise sftrun.RowError(f"{column} must be a list, not {describe_type(found)}")
    return [read_message(item, f"{column}[{index}]", arguments) for index, item in enumerate(found)]


def read_message(item: Any, where: str, arguments: Arguments) -> sftrun.Message:
    """Reads one message, without null values, because Arrow gives every message the keys of all."""
    if not isinstance(item, dict):
        raise sftrun.RowError(f"{where} must be an object, not {describe_type(item)}")
    if len(item) == 2 and item.get("role") in PLAIN_ROLES and type(item.get("content")) is str:
        return item
    given = {key: each for key, each in item.items() if each is not None}
    _check_keys(given, where)
    role_key, content_key = ("from", "value") if "from" in given else ("role", "content")
    spelled = _read_role(given, role_key, where)
    if spelled in CALL_ROLES:
        given = _move_call(given, spelled, content_key, where)
    role = ROLES[spelled]
    called = _read_calls(given, role, where, arguments)
    if not called and content_key not in item:
        raise sftrun.RowError(f"{where} has no '{content_key}'")
    # Templates that expect text fail on null, and no template treats an empty text differently.
    content = given.get(content_key, "" if called else None)
    return {
        "role": role,
        "content": _read_content(content, role, where),
        **_read_names(given, where),
        **_read_reasoning(given, role, where),
        **called,
        **_read_flag(given, where),
    }


def check_conversation(conversation: Sequence[sftrun.Message]) -> None:
    """Raises RowError for messages that are no conversation to learn from."""
    if not conversation:
        raise sftrun.RowError("the conversation is empty")
    for index, each in enumerate(conversation):
        if each["role"] == "system" and index:
            raise sftrun.RowError(f"message {index}: a system prompt must come first")
    if conversation[-1]["role"] != "assistant":
        raise sftrun.RowError(f"ends on a {conversation[-1]['role']} turn; there is no answer to train on")


def _check_keys(given: dict[str, Any], where: str) -> None:
    for key in given:
        if key not in KNOWN_KEYS:
            close = difflib.get_close_matches(str(key), KNOWN_KEYS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise sftrun.RowError(f"{where} has {quote_value(key)}, which is not read{hint}")
    for one, other in (("from", "role"), ("value", "content")):
        if one in given and other in given:
            raise sftrun.RowError(f"{where} has both '{one}' and '{other}'; keep one of them")


def _read_role(given: dict[str, Any], key: str, where: str) -> str:
    if key not in given:
        raise sftrun.RowError(f"{where} has no '{key}'")
    role = given[key]
    if not isinstance(role, str) or role not in ROLES:
        raise sftrun.RowError(f"{where} has the role {quote_value(role)}; known roles: {', '.join(ROLES)}")
    return role


def _read_content(content: Any, role: str, where: str) -> str:
    """Reads a content, given as a text or as parts that are all texts."""
    if content is None and role == "assistant":
        hint = "write an answer, or remove the row"
        raise sftrun.RowError(f"{where}: content must be a string, not null; {hint}", sftrun.errors.EMPTY_ANSWER)
    if isinstance(content, list) and content:
        return "".join(
            _read_part(remove_nulls(part, where), f"{where}, part {index}") for index, part in enumerate(content)
        )
    if not isinstance(content, str):
        given = "an empty list" if content == [] else describe_type(content)
        raise sftrun.RowError(f"{where}: content must be a string, not {given}")
    return content


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise sftrun.RowError(f"{where} must be an object, not {describe_type(part)}")
    if part.get("type") != "text":
        raise sftrun.RowError(f"{where} has the type {quote_value(part.get('type'))}; only text is read")
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise sftrun.RowError(f"{where} must be {{'type': 'text', 'text': …}} and nothing else")
    return str(part["text"])


def _move_call(given: dict[str, Any], role: str, content_key: str, where: str) -> dict[str, Any]:
    """Moves ShareGPT's call, a message with its own role, into a field of an assistant's message."""
    if "function_call" in given or not given.get(content_key):
        raise sftrun.RowError(f"{where} has the role {role}, so its {content_key} must be a call, as JSON")
    rest = {key: each for key, each in given.items() if key != content_key}
    return {**rest, "function_call": given[content_key]}


def _read_calls(given: dict[str, Any], role: str, where: str, arguments: Arguments) -> dict[str, Any]:
    present = [key for key in CALLS if given.get(key) not in (None, [], "", {})]
    if not present:
        return {}
    if len(present) > 1:
        raise sftrun.RowError(f"{where} has both tool_calls and function_call; keep one of them")
    if role != "assistant":
        raise sftrun.RowError(f"{where} has {present[0]}, but only an assistant calls tools; its role is {role}")
    return {"tool_calls": read_calls(given[present[0]], f"{where}.{present[0]}", arguments)}


def _read_names(given: dict[str, Any], where: str) -> dict[str, str]:
    return {key: _check_string(given[key], f"{where}.{key}") for key in NAMES if given.get(key) not in (None, "")}


def _read_reasoning(given: dict[str, Any], role: str, where: str) -> dict[str, str]:
    found = {key: _check_string(given[key], f"{where}.{key}") for key in REASONING if key in given}
    if role != "assistant":
        if any(found.values()):
            raise sftrun.RowError(f"{where} has {next(iter(found))}, but only an assistant reasons; its role is {role}")
        return {}
    if len(set(found.values())) > 1:
        raise sftrun.RowError(f"{where} has {' and '.join(found)} with different texts; keep one of them")
    return found


def _check_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise sftrun.RowError(f"{where} must be a string, not {describe_type(value)}")
    return value


def _read_flag(given: dict[str, Any], where: str) -> dict[str, bool]:
    """Reads `train`, also spelled `weight` (0 or 1) and `loss`."""
    found = {key: given[key] for key in FLAGS if key in given}
    for key, value in found.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise sftrun.RowError(f"{where}.{key} must be true or false, or 1 or 0, not {quote_value(value)}")
    if len({bool(value) for value in found.values()}) > 1:
        raise sftrun.RowError(f"{where}: {' and '.join(found)} contradict each other; keep one of them")
    return {"train": any(found.values())} if found else {}
