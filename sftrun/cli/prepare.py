"""`sftrun prepare`: rows to tokenised samples, without training."""

import json
import sys
from typing import Any

import click

from sftrun.cli import progress, table
from sftrun.cli.options import overrides


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--out", type=click.Path(file_okay=False), help="The run directory; by default runs/<recipe>-<time>.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON on standard output.")
def command(recipe: str, sets: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Prepare a recipe's data, prove its masks and show what came out."""
    from sftrun.flow import prepare_only

    with progress.watcher() as watch:
        done = prepare_only(recipe, sets, out, watch)
    stats = done.read_json("prepared/stats.json")
    if as_json:
        print(json.dumps(stats, indent=2, ensure_ascii=False))
    else:
        _show(stats)
    print(f"prepared: {done.prepared}", file=sys.stderr)


def _show(stats: dict[str, dict[str, Any]]) -> None:
    header = ["split", "rows in", "rows", "tokens", "trained", "share", "mean length", "longest"]
    rows = [
        [
            split,
            f"{each['rows_in']:,}",
            f"{each['rows']:,}",
            f"{each['tokens']:,}",
            f"{each['trained_tokens']:,}",
            f"{each['trained_tokens'] / max(each['tokens'], 1):.1%}",
            f"{each['length']['mean']:.1f}",
            f"{each['length']['max']:,}",
        ]
        for split, each in stats.items()
    ]
    table.show(header, rows)
    for split, each in stats.items():
        for label, number in {**each["lost"], **each["changed"]}.items():
            print(f"  {split}: {number:,} rows {label}", file=sys.stderr)
    roles = [
        [role, f"{counts['tokens']:,}", f"{counts['trained']:,}"] for role, counts in stats["train"]["by_role"].items()
    ]
    table.show(["role (train)", "tokens", "trained"], roles)
