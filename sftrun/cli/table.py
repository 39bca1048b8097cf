"""Tables on standard error: drawn by rich in a terminal, plain text elsewhere."""

import sys
from collections.abc import Sequence

from sftrun import scrub
from sftrun.cli import output


def show(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints a table; the first column is text, the others are numbers."""
    if sys.stderr.isatty():
        _rich(header, rows, title)
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    if title:
        print(title, file=sys.stderr)
    for row in [header, *rows]:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(["", first, *others]).rstrip(), file=sys.stderr)


def _rich(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(scrub.printable(title)) if title else None, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left")
    for row in rows:
        table.add_row(*(Text(scrub.printable(cell)) for cell in row))
    output.console().print(table)
