"""Formatter `alpaca`: an instruction, perhaps with an input, and its output."""

from typing import Annotated, Any

import sftrun
from sftrun.builtin.formatters import _columns
from sftrun.builtin.formatters._values import kind


class AlpacaFields(sftrun.Options):
    """Names of columns, where they are others."""

    instruction: Annotated[str, sftrun.Meta(description="Column of the instruction.")] = "instruction"
    input: Annotated[
        str | None, sftrun.Meta(description="Column of what the instruction is about; null where none is read.")
    ] = "input"
    output: Annotated[str, sftrun.Meta(description="Column of the answer.")] = "output"
    system: Annotated[str | None, sftrun.Meta(description="Column of the system prompt; null where none is read.")] = (
        "system"
    )
    history: Annotated[
        str | None,
        sftrun.Meta(description="Column of earlier turns, pairs of a question and an answer; null where none is read."),
    ] = "history"


class AlpacaOptions(sftrun.Options):
    """How a row is read."""

    fields: Annotated[AlpacaFields, sftrun.Meta(description="Names of columns, where they are others.")] = (
        AlpacaFields()
    )
    prompt: Annotated[
        str,
        sftrun.Meta(
            description="How {instruction} and {input} make the question; without an input it is the instruction alone."
        ),
    ] = "{instruction}\n\n{input}"


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("alpaca", Alpaca, options=AlpacaOptions)


class Alpaca:
    """Rows with instruction and output, and perhaps input, system and history."""

    def __init__(self, options: AlpacaOptions) -> None:
        path = ("formatter", "with", "prompt")
        problems = list(_columns.problems(options.prompt, path, known=("instruction", "input")))
        if problems:
            raise sftrun.UserError(problems)
        self.fields = options.fields
        self.prompt = _columns.template(options.prompt)

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        system = _columns.text_or_none(row.data, self.fields.system)
        turns = [*_history(row.data, self.fields.history), self._turn(row.data)]
        messages: list[sftrun.Message] = [] if system is None else [{"role": "system", "content": system}]
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return sftrun.Conversation(messages, row.origin)

    def _turn(self, data: dict[str, Any]) -> tuple[str, str]:
        instruction = _columns.text(data, self.fields.instruction)
        given = _columns.text_or_none(data, self.fields.input)
        answer = _columns.text(data, self.fields.output)
        if given is None:
            return instruction, answer
        return self.prompt.fill({"instruction": instruction, "input": given}), answer


def _history(data: dict[str, Any], column: str | None) -> list[tuple[str, str]]:
    pairs = data.get(column) if column is not None else None
    if pairs is None:
        return []
    if not isinstance(pairs, list):
        raise sftrun.RowError(f"{column} must be a list of pairs, not {kind(pairs)}")
    return [_pair(pair, f"{column}[{index}]") for index, pair in enumerate(pairs)]


def _pair(pair: Any, where: str) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise sftrun.RowError(f"{where} must be a pair of texts: a question and its answer")
    return pair[0], pair[1]
