"""`sftrun validate`: lists every mistake in recipes, without running anything."""

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
    help="text for people; json and github (annotations) for programs, on standard output.",
)
def command(paths: Sequence[str], sets: Sequence[str], form: str) -> int:
    """List every mistake in recipes at once. Exits with 1 if there are errors.

    A folder means every .yaml and .yml file below it, except files whose name starts with "." or "_". A name with "_"
    marks a part that recipes extend; it is checked with them.
    """
    from sftrun.recipe.validate import validate

    results = {path: validate(path, sets) for path in dict.fromkeys(_recipes(paths))}
    printers = {"text": _print_text, "json": _print_json, "github": _print_github}
    printers[form](results)
    return int(any(_count_errors(problems) for problems in results.values()))


def _recipes(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        in_folder = list(_recipes_below(path))
        if not in_folder:
            raise UserError(f"no recipe in {path}", "a recipe is a .yaml or .yml file")
        yield from in_folder


def _recipes_below(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(files):
            if name.endswith(ENDINGS) and not name.startswith((".", "_")):
                yield str(Path(where) / name)


def _count_errors(problems: Sequence[Problem]) -> int:
    return sum(problem.severity == "error" for problem in problems)


def _unique(results: dict[str, list[Problem]]) -> list[Problem]:
    """Returns each problem once: several recipes may extend the file that has it."""
    return list({(p.message, p.where): p for problems in results.values() for p in problems}.values())


def _print_text(results: dict[str, list[Problem]]) -> None:
    show.print_problems(_unique(results))
    show.print_line(summary(results))


def summary(results: dict[str, list[Problem]]) -> str:
    """Returns one line with the numbers of recipes, of fine ones, of errors and of warnings."""
    unique = _unique(results)
    errors = _count_errors(unique)
    warnings = len(unique) - errors
    wrong = [problems for problems in results.values() if _count_errors(problems)]
    parts = [f"{len(results) - len(wrong)} fine"] if len(wrong) < len(results) else []
    if wrong:
        parts.append(f"{len(wrong)} with {_plural(errors, 'error')}")
    if warnings:
        parts.append(_plural(warnings, "warning"))
    return f"{_plural(len(results), 'recipe')}: {', '.join(parts)}"


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _print_json(results: dict[str, list[Problem]]) -> None:
    recipes = [
        {"file": path, "ok": not _count_errors(problems), "problems": [show.as_data(problem) for problem in problems]}
        for path, problems in results.items()
    ]
    errors = sum(map(_count_errors, results.values()))
    warnings = sum(map(len, results.values())) - errors
    print(json.dumps({"recipes": recipes, "errors": errors, "warnings": warnings}, indent=2))


def _print_github(results: dict[str, list[Problem]]) -> None:
    for line in dict.fromkeys(show.as_annotation(p, path) for path, problems in results.items() for p in problems):
        print(line)
    show.print_line(summary(results))
