"""Formatter `ticket`: a support ticket with its replies becomes a conversation."""

from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any, Literal

import sftrun

SFTRUN_API = 1
ROLES = {"customer": "user", "agent": "assistant"}


class TicketOptions(sftrun.Options):
    """The system prompt, and tickets that end with the customer's words."""

    system: Annotated[str | None, sftrun.Meta(description="The system prompt; null for none.")] = (
        "You answer support tickets."
    )
    product_in_system: Annotated[
        bool, sftrun.Meta(description="Name the product in the system prompt, if the ticket has one.")
    ] = True
    after_answer: Annotated[
        Literal["refuse", "leave_out"],
        sftrun.Meta(description="Words of the customer after the last answer: refuse the ticket, or leave them out."),
    ] = "refuse"


@sftrun.hookimpl
def register_formatters(register: sftrun.Register) -> None:
    register("ticket", Ticket, options=TicketOptions)


class Ticket:
    """Support tickets: rows with subject, body, replies (by customer or agent, text) and optionally a product."""

    def __init__(self, options: TicketOptions) -> None:
        self.options = options

    def format(self, row: sftrun.Row) -> sftrun.Conversation:
        opening = f"{_text(row.data, 'subject')}\n\n{_text(row.data, 'body')}"
        turns = _join([("user", opening), *_replies(row.data)])
        if not any(message["role"] == "assistant" for message in turns):
            raise sftrun.RowError("no agent has replied; there is no answer to train on")
        if turns[-1]["role"] == "user":
            if self.options.after_answer == "refuse":
                raise sftrun.RowError("ends with the customer's words; after_answer: leave_out drops them")
            turns = turns[:-1]
        return sftrun.Conversation([*self._system(row.data), *turns], row.origin)

    def _system(self, ticket: dict[str, Any]) -> list[sftrun.Message]:
        lines = [self.options.system] if self.options.system else []
        if self.options.product_in_system and ticket.get("product") is not None:
            lines.append(f"Product: {_text(ticket, 'product')}")
        return [{"role": "system", "content": "\n".join(lines)}] if lines else []


def _replies(ticket: dict[str, Any]) -> Iterator[tuple[str, str]]:
    replies = ticket.get("replies")
    if not isinstance(replies, list):
        raise sftrun.RowError("replies must be a list")
    for index, reply in enumerate(replies):
        if not isinstance(reply, dict):
            raise sftrun.RowError(f"replies[{index}] must be an object")
        by = _text(reply, "by", f"replies[{index}].")
        if by not in ROLES:
            raise sftrun.RowError(f"replies[{index}].by is {by!r}; there are {' and '.join(ROLES)}")
        yield ROLES[by], _text(reply, "text", f"replies[{index}].")


def _join(turns: list[tuple[str, str]]) -> list[sftrun.Message]:
    # many chat templates refuse two turns of one role in a row
    return [
        {"role": role, "content": "\n\n".join(text for _, text in group)}
        for role, group in groupby(turns, key=lambda turn: turn[0])
    ]


def _text(data: dict[str, Any], key: str, where: str = "") -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise sftrun.RowError(f"{where}{key} must be a text that is not empty")
    return value.strip()
