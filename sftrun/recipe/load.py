"""Reads a recipe file and those it extends into one document whose values know their places."""

import os
from pathlib import Path

import msgspec

from sftrun.errors import Place, Problem, RecipePath, UserError
from sftrun.recipe.compose import LINE_BREAK, compose
from sftrun.recipe.document import Node, Origin
from sftrun.recipe.merge import merge

MAX_BYTES = 1_000_000
EXTENDS: RecipePath = ("extends",)


def shown(path: Path) -> str:
    """A path as people read it: relative to the current directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_text(path: Path) -> str:
    """The text of a recipe file; raises UserError, without a place, when there is none to be had."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"{shown(path)} is a folder, not a recipe", "name a .yaml file in it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such file: {shown(path)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{shown(path)} is larger than 1 MB, the largest size of a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(Problem("not UTF-8 text", Place(shown(path), line), hint="save the file as UTF-8")) from None


def read(path: Path) -> tuple[Node, list[Problem]]:
    """The recipe in a file, what it extends merged in, and problems that did not stop the reading.

    Raises UserError where no mapping can be read.
    """
    return _read(Path(os.path.abspath(path)), ())


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    text = read_text(path)
    origin = Origin(shown(path), path.parent, LINE_BREAK.split(text))
    node, problems = compose(text, origin)
    if node is None or node.value is None:
        hint = "write at least model: and source:, or extend another recipe"
        raise UserError([*problems, Problem("the recipe is empty", Place(origin.shown), hint=hint)])
    if not isinstance(node.value, dict):
        what = "a list" if isinstance(node.value, list) else "a single value"
        raise UserError([*problems, Problem(f"a recipe must be a mapping of keys to values, not {what}", node.place)])
    return _extended(node, problems, (*chain, path))


def _extended(node: Node, problems: list[Problem], chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    link = node.value.get("extends")
    node = msgspec.structs.replace(node, value={key: value for key, value in node.value.items() if key != "extends"})
    if link is None or link.value is None:
        return node, problems
    if not isinstance(link.value, str) or not link.value:
        return node, [*problems, Problem("extends must be the path of a recipe file", link.place, EXTENDS)]
    target = Path(os.path.abspath(link.origin.folder / os.path.expanduser(link.value)))
    try:
        _reachable(target, chain)
    except UserError as error:
        said = [Problem(problem.message, link.place, EXTENDS, problem.hint) for problem in error.problems]
        return node, problems + said
    base, more = _read(target, chain)
    return merge(base, node), problems + more


def _reachable(target: Path, chain: tuple[Path, ...]) -> None:
    """Raises UserError where the file that `extends` names cannot be read, or would be read within itself."""
    names = " → ".join(shown(path) for path in (*chain, target))
    if target.resolve() in [path.resolve() for path in chain]:
        raise UserError(f"extends is circular: {names}")
    try:
        with target.open("rb"):
            return
    except IsADirectoryError:
        raise UserError(f"extends names a folder: {names}", "name a .yaml file in it") from None
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the recipe that extends names: {names}: {reason}") from None
