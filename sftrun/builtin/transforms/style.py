"""Transform `style`: writes a tone or a persona into the system prompt."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec

import sftrun


class StyleOptions(sftrun.Options):
    """The system prompt, and its relation to an existing one."""

    prompt: Annotated[str, sftrun.Meta(min_length=1, description="The system prompt, such as: Answer kindly.")]
    where: Annotated[
        Literal["missing", "replace", "append"],
        sftrun.Meta(description="Add it only if there is none (missing), replace an existing one, or append to it."),
    ] = "replace"


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("style", Style, options=StyleOptions)


class Style:
    """Add or replace the system prompt."""

    def __init__(self, options: StyleOptions) -> None:
        self.prompt = options.prompt
        self.where = options.where

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        for conversation in conversations:
            if conversation.plain:
                why = "plain text has no system prompt; remove style, or use a formatter for conversations"
                raise sftrun.RowError(f"{conversation.origin}: {why}")
            styled = self._add_style(conversation.messages)
            if styled == conversation.messages:
                yield conversation
                continue
            context.note(conversation.origin, "changed", f"style: system prompt {self.where}")
            yield msgspec.structs.replace(conversation, messages=styled)

    def _add_style(self, messages: list[sftrun.Message]) -> list[sftrun.Message]:
        if not messages or messages[0].get("role") != "system":
            return [{"role": "system", "content": self.prompt}, *messages]
        if self.where == "missing":
            return messages
        content = self.prompt if self.where == "replace" else self._append_prompt(messages[0].get("content"))
        return [{**messages[0], "content": content}, *messages[1:]]

    def _append_prompt(self, before: Any) -> Any:
        """Appends the prompt to a content, which is a text, a list of parts, or nothing."""
        if isinstance(before, list):
            return [*before, {"type": "text", "text": f"\n{self.prompt}" if before else self.prompt}]
        return f"{before}\n{self.prompt}" if before else self.prompt
