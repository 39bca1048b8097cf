"""`sftrun prepare`: turns rows into tokenised samples, without training."""

import json
import sys
from typing import Any

import click

from sftrun.cli import progress, table
from sftrun.cli.options import overrides

WIDEST = 40  # characters of the longest bar of the histogram


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False))
@overrides
@click.option("--out", type=click.Path(file_okay=False), help="The run directory; by default runs/<recipe>-<time>.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON on standard output.")
def command(recipe: str, sets: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Prepare a recipe's data, prove its masks and show what came out."""
    from sftrun.flow import prepare

    with progress.watcher() as watch:
        done = prepare(recipe, sets, out, watch)
    stats = done.read_json("prepared/stats.json")
    if as_json:
        print(json.dumps(stats, indent=2, ensure_ascii=False))
    else:
        _show(stats)
    print(f"mask: {done.read_json('prepared/proof.json')['hash']}", file=sys.stderr)
    print(f"prepared: {done.prepared}", file=sys.stderr)


HEADER = ("split", "rows in", "rows", "duplicates", "tokens", "trained", "share", "mean length", "longest")


def _show(stats: dict[str, dict[str, Any]]) -> None:
    table.show(HEADER, [_row(split, each) for split, each in stats.items()])
    for split, each in stats.items():
        for label, number in {**each["lost"], **each["changed"]}.items():
            print(f"  {split}: {number:,} rows {label}", file=sys.stderr)
    for split, each in stats.items():
        roles = [_role(role, counts) for role, counts in each["by_role"].items()]
        table.show([f"role ({split})", "tokens", "trained", "share"], roles)
    train = stats["train"]
    _show_lengths(train["length"]["histogram"])
    if "packing" in train:
        sequences, fill = train["packing"]["sequences"], train["packing"]["fill"]
        print(f"packed: {train['rows']:,} rows in {sequences:,} sequences, {fill:.1%} full", file=sys.stderr)


def _row(split: str, each: dict[str, Any]) -> list[str]:
    counts = [f"{each[key]:,}" for key in ("rows_in", "rows", "duplicates", "tokens", "trained_tokens")]
    share = f"{each['trained_tokens'] / max(each['tokens'], 1):.1%}"
    return [split, *counts, share, f"{each['length']['mean']:.1f}", f"{each['length']['max']:,}"]


def _role(role: str, counts: dict[str, int]) -> list[str]:
    share = f"{counts['trained'] / max(counts['tokens'], 1):.1%}"
    return [role, f"{counts['tokens']:,}", f"{counts['trained']:,}", share]


def _show_lengths(histogram: list[list[int]]) -> None:
    """Prints one bar for each range of lengths."""
    most = max((rows for _, rows in histogram), default=0)
    bars = [
        [f"up to {upto:,} tokens", f"{rows:,}", ("#" * -(-rows * WIDEST // most)).ljust(WIDEST)]
        for upto, rows in histogram
    ]
    table.show(["length (train)", "rows", ""], bars)
