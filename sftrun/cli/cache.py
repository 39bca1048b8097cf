"""`sftrun cache`: shows and clears the cache."""

import sys

import click


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove all prepared data that no process is using.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="With --clear: remove only what was not used for this many days.",
)
def command(clear: bool, older_than: float | None) -> None:
    """Show what the cache holds, by kind. The environment variable SFTRUN_CACHE sets its folder."""
    from sftrun.cli import table
    from sftrun.data import eviction
    from sftrun.files import cache_folder
    from sftrun.runs.numbers import byte_count

    if older_than is not None and not clear:
        raise click.UsageError("--older-than needs --clear")
    if clear:
        removed = eviction.clear((older_than or 0) * eviction.DAY)
        freed = byte_count(sum(entry.size for entry in removed))
        print(f"{len(removed)} removed, {freed} freed; runs have their own copies", file=sys.stderr)
        return
    entries = eviction.list_entries()
    rows = []
    for kind in eviction.KINDS:
        of_kind = [entry for entry in entries if entry.kind == kind]
        rows.append([kind, str(len(of_kind)), byte_count(sum(entry.size for entry in of_kind))])
    table.show(["kind", "entries", "size"], rows, title=str(cache_folder()))
