"""`sftrun inspect`: shows which text of each row is trained."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from sftrun import scrub
from sftrun.cli import output
from sftrun.cli.options import overrides


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option(
    "--split",
    default="train",
    type=click.Choice(["train", "val", "test"]),
    help="The split to show.",
    show_default=True,
)
@click.option("--rows", default=5, type=click.IntRange(min=1), help="Number of rows to show.", show_default=True)
@click.option("--shapes", is_flag=True, help="Show one row per shape of conversation, and how many rows have it.")
@click.option("--origin", default="", help="Show the row with this origin, such as train.jsonl:17.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write the rows to this HTML file, not to the terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print all rows as JSON lines on standard output.")
def command(
    recipe: str, sets: tuple[str, ...], split: str, rows: int, shapes: bool, origin: str, html: str, as_json: bool
) -> None:
    """Show rows as the model reads them, with their trained tokens marked."""
    from sftrun.cli import show
    from sftrun.data.ledger import Counts
    from sftrun.tools.inspect import add_titles, describe_left_out, group_by_shape, inspect_and_count

    counts = Counts()
    items = inspect_and_count(recipe, sets, split, origin, counts, lambda warning: show.print_problems([warning]))
    titled_items = [] if as_json else group_by_shape(items) if shapes else add_titles(islice(items, rows))
    if as_json:
        _print_json(items)
    elif html:
        _write_page(Path(html), recipe, split, titled_items)
    else:
        _print_marked(titled_items)
    if left_out := describe_left_out(counts, split):
        print(f"left out, of the rows read so far: {left_out}", file=sys.stderr)


def _print_json(items: Iterator[Any]) -> None:
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # plugins may print while they make the rows
        for item in items:
            sample = item.sample
            row = {
                "origin": sample.origin,
                "text": "".join(text for text, _ in item.pieces),
                "ids": sample.ids,
                "trained": sample.trained,
            }
            print(json.dumps(row, ensure_ascii=False), file=out)


def _write_page(file: Path, recipe: str, split: str, titled_items: Iterable[tuple[str, Any]]) -> None:
    from sftrun.report.rows import page

    file.write_text(page(f"{Path(recipe).name}, {split}", titled_items), "utf-8")
    print(f"written: {file}", file=sys.stderr)


def _print_marked(titled_items: Iterable[tuple[str, Any]]) -> None:
    for title, item in titled_items:
        print(f"── {title}", file=sys.stderr)
        _show(item.pieces)
    marks = "green" if sys.stderr.isatty() else "between ⟦ and ⟧"
    print(f"(trained text is {marks})", file=sys.stderr)


def _show(pieces: list[tuple[str, bool]]) -> None:
    if not sys.stderr.isatty():
        print("".join(f"⟦{text}⟧" if trained else text for text, trained in pieces), file=sys.stderr)
        return
    from rich.text import Text

    text = Text()
    for piece, trained in pieces:
        text.append(scrub.printable(piece), "bold green" if trained else "dim")
    output.console().print(text)
