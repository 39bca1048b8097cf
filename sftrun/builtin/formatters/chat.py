"""Formatter `chat`: conversations in the usual shapes of OpenAI, ShareGPT and trl."""

from collections.abc import Iterator
from typing import Annotated, Any

import sftrun
from sftrun.builtin.formatters import _media, _messages, _tools

SHAPES = ("messages", "conversations")
RESERVED = ("messages", "tools", "add_generation_prompt")
OTHERS = {
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Columns of rows that other formatters read."""


class ChatFields(sftrun.Options):
    """Names of the columns."""

    system: Annotated[
        str | None,
        sftrun.Meta(description="Column of the system prompt, also next to messages; null to read none."),
    ] = "system"
    user: Annotated[str, sftrun.Meta(description="Column of the question.")] = "user"
    assistant: Annotated[str, sftrun.Meta(description="Column of the answer.")] = "assistant"


class ChatOptions(sftrun.Options):
    """Names of the columns, and the form of tool calls and template variables."""

    fields: Annotated[
        ChatFields, sftrun.Meta(description="Columns of single-turn rows, if not system/user/assistant.")
    ] = ChatFields()
    arguments: Annotated[
        _tools.Arguments,
        sftrun.Meta(
            description="Form in which the template gets the arguments of tool calls, whatever the rows have: object "
            "for most templates, text (JSON) for a few, such as DeepSeek-V3's."
        ),
    ] = "object"
    template_kwargs: Annotated[
        dict[str, Any],
        sftrun.Meta(
            description="Variables for the chat template, such as {enable_thinking: false}; the column "
            "chat_template_kwargs of a row overrides them."
        ),
    ] = {}  # noqa: RUF012  (msgspec copies it)


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("chat", Chat, options=ChatOptions)


class Chat:
    """Rows with `messages`, `conversations` (role/content or from/value), or system/user/assistant columns."""

    def __init__(self, options: ChatOptions) -> None:
        self.fields = options.fields
        self.arguments = options.arguments
        self.template_kwargs = options.template_kwargs
        columns = (options.fields.system or "", options.fields.user, "conversations", "chat_template_kwargs")
        self._more = frozenset((*columns, *_tools.COLUMNS, *_media.COLUMNS))

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for name in RESERVED:
            if name in self.template_kwargs:
                path = ("formatter", "with", "template_kwargs", name)
                yield sftrun.Problem(f"template_kwargs must not set {name}", path=path, hint="it comes from the row")

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        data = row.data
        messages = data.get("messages")
        has_more = len(data) > 1 and (not self._more.isdisjoint(data) or any(map(_media.is_media, data.values())))
        if type(messages) is list and not has_more and _messages.are_plain(messages):
            return sftrun.Conversation(messages, row.origin, None, self.template_kwargs)
        _media.check_media(data, (self.fields.system, self.fields.user, self.fields.assistant))
        messages = self._read_messages(data)
        _messages.check_conversation(messages)
        kwargs = {**self.template_kwargs, **_tools.read_template_kwargs(data)}
        return sftrun.Conversation(messages, row.origin, _tools.read_tools(data), kwargs)

    def _read_messages(self, data: dict[str, Any]) -> list[sftrun.Message]:
        shape = self._find_shape(data)
        if shape == "columns":
            return self._read_columns(data)
        messages = _messages.read_messages(data[shape], shape, self.arguments)
        system = data.get(self.fields.system) if self.fields.system else None
        if system in (None, ""):
            return messages
        if messages and messages[0]["role"] == "system":
            raise sftrun.RowError(f"has a system prompt twice: in '{self.fields.system}' and as the first message")
        return [self._read_message("system", system, 0), *messages]

    def _find_shape(self, data: dict[str, Any]) -> str:
        shapes = [name for name in SHAPES if data.get(name) is not None]
        if self.fields.user in data and self.fields.assistant in data:
            shapes.append("columns")
        if len(shapes) > 1:
            raise sftrun.RowError(f"fits several shapes at once: {' and '.join(shapes)}; keep one of them")
        if not shapes:
            empty = [f"{name} is null" for name in SHAPES if name in data]
            wanted = f"messages, conversations, or {self.fields.user} and {self.fields.assistant}"
            there = " and ".join(empty) or f"has the keys {', '.join(map(str, data)) or '(none)'}"
            raise sftrun.RowError(f"{there}, but needs {wanted}{_suggest_formatter(data)}")
        return shapes[0]

    def _read_columns(self, data: dict[str, Any]) -> list[sftrun.Message]:
        names = {"system": self.fields.system, "user": self.fields.user, "assistant": self.fields.assistant}
        given = [(role, data[name]) for role, name in names.items() if name is not None and name in data]
        kept = [(role, content) for role, content in given if role != "system" or content not in (None, "")]
        return [self._read_message(role, content, index) for index, (role, content) in enumerate(kept)]

    def _read_message(self, role: str, content: Any, index: int) -> sftrun.Message:
        return _messages.read_message({"role": role, "content": content}, f"message {index}", self.arguments)


def _suggest_formatter(data: dict[str, Any]) -> str:
    """Returns a hint at the formatter that reads rows with such columns."""
    fitting = [name for name, columns in OTHERS.items() if all(column in data for column in columns)]
    return f"; such rows are read by formatter: {fitting[0]}" if fitting else ""
