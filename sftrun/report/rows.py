"""A page of rows with their trained text marked, for `sftrun inspect --html`."""

from collections.abc import Iterable
from typing import Any

from sftrun.report.page import UNWRITABLE, environment


def page(title: str, shown: Iterable[tuple[str, Any]]) -> str:
    """One HTML page that needs nothing beside itself; `shown` are samples with their titles."""
    rows = [(name, item.pieces) for name, item in shown]
    return UNWRITABLE.sub("\ufffd", environment().get_template("rows.html.jinja").render(title=title, rows=rows))
