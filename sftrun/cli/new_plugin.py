"""`sftrun new-plugin`: the project of a new component, ready to install and to test."""

import shlex
import sys

import click

from sftrun.hookspecs import KINDS


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", required=True, metavar="KIND", help=f"One of {', '.join(KINDS)}.")
@click.option("--out", metavar="DIR", help="A new folder; sftrun-NAME by default.")
def command(name: str, kind: str, out: str | None) -> None:
    """Write a small project with one component that works, its tests, a README and a CI workflow."""
    from sftrun.tools.new_plugin import new_plugin

    folder = new_plugin(name, kind, out)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    print(f"written: {folder}\n  {'  '.join(files)}", file=sys.stderr)
    steps = (f"cd {shlex.quote(str(folder))}", "pip install -e '.[test]'", "pytest")
    print("\n".join(["next:", *(f"  {step}" for step in steps)]), file=sys.stderr)
