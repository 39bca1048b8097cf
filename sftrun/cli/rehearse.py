"""`sftrun rehearse`: tries out every stage of a recipe at a tiny scale."""

import json
import sys

import click

from sftrun.cli import progress
from sftrun.cli.options import overrides


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--rows", type=click.IntRange(min=1), default=24, show_default=True, help="Rows of each split to use.")
@click.option("--out", type=click.Path(file_okay=False), help="Keep the run in this folder; by default it is removed.")
@click.option("--json", "as_json", is_flag=True, help="Print what was tried out as JSON on standard output.")
def command(recipe: str, sets: tuple[str, ...], rows: int, out: str | None, as_json: bool) -> None:
    """Run every stage of a recipe with a tiny random model and the first rows of its data."""
    import msgspec

    from sftrun.tools.rehearse import rehearse

    with progress.watcher() as watch:
        done = rehearse(recipe, sets, out, watch, rows)
    if as_json:
        print(json.dumps(msgspec.to_builtins(done), indent=2, ensure_ascii=False))
        return
    for title, lines in (("exercised", done.exercised), ("not exercised", done.left_out)):
        print("\n  ".join([f"{title}:", *lines]), file=sys.stderr)
    if done.run:
        print(f"run: {done.run}", file=sys.stderr)
