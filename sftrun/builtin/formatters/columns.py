"""Formatter `columns`: any columns, told as a conversation by small templates."""

from collections.abc import Iterator
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.formatters import _columns

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
AT = ("formatter", "with")


class Turn(sftrun.Options):
    """One message."""

    role: Annotated[Role, sftrun.Meta(description="Who speaks.")]
    content: Annotated[str, sftrun.Meta(description="What is said, with {column} where a value stands.")]


class ColumnsOptions(sftrun.Options):
    """What is said by whom: `user` and `assistant`, or `messages`."""

    system: Annotated[
        str | None,
        sftrun.Meta(
            description="The system prompt, with {column} where a value stands; left out where all of its columns are "
            "empty."
        ),
    ] = None
    user: Annotated[str | None, sftrun.Meta(description="The question, such as: {title}: {question}")] = None
    assistant: Annotated[str | None, sftrun.Meta(description="The answer, such as: {answer}")] = None
    messages: Annotated[
        tuple[Turn, ...],
        sftrun.Meta(description="More than one turn: a list of messages, each with role and content."),
    ] = ()


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("columns", Columns, options=ColumnsOptions)


class Columns:
    """Rows with any columns, named in templates: `user: "{question}"`, `assistant: "{answer}"`."""

    def __init__(self, options: ColumnsOptions) -> None:
        problems = [*_shape_problems(options), *_template_problems(options)]
        if problems:
            raise sftrun.UserError(problems)
        self.turns = [(turn.role, _columns.template(turn.content)) for turn in _turns(options)]

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        kept = [(role, told) for role, told in self.turns if role != "system" or not told.is_empty(row.data)]
        return sftrun.Conversation([{"role": role, "content": told.fill(row.data)} for role, told in kept], row.origin)


def _turns(options: ColumnsOptions) -> tuple[Turn, ...]:
    given = ((role, getattr(options, role)) for role in ROLES)
    return options.messages or tuple(Turn(role=role, content=content) for role, content in given if content is not None)


def _shape_problems(options: ColumnsOptions) -> Iterator[sftrun.Problem]:
    single = [role for role in ROLES if getattr(options, role) is not None]
    if options.messages and single:
        hint = f"write {' and '.join(single)} as messages"
        yield sftrun.Problem(f"columns has messages beside {' and '.join(single)}", path=(*AT, single[0]), hint=hint)
    elif options.messages:
        yield from _turn_problems([turn.role for turn in options.messages])
    else:
        missing = [role for role in ROLES[1:] if role not in single]
        if missing:
            hint = 'write, for example, user: "{question}" and assistant: "{answer}"'
            yield sftrun.Problem(f"columns needs {' and '.join(missing)}, or messages", path=AT, hint=hint)


def _turn_problems(roles: list[Role]) -> Iterator[sftrun.Problem]:
    if roles[-1] != "assistant":
        path = (*AT, "messages", len(roles) - 1, "role")
        yield sftrun.Problem(f"the last message is {roles[-1]}'s; the assistant's answer is what is learned", path=path)
    for index, role in enumerate(roles):
        if role == "system" and index:
            yield sftrun.Problem("a system prompt must come first", path=(*AT, "messages", index, "role"))


def _template_problems(options: ColumnsOptions) -> Iterator[sftrun.Problem]:
    for index, turn in enumerate(_turns(options)):
        path = (*AT, "messages", index, "content") if options.messages else (*AT, turn.role)
        if not turn.content.strip():
            yield sftrun.Problem("nothing is said here", path=path, hint="name a column, such as {question}")
        yield from _columns.problems(turn.content, path)
