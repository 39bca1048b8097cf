"""Formatter `alpaca`: an instruction with an optional input, and its output."""

from typing import Annotated, Any

import msgspec

import sftrun
from sftrun.builtin.formatters import _columns, _media, _tools
from sftrun.builtin.formatters._values import describe_type


class AlpacaFields(sftrun.Options):
    """Names of the columns."""

    instruction: Annotated[str, sftrun.Meta(description="Column of the instruction.")] = "instruction"
    input: Annotated[str | None, sftrun.Meta(description="Column of the instruction's input; null to read none.")] = (
        "input"
    )
    output: Annotated[str, sftrun.Meta(description="Column of the answer.")] = "output"
    system: Annotated[str | None, sftrun.Meta(description="Column of the system prompt; null to read none.")] = "system"
    history: Annotated[
        str | None,
        sftrun.Meta(description="Column of earlier turns, pairs of a question and an answer; null to read none."),
    ] = "history"


class AlpacaOptions(sftrun.Options):
    """Names of the columns, and the form of the question."""

    fields: Annotated[AlpacaFields, sftrun.Meta(description="Names of the columns.")] = AlpacaFields()
    prompt: Annotated[
        str,
        sftrun.Meta(
            description="Question from {instruction} and {input}; without an input it is the instruction alone."
        ),
    ] = "{instruction}\n\n{input}"


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("alpaca", Alpaca, options=AlpacaOptions)


class Alpaca:
    """Rows with instruction and output, and optional input, system, history and tools."""

    def __init__(self, options: AlpacaOptions) -> None:
        path = ("formatter", "with", "prompt")
        problems = list(_columns.check_template(options.prompt, path, known=("instruction", "input")))
        if problems:
            raise sftrun.UserError(problems)
        self.fields = options.fields
        self.used = msgspec.structs.astuple(options.fields)
        self.prompt = _columns.parse_template(options.prompt)

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        _media.check_media(row.data, self.used)
        system = _columns.get_optional_text(row.data, self.fields.system)
        turns = [*_read_history(row.data, self.fields.history), self._read_turn(row.data)]
        messages: list[sftrun.Message] = [] if system is None else [{"role": "system", "content": system}]
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        tools, kwargs = _tools.read_tools(row.data), _tools.read_template_kwargs(row.data)
        return sftrun.Conversation(messages, row.origin, tools, kwargs)

    def _read_turn(self, data: dict[str, Any]) -> tuple[str, str]:
        instruction = _columns.get_text(data, self.fields.instruction)
        given = _columns.get_optional_text(data, self.fields.input)
        answer = _columns.get_answer(data, self.fields.output)
        if given is None:
            return instruction, answer
        return self.prompt.fill({"instruction": instruction, "input": given}), answer


def _read_history(data: dict[str, Any], column: str | None) -> list[tuple[str, str]]:
    pairs = data.get(column) if column is not None else None
    if pairs is None:
        return []
    if not isinstance(pairs, list):
        raise sftrun.RowError(f"{column} must be a list of pairs, not {describe_type(pairs)}")
    return [_check_pair(pair, f"{column}[{index}]") for index, pair in enumerate(pairs)]


def _check_pair(pair: Any, where: str) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise sftrun.RowError(f"{where} must be a pair of texts: a question and its answer")
    return pair[0], pair[1]
