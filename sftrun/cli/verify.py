"""`sftrun verify`: checks every file of a run, and shows what its model was made of."""

import json
from collections.abc import Iterator
from typing import Any

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def command(run: str, as_json: bool) -> int:
    """Check every file of a run directory against the hashes that the run recorded.

    Shows what the model was made of: recipe, base, data files, versions. The exit code is 1 if a file is missing or
    has changed.
    """
    from sftrun.cli import show
    from sftrun.tools.verify import verify

    found = verify(run)
    if as_json:
        problems = [show.as_data(problem) for problem in found.problems]
        data = {"problems": problems, "notes": found.notes, "files": found.files, "made_of": found.made_of}
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        for name, value in describe(found.made_of):
            print(f"{name:<10}{value}")
        for note in found.notes:
            show.print_line(f"note: {note}")
    show.print_problems(found.problems)
    if found.problems:
        return 1
    show.print_line(f"{found.files} files are as the run wrote them")
    return 0


def describe(made_of: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the lines of a manifest: a label and a text."""
    for name, digest in made_of.get("recipe", {}).items():
        yield "recipe", f"{name}  sha256 {digest}"
    for override in made_of.get("overrides", []):
        yield "override", override
    base = made_of.get("base") or {}
    if base:
        facts = {key: value for key, value in base.items() if key not in ("name", "files") and value is not None}
        yield "base", "  ".join([base["name"], *(f"{key} {value}" for key, value in facts.items())])
    for name, each in base.get("files", {}).items():
        yield "", f"{name}  {_describe_file(each)}"
    for each in made_of.get("data", []):
        rows = ", ".join(f"{number:,} rows in {split}" for split, number in each["rows"].items())
        yield "data", f"{each['name']}  {_describe_file(each)}{rows}"
    if made_of.get("mask"):
        yield "mask", made_of["mask"]
    versions = made_of.get("versions", {})
    if versions:
        packages = ", ".join(f"{name} {version}" for name, version in versions.get("packages", {}).items())
        yield "versions", f"sftrun {versions.get('sftrun')}, Python {versions.get('python')}, {packages}"


def _describe_file(each: dict[str, Any]) -> str:
    return f"{each['size']:,} bytes  sha256 {each['sha256']}  " if "sha256" in each else ""
