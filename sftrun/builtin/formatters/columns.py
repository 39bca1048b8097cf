"""Formatter `columns`: any columns, written as a conversation by templates."""

from collections.abc import Iterator
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.formatters import _columns, _media, _tools

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
AT = ("formatter", "with")


class Turn(sftrun.Options):
    """One message."""

    role: Annotated[Role, sftrun.Meta(description="Role of the message.")]
    content: Annotated[str, sftrun.Meta(description="Text of the message, with {column} for the value of a column.")]


class ColumnsOptions(sftrun.Options):
    """Templates of the messages: `user` and `assistant`, or `messages`."""

    system: Annotated[
        str | None,
        sftrun.Meta(
            description="The system prompt, with {column} for the value of a column; left out if all of its columns "
            "are empty."
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
        problems = [*_check_shape(options), *_check_templates(options)]
        if problems:
            raise sftrun.UserError(problems)
        self.turns = [(turn.role, _columns.parse_template(turn.content)) for turn in _list_turns(options)]
        self.used = {column for _, template in self.turns for column in template.list_columns()}

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        _media.check_media(row.data, self.used)
        messages: list[sftrun.Message] = []
        for role, template in self.turns:
            is_empty = template.is_empty(row.data)
            if is_empty and role == "assistant":
                raise _columns.make_empty_answer(" and ".join(template.list_columns()))
            if not is_empty or role != "system":
                messages.append({"role": role, "content": template.fill(row.data)})
        others = {name: value for name, value in row.data.items() if name not in self.used}
        return sftrun.Conversation(messages, row.origin, _tools.read_tools(others), _tools.read_template_kwargs(others))


def _list_turns(options: ColumnsOptions) -> tuple[Turn, ...]:
    given = ((role, getattr(options, role)) for role in ROLES)
    return options.messages or tuple(Turn(role=role, content=content) for role, content in given if content is not None)


def _check_shape(options: ColumnsOptions) -> Iterator[sftrun.Problem]:
    single = [role for role in ROLES if getattr(options, role) is not None]
    if options.messages and single:
        hint = f"write {' and '.join(single)} as messages"
        yield sftrun.Problem(f"columns has both messages and {' and '.join(single)}", path=(*AT, single[0]), hint=hint)
    elif options.messages:
        yield from _check_roles([turn.role for turn in options.messages])
    else:
        missing = [role for role in ROLES[1:] if role not in single]
        if missing:
            hint = 'write, for example, user: "{question}" and assistant: "{answer}"'
            yield sftrun.Problem(f"columns needs {' and '.join(missing)}, or messages", path=AT, hint=hint)


def _check_roles(roles: list[Role]) -> Iterator[sftrun.Problem]:
    if roles[-1] != "assistant":
        path = (*AT, "messages", len(roles) - 1, "role")
        yield sftrun.Problem(
            f"the last message is {roles[-1]}'s; it must be the assistant's answer, which is trained", path=path
        )
    for index, role in enumerate(roles):
        if role == "system" and index:
            yield sftrun.Problem("a system prompt must come first", path=(*AT, "messages", index, "role"))


def _check_templates(options: ColumnsOptions) -> Iterator[sftrun.Problem]:
    for index, turn in enumerate(_list_turns(options)):
        path = (*AT, "messages", index, "content") if options.messages else (*AT, turn.role)
        if not turn.content.strip():
            yield sftrun.Problem("the template is empty", path=path, hint="name a column, such as {question}")
        yield from _columns.check_template(turn.content, path)
