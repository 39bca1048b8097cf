"""`sftrun validate`: all that is wrong with recipes, without running anything."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from sftrun.cli import show
from sftrun.cli.options import overrides
from sftrun.errors import Problem, UserError

ENDINGS = (".yaml", ".yml")


@click.command("validate")
@click.argument("paths", nargs=-1, required=True, metavar="RECIPE|FOLDER…")
@overrides
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="For people; one JSON document on stdout; or GitHub annotations on stdout.",
)
def command(paths: Sequence[str], sets: Sequence[str], form: str) -> int:
    """Say everything that is wrong with recipes, all at once. Exits with 1 if there are errors.

    A folder stands for every .yaml and .yml file below it, but for hidden ones and those whose name starts
    with "_": parts that recipes extend, checked with them.
    """
    from sftrun.recipe.validate import validate

    found = {path: validate(path, sets) for path in dict.fromkeys(_recipes(paths))}
    printers = {"text": _text, "json": _json, "github": _github}
    printers[form](found)
    return int(any(_errors(problems) for problems in found.values()))


def _recipes(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        inside = list(_inside(path))
        if not inside:
            raise UserError(f"no recipe in {path}", "a recipe is a .yaml or .yml file")
        yield from inside


def _inside(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(files):
            if name.endswith(ENDINGS) and not name.startswith((".", "_")):
                yield str(Path(where) / name)


def _errors(problems: Sequence[Problem]) -> int:
    return sum(problem.severity == "error" for problem in problems)


def _unique(found: dict[str, list[Problem]]) -> list[Problem]:
    """Each problem once: several recipes may extend the file that has it."""
    return list({(p.message, p.where): p for problems in found.values() for p in problems}.values())


def _text(found: dict[str, list[Problem]]) -> None:
    show.problems(_unique(found))
    show.say(summary(found))


def summary(found: dict[str, list[Problem]]) -> str:
    """One line: how many recipes, how many of them fine, how many errors and warnings."""
    unique = _unique(found)
    errors, warnings = _errors(unique), len(unique) - _errors(unique)
    wrong = [problems for problems in found.values() if _errors(problems)]
    parts = [f"{len(found) - len(wrong)} fine"] if len(wrong) < len(found) else []
    if wrong:
        parts.append(f"{len(wrong)} with {_counted(errors, 'error')}")
    if warnings:
        parts.append(_counted(warnings, "warning"))
    return f"{_counted(len(found), 'recipe')}: {', '.join(parts)}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _json(found: dict[str, list[Problem]]) -> None:
    recipes = [
        {"file": path, "ok": not _errors(problems), "problems": [show.as_data(problem) for problem in problems]}
        for path, problems in found.items()
    ]
    errors = sum(map(_errors, found.values()))
    warnings = sum(map(len, found.values())) - errors
    print(json.dumps({"recipes": recipes, "errors": errors, "warnings": warnings}, indent=2))


def _github(found: dict[str, list[Problem]]) -> None:
    for line in dict.fromkeys(show.github(p, path) for path, problems in found.items() for p in problems):
        print(line)
    show.say(summary(found))
