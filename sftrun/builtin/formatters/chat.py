"""Formatter `chat`: conversations in the shapes that people have them in."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

import sftrun

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
FIELDS = ("system", "user", "assistant")


class ChatFields(sftrun.Options):
    """Names of the columns of a row that holds one question and one answer."""

    system: Annotated[str | None, sftrun.Meta(description="Column of the system prompt.")] = "system"
    user: Annotated[str, sftrun.Meta(description="Column of the question.")] = "user"
    assistant: Annotated[str, sftrun.Meta(description="Column of the answer.")] = "assistant"


class ChatOptions(sftrun.Options):
    """How a row is read."""

    fields: Annotated[
        ChatFields, sftrun.Meta(description="Columns of single-turn rows, where they are not system/user/assistant.")
    ] = ChatFields()


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("chat", Chat, options=ChatOptions)


class Chat:
    """Rows with `messages`, `conversations` (role/content or from/value), or system/user/assistant columns."""

    def __init__(self, options: ChatOptions) -> None:
        self.fields = options.fields

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        messages = self._shape(row.data)(row.data)
        _check(messages)
        return sftrun.Conversation(messages, row.origin)

    def _shape(self, data: dict[str, Any]) -> Callable[[dict[str, Any]], list[sftrun.Message]]:
        shapes: list[str] = [name for name in ("messages", "conversations") if name in data]
        if self.fields.user in data and self.fields.assistant in data:
            shapes.append("columns")
        if len(shapes) > 1:
            raise sftrun.RowError(f"fits several shapes at once: {' and '.join(shapes)}; keep one of them")
        if not shapes:
            wanted = f"messages, conversations, or {self.fields.user} and {self.fields.assistant}"
            raise sftrun.RowError(f"has the keys {', '.join(data) or '(none)'}, but needs {wanted}")
        return {"messages": _messages, "conversations": _conversations, "columns": self._columns}[shapes[0]]

    def _columns(self, data: dict[str, Any]) -> list[sftrun.Message]:
        names = {"system": self.fields.system, "user": self.fields.user, "assistant": self.fields.assistant}
        present = {role: name for role, name in names.items() if name in data}
        if present.get("system") and not data[str(names["system"])]:
            del present["system"]
        return [{"role": role, "content": data[str(name)]} for role, name in present.items()]


def _messages(data: dict[str, Any]) -> list[sftrun.Message]:
    return _with_system(data, _list(data, "messages"))


def _conversations(data: dict[str, Any]) -> list[sftrun.Message]:
    return _with_system(data, _list(data, "conversations"))


def _list(data: dict[str, Any], key: str) -> list[sftrun.Message]:
    if not isinstance(data[key], list):
        raise sftrun.RowError(f"{key} must be a list, not {_kind(data[key])}")
    return [_message(item, f"{key}[{index}]") for index, item in enumerate(data[key])]


def _message(item: Any, where: str) -> sftrun.Message:
    if not isinstance(item, dict):
        raise sftrun.RowError(f"{where} must be an object, not {_kind(item)}")
    role_key, content_key = ("from", "value") if "from" in item else ("role", "content")
    for key in (role_key, content_key):
        if key not in item:
            raise sftrun.RowError(f"{where} has no '{key}'")
    unread = [key for key, value in item.items() if key not in (role_key, content_key) and value is not None]
    if unread:
        raise sftrun.RowError(f"{where} has '{unread[0]}', which the formatter chat does not read")
    if not isinstance(item[role_key], str) or item[role_key] not in ROLES:
        raise sftrun.RowError(f"{where} has the role {item[role_key]!r}; known are {', '.join(ROLES)}")
    return {"role": ROLES[item[role_key]], "content": item[content_key]}


def _with_system(data: dict[str, Any], messages: list[sftrun.Message]) -> list[sftrun.Message]:
    if not data.get("system"):
        return messages
    if messages and messages[0]["role"] == "system":
        raise sftrun.RowError("has a system prompt twice: in 'system' and as the first message")
    return [{"role": "system", "content": data["system"]}, *messages]


def _check(messages: list[sftrun.Message]) -> None:
    if not messages:
        raise sftrun.RowError("the conversation is empty")
    for index, message in enumerate(messages):
        if not isinstance(message["content"], str):
            raise sftrun.RowError(f"message {index}: content must be a string, not {_kind(message['content'])}")
        if message["role"] == "system" and index:
            raise sftrun.RowError(f"message {index}: a system prompt must come first")
    if messages[-1]["role"] != "assistant":
        raise sftrun.RowError(f"ends on a {messages[-1]['role']} turn; there is no answer to train on")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(
        type(value),
        f"the number {msgspec.json.encode(value).decode()}" if isinstance(value, int | float) else type(value).__name__,
    )
