"""A page of rows with their trained text marked, for `sftrun inspect --html`."""

from collections.abc import Iterable
from typing import Any

from sftrun.report.page import UNWRITABLE, environment


def page(title: str, samples: Iterable[tuple[str, Any]]) -> str:
    """Returns one self-contained HTML page; `samples` are titles with samples."""
    rows = [(name, item.pieces) for name, item in samples]
    return UNWRITABLE.sub("\ufffd", environment().get_template("rows.html.jinja").render(title=title, rows=rows))
