"""Transform `style`: write a tone or a persona into the system prompt."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec

import sftrun


class StyleOptions(sftrun.Options):
    """What the system prompt becomes."""

    prompt: Annotated[str, sftrun.Meta(min_length=1, description="The system prompt, such as: Answer kindly.")]
    where: Annotated[
        Literal["missing", "replace", "append"],
        sftrun.Meta(description="Only where there is none; in place of what is there; or after what is there."),
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
        for talk in conversations:
            if talk.plain:
                why = "it is plain text, which has no system prompt; take style out, or use a formatter for chats"
                raise sftrun.RowError(f"{talk.origin}: {why}")
            styled = self._styled(talk.messages)
            if styled == talk.messages:
                yield talk
                continue
            context.note(talk.origin, "changed", f"style: system prompt {self.where}")
            yield msgspec.structs.replace(talk, messages=styled)

    def _styled(self, messages: list[sftrun.Message]) -> list[sftrun.Message]:
        if not messages or messages[0].get("role") != "system":
            return [{"role": "system", "content": self.prompt}, *messages]
        if self.where == "missing":
            return messages
        content = self.prompt if self.where == "replace" else self._appended(messages[0].get("content"))
        return [{**messages[0], "content": content}, *messages[1:]]

    def _appended(self, before: Any) -> Any:
        """The prompt after a content, which is a text, a list of parts, or nothing."""
        if isinstance(before, list):
            return [*before, {"type": "text", "text": f"\n{self.prompt}" if before else self.prompt}]
        return f"{before}\n{self.prompt}" if before else self.prompt
