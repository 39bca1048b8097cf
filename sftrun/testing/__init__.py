"""The conformance kit: holds a component against what its kind promises, for the tests of a plugin.

    from sftrun import testing

    def test_ticket_keeps_what_a_formatter_promises():
        testing.check_formatter(Ticket(TicketOptions()), rows=[{"subject": "…", "body": "…", "replies": […]}])

A check raises AssertionError, and says which promise was broken. What renders (`check_masker`,
`check_evaluator`, `check_judge`, `shown`) uses the embedded tokenizer and needs the extra sftrun[train].
"""

from sftrun.testing.components import (
    check_evaluator,
    check_formatter,
    check_judge,
    check_masker,
    check_source,
    check_transform,
)
from sftrun.testing.examples import context, shown, talks
from sftrun.testing.plugin import check_options, check_plugin

__all__ = [
    "check_evaluator",
    "check_formatter",
    "check_judge",
    "check_masker",
    "check_options",
    "check_plugin",
    "check_source",
    "check_transform",
    "context",
    "shown",
    "talks",
]
