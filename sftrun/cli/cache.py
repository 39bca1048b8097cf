"""`sftrun cache`: what the cache holds, and emptying it."""

import sys

import click


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove prepared data, all but what a process is at.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="With --clear: not used for so long.")
def command(clear: bool, older_than: float | None) -> None:
    """Show what the cache holds, by kind; SFTRUN_CACHE says where it is."""
    from sftrun.cli import table
    from sftrun.data import eviction
    from sftrun.files import cache_folder

    if older_than is not None and not clear:
        raise click.UsageError("--older-than goes with --clear")
    if clear:
        gone = eviction.clear((older_than or 0) * eviction.DAY)
        freed = _size(sum(entry.frees for entry in gone))
        print(f"{len(gone)} removed, {freed} freed; what runs have of it stays with them", file=sys.stderr)
        return
    held = eviction.entries()
    rows = []
    for kind in eviction.KINDS:
        own = [entry for entry in held if entry.kind == kind]
        rows.append(
            [kind, str(len(own)), _size(sum(each.size for each in own)), _size(sum(each.frees for each in own))]
        )
    table.show(["kind", "entries", "size", "in no run"], rows, title=str(cache_folder()))


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
