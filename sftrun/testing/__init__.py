"""The conformance kit: checks that a component keeps the promises of its kind, for the tests of a plugin.

    from sftrun import testing

    def test_ticket_keeps_what_a_formatter_promises():
        testing.check_formatter(Ticket(TicketOptions()), rows=[{"subject": "…", "body": "…", "replies": […]}])

A check raises AssertionError, with the promise that was broken. `check_backend` and `check_exporter` train and export
for real; they, and the checks that render (`check_masker`, `check_evaluator`, `check_judge`, `shown`), use the embedded
model or tokenizer and need the extra sftrun[train].
"""

from sftrun.testing.backend import check_backend
from sftrun.testing.evaluator import check_evaluator
from sftrun.testing.examples import context, shown, talks
from sftrun.testing.exporter import check_exporter
from sftrun.testing.formatter import check_formatter
from sftrun.testing.judge import check_judge
from sftrun.testing.masker import check_masker
from sftrun.testing.metric import check_metric
from sftrun.testing.plugin import check_options, check_plugin
from sftrun.testing.source import check_source
from sftrun.testing.tracker import check_tracker
from sftrun.testing.transform import check_transform

__all__ = [
    "check_backend",
    "check_evaluator",
    "check_exporter",
    "check_formatter",
    "check_judge",
    "check_masker",
    "check_metric",
    "check_options",
    "check_plugin",
    "check_source",
    "check_tracker",
    "check_transform",
    "context",
    "shown",
    "talks",
]
