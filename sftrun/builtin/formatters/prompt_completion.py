"""Formatter `prompt-completion`: a prompt and what is to follow it."""

from typing import Annotated, Any

import sftrun
from sftrun.builtin.formatters import _columns, _messages, _tools
from sftrun.builtin.formatters._values import kind


class PromptCompletionFields(sftrun.Options):
    """Names of columns, where they are others."""

    prompt: Annotated[str, sftrun.Meta(description="Column of the prompt.")] = "prompt"
    completion: Annotated[str, sftrun.Meta(description="Column of the completion.")] = "completion"


class PromptCompletionOptions(sftrun.Options):
    """How a row is read."""

    fields: Annotated[PromptCompletionFields, sftrun.Meta(description="Names of columns, where they are others.")] = (
        PromptCompletionFields()
    )


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("prompt-completion", PromptCompletion, options=PromptCompletionOptions)


class PromptCompletion:
    """Rows with prompt and completion, both texts or both lists of messages; for masker `completion`."""

    def __init__(self, options: PromptCompletionOptions) -> None:
        self.fields = options.fields

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        names = (self.fields.prompt, self.fields.completion)
        given = {name: _columns.given(row.data, name) for name in names}
        if all(isinstance(value, str) for value in given.values()):
            return self._plain(row)
        if all(isinstance(value, list) for value in given.values()):
            return self._chat(row)
        kinds = " and ".join(f"{name} is {kind(value)}" for name, value in given.items())
        raise sftrun.RowError(f"{kinds}; both must be texts, or both lists of messages")

    def _plain(self, row: sftrun.Row) -> sftrun.Conversation:
        if _tools.tools(row.data) or _tools.template_kwargs(row.data):
            raise sftrun.RowError("has tools or chat_template_kwargs, but texts are given to no chat template")
        completion = _columns.text(row.data, self.fields.completion)
        messages = [
            {"role": "prompt", "content": row.data[self.fields.prompt]},
            {"role": "completion", "content": completion},
        ]
        return sftrun.Conversation(messages, row.origin, plain=True)

    def _chat(self, row: sftrun.Row) -> sftrun.Conversation:
        prompt, completion = (self._part(row.data, name) for name in (self.fields.prompt, self.fields.completion))
        if any(message.get("train") for message in prompt):
            raise sftrun.RowError(f"{self.fields.prompt}: a message says that it is trained, but no prompt is")
        messages = [*(_flagged(each, False) for each in prompt), *(_flagged(each, True) for each in completion)]
        _messages.check(messages)
        tools, kwargs = _tools.tools(row.data), _tools.template_kwargs(row.data)
        return sftrun.Conversation(messages, row.origin, tools, kwargs)

    def _part(self, data: dict[str, Any], column: str) -> list[sftrun.Message]:
        messages = _messages.messages(data[column], column, "object")
        if not messages:
            raise sftrun.RowError(f"{column} is empty")
        return messages


def _flagged(message: sftrun.Message, train: bool) -> sftrun.Message:
    """With `train`: an assistant's message of a completion, unless it says otherwise."""
    return {**message, "train": train and message["role"] == "assistant" and message.get("train", True)}
