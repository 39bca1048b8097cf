"""Tools of a row: refuses a row whose template does not write them, because the model would never see them."""

from collections.abc import Hashable
from typing import Any

import msgspec

from sftrun.data.masks.render import remove_flags
from sftrun.data.masks.template import Template
from sftrun.errors import RowError
from sftrun.types import Conversation

MAX_SHAPES = 4096  # shapes of conversation remembered, so that memory is bounded
ADVICE = "set model.chat_template to one that writes tools, or remove the tools from the rows"


class ToolCheck:
    """Checks that a template writes the tools of rows: once for each shape of conversation, and each name."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._writes: dict[Hashable, bool] = {}

    def check(self, conversation: Conversation, text: str) -> None:
        """Raises RowError if a tool of a row is missing in its text."""
        tools = conversation.tools
        if not tools or conversation.plain:
            return
        if not self._writes_tools(conversation):
            raise RowError(f"the chat template {self._template.label} does not write the row's tools; {ADVICE}")
        absent = [tool for tool in tools if _get_name(tool) not in text]
        if absent and not self._differs(conversation, [tool for tool in tools if tool not in absent] or None):
            names = ", ".join(map(_get_name, absent))
            raise RowError(f"the chat template {self._template.label} does not write the row's tools {names}; {ADVICE}")

    def _writes_tools(self, conversation: Conversation) -> bool:
        roles = tuple(message["role"] for message in conversation.messages)
        key = (roles, msgspec.json.encode(conversation.template_kwargs))
        if key not in self._writes:
            if len(self._writes) >= MAX_SHAPES:
                self._writes.clear()
            self._writes[key] = self._differs(conversation, None)
        return self._writes[key]

    def _differs(self, conversation: Conversation, tools: list[dict[str, Any]] | None) -> bool:
        """Returns True if the text is another with these tools, or if the template refuses them."""
        messages, more = remove_flags(conversation).messages, conversation.template_kwargs
        try:
            other = self._template.render(messages, tools=tools, **more)
        except RowError:
            return True
        return other != self._template.render(messages, tools=conversation.tools, **more)


def _get_name(tool: dict[str, Any]) -> str:
    return str(tool.get("function", tool).get("name", ""))
