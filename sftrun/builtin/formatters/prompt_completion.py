"""Formatter `prompt-completion`: a prompt and its completion."""

from typing import Annotated, Any

import sftrun
from sftrun.builtin.formatters import _columns, _media, _messages, _tools
from sftrun.builtin.formatters._values import describe_type


class PromptCompletionFields(sftrun.Options):
    """Names of the columns."""

    prompt: Annotated[str, sftrun.Meta(description="Column of the prompt.")] = "prompt"
    completion: Annotated[str, sftrun.Meta(description="Column of the completion.")] = "completion"


class PromptCompletionOptions(sftrun.Options):
    """Names of the columns."""

    fields: Annotated[PromptCompletionFields, sftrun.Meta(description="Names of the columns.")] = (
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
        _media.check_media(row.data, names)
        given = {name: _columns.get_column(row.data, name) for name in names}
        if all(isinstance(value, str) for value in given.values()):
            return self._format_texts(row)
        if all(isinstance(value, list) for value in given.values()):
            return self._format_messages(row)
        kinds = " and ".join(f"{name} is {describe_type(value)}" for name, value in given.items())
        raise sftrun.RowError(f"{kinds}; both must be texts, or both lists of messages")

    def _format_texts(self, row: sftrun.Row) -> sftrun.Conversation:
        if _tools.read_tools(row.data) or _tools.read_template_kwargs(row.data):
            raise sftrun.RowError("has tools or chat_template_kwargs, but texts are rendered without a chat template")
        completion = _columns.get_answer(row.data, self.fields.completion)
        messages = [
            {"role": "prompt", "content": row.data[self.fields.prompt]},
            {"role": "completion", "content": completion},
        ]
        return sftrun.Conversation(messages, row.origin, plain=True)

    def _format_messages(self, row: sftrun.Row) -> sftrun.Conversation:
        prompt, completion = (self._read_part(row.data, name) for name in (self.fields.prompt, self.fields.completion))
        if any(message.get("train") for message in prompt):
            raise sftrun.RowError(f"{self.fields.prompt}: a message has train: true, but prompts are never trained")
        messages = [*(_set_flag(each, False) for each in prompt), *(_set_flag(each, True) for each in completion)]
        _messages.check_conversation(messages)
        tools, kwargs = _tools.read_tools(row.data), _tools.read_template_kwargs(row.data)
        return sftrun.Conversation(messages, row.origin, tools, kwargs)

    def _read_part(self, data: dict[str, Any], column: str) -> list[sftrun.Message]:
        messages = _messages.read_messages(data[column], column, "object")
        if not messages:
            raise sftrun.RowError(f"{column} is empty")
        return messages


def _set_flag(message: sftrun.Message, train: bool) -> sftrun.Message:
    """Sets `train` of a message; only an assistant's message can be trained, and its own flag takes precedence."""
    return {**message, "train": train and message["role"] == "assistant" and message.get("train", True)}
