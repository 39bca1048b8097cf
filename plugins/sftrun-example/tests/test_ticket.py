"""The formatter `ticket`."""

import pytest
from sftrun_example.ticket import Ticket, TicketOptions

from sftrun import Row, RowError, testing

TICKET = {
    "subject": "No sound",
    "body": "My radio is silent.",
    "product": "radio",
    "replies": [
        {"by": "agent", "text": "Is it plugged in?"},
        {"by": "customer", "text": "Yes."},
        {"by": "customer", "text": "And new."},
        {"by": "agent", "text": "Turn the red wheel."},
    ],
}
THANKED = {**TICKET, "replies": [*TICKET["replies"], {"by": "customer", "text": "Thanks!"}]}


def render(ticket, **options):
    """Returns the conversation of a ticket, one line per message."""
    talk = Ticket(TicketOptions(**options)).format(Row(ticket, "tickets.jsonl:1"))
    return [f"{message['role']}: {message['content']}" for message in talk.messages]


def test_it_keeps_what_a_formatter_promises():
    testing.check_formatter(Ticket(TicketOptions()), [TICKET])
    testing.check_formatter(Ticket(TicketOptions(after_answer="leave_out")), [TICKET, THANKED])


def test_a_ticket_is_a_conversation():
    assert render(TICKET) == [
        "system: You answer support tickets.\nProduct: radio",
        "user: No sound\n\nMy radio is silent.",
        "assistant: Is it plugged in?",
        "user: Yes.\n\nAnd new.",
        "assistant: Turn the red wheel.",
    ]


def test_the_system_prompt_is_as_the_options_say():
    assert render(TICKET, product_in_system=False)[0] == "system: You answer support tickets."
    assert render(TICKET, system=None)[0] == "system: Product: radio"
    assert render(TICKET, system=None, product_in_system=False)[0].startswith("user: ")
    assert render({**TICKET, "product": None})[0] == "system: You answer support tickets."


def test_words_after_the_last_answer_are_refused_or_left_out():
    with pytest.raises(RowError, match="ends with the customer's words; after_answer: leave_out drops them"):
        render(THANKED)
    assert render(THANKED, after_answer="leave_out") == render(TICKET)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replies": []}, "no agent has replied; there is no answer to train on"),
        ({"replies": "none"}, "replies must be a list"),
        ({"replies": [{"by": "bot", "text": "Hi"}]}, r"replies\[0\].by is 'bot'; there are customer and agent"),
        ({"replies": [{"by": "agent"}]}, r"replies\[0\].text must be a text that is not empty"),
        ({"body": " "}, "body must be a text that is not empty"),
        ({"product": 7}, "product must be a text that is not empty"),
    ],
)
def test_a_ticket_that_does_not_fit_is_refused_with_the_reason(change, reason):
    with pytest.raises(RowError, match=reason):
        render({**TICKET, **change})
