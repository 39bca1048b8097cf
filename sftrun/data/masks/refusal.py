"""Explains why a template refuses a conversation: often an unsupported role, or arguments in the other form."""

import json
from collections.abc import Sequence
from typing import Any

from sftrun.data.masks.template import REFUSES, PartsUse, Template
from sftrun.errors import RowError
from sftrun.types import Conversation, Message

ADVICE = {
    "system": "put its text into the user's turn, remove the transform that wrote it, or set model.chat_template",
    "tool": "set model.chat_template to one with tools",
}
THOUGHTS = "put thoughts into reasoning_content, or set data.split_reasoning: true"
TOOL = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object"}}}


def explain_refusal(template: Template, conversation: Conversation, error: RowError) -> RowError:
    """Returns an error that names the unsupported role or form of arguments, or else the given error."""
    messages = conversation.messages
    roles = [message["role"] for message in messages]
    words = str(error).removeprefix(REFUSES)
    for role in ("system", "developer", "tool"):
        if role in roles and not _takes_role(template, role):
            who = f"message {roles.index(role)} ({role})"
            advice = ADVICE.get(role, ADVICE["system"])
            return RowError(f"{who}: the chat template {template.label} takes no {role} messages: {words}; {advice}")
    if not conversation.tools and _renders(template, messages, [TOOL]):
        advice = "add tools to the row, or set model.chat_template to one for rows without them"
        return RowError(f"the chat template {template.label} only renders rows with tools: {words}; {advice}")
    call = next((index for index, message in enumerate(messages) if message.get("tool_calls")), None)
    if call is None or not _renders(template, _turn_arguments(messages), conversation.tools):
        return error
    form = "as objects, not as JSON text" if _has_text_arguments(messages) else "as JSON text, not as objects"
    who = f"message {call} ({roles[call]})"
    return RowError(f"{who}: the chat template {template.label} takes arguments of calls {form}: {words}")


def find_use_of_parts(template: Template) -> PartsUse:
    """Returns what a template does with a list of parts: it writes their texts, fails, or prints them as a list."""
    question = {"role": "user", "content": [{"type": "text", "text": "a question"}]}
    for tools in (None, [TOOL]):
        try:
            text = template.render([question, {"role": "assistant", "content": "b"}], tools=tools)
        except RowError:
            continue
        is_read = "a question" in text and "'type': 'text'" not in text and '"type": "text"' not in text
        return "reads" if is_read else "prints"
    return "fails"


def _takes_role(template: Template, role: str) -> bool:
    """Returns False if a short conversation renders only without a message of the role."""
    conversation, tools = _make_conversation(role), [TOOL] if role == "tool" else None
    forms = [conversation, _turn_arguments(conversation)]
    return any(_renders(template, form, tools) for form in forms) or not _renders(template, _make_conversation(""))


def _make_conversation(role: str) -> list[Message]:
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    if role != "tool":
        return [*([{"role": role, "content": "s"}] if role else []), question, answer]
    called = {"id": "x" * 9, "type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}
    call = {"role": "assistant", "content": "", "tool_calls": [called]}
    return [question, call, {"role": "tool", "content": "r", "name": "f", "tool_call_id": "x" * 9}, answer]


def _renders(template: Template, messages: Sequence[Message], tools: Any = None) -> bool:
    return any(
        _try_render(template, conversation, tools)
        for conversation in (messages, [_to_list_content(message) for message in messages])
    )


def _try_render(template: Template, messages: Sequence[Message], tools: Any) -> bool:
    try:
        return bool(template.render(messages, tools=tools))
    except RowError:
        return False


def _to_list_content(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _has_text_arguments(messages: Sequence[Message]) -> bool:
    return any(isinstance(function.get("arguments"), str) for function in _find_functions(messages))


def _find_functions(messages: Sequence[Message]) -> list[dict[str, Any]]:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    found = [call.get("function", call) for call in calls if isinstance(call, dict)]
    return [function for function in found if isinstance(function, dict)]


def _turn_arguments(messages: Sequence[Message]) -> list[Message]:
    """Copies messages with the arguments of calls in the other form: JSON text for objects, objects for JSON text."""
    copy: list[Message] = json.loads(json.dumps(messages, default=str))
    for function in _find_functions(copy):
        arguments = function.get("arguments")
        try:
            function["arguments"] = json.loads(arguments) if isinstance(arguments, str) else json.dumps(arguments)
        except ValueError:
            continue
    return copy
