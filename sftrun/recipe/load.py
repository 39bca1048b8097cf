"""Reads a recipe file and the files that it extends into one document with places."""

import os
from pathlib import Path

import msgspec

from sftrun.errors import Place, Problem, RecipePath, UserError
from sftrun.files import Signature, read_signature
from sftrun.recipe.compose import LINE_BREAK, compose
from sftrun.recipe.document import Node, Origin
from sftrun.recipe.merge import merge

MAX_BYTES = 1_000_000  # bytes of one file
EXTENDS: RecipePath = ("extends",)
SHELL_PIPES = ("/dev/fd/", "/proc/")

_bases: dict[tuple[str, Path, Signature], Node] = {}  # a thousand recipes may extend one


def display_path(path: Path) -> str:
    """Returns a path for a message: relative to the current directory if it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_text(path: Path) -> str:
    """Returns the text of a recipe file; raises UserError if it cannot be read."""
    _refuse_pipe(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"{display_path(path)} is a folder, not a recipe", "name a .yaml file in it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such file: {display_path(path)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {display_path(path)}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{display_path(path)} is larger than 1 MB, the largest size of a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        place = Place(display_path(path), line)
        raise UserError(Problem("not UTF-8 text", place, hint="save the file as UTF-8")) from None


def _refuse_pipe(path: Path) -> None:
    """Raises UserError for a pipe, on which reading may wait forever; the shell's `<(command)` is none of them."""
    if path.is_fifo() and not str(path).startswith(SHELL_PIPES):
        raise UserError(f"{display_path(path)} is a pipe, not a file")


def read_file(path: Path) -> tuple[Node, list[Problem]]:
    """Reads a recipe and merges it into the recipe that it extends; returns it with the problems that were found.

    Raises UserError if the file holds no mapping.
    """
    return _read(Path(os.path.abspath(path)), ())


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    text = read_text(path)
    origin = Origin(display_path(path), path.parent, LINE_BREAK.split(text))
    node, problems = compose(text, origin)
    if node is None or node.value is None:
        hint = "write at least model: and source:, or extend another recipe"
        raise UserError([*problems, Problem("the recipe is empty", Place(origin.name), hint=hint)])
    if not isinstance(node.value, dict):
        what = "a list" if isinstance(node.value, list) else "a single value"
        raise UserError([*problems, Problem(f"a recipe must be a mapping of keys to values, not {what}", node.place)])
    return _merge_into_base(node, problems, (*chain, path))


def _merge_into_base(node: Node, problems: list[Problem], chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    link = node.value.get("extends")
    node = msgspec.structs.replace(node, value={key: value for key, value in node.value.items() if key != "extends"})
    if link is None or link.value is None:
        return node, problems
    if not isinstance(link.value, str) or not link.value:
        return node, [*problems, Problem("extends must be the path of a recipe file", link.place, EXTENDS)]
    target = Path(os.path.abspath(link.origin.folder / os.path.expanduser(link.value)))
    try:
        _check_base(target, chain)
    except UserError as error:
        unreadable = [Problem(problem.message, link.place, EXTENDS, problem.hint) for problem in error.problems]
        return node, problems + unreadable
    base, base_problems = _read_base(target, chain)
    return merge(base, node), problems + base_problems


def _read_base(path: Path, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    """Reads a recipe that another extends; one that extends none and has no problems is read once."""
    key = display_path(path), path, read_signature(path)
    if key in _bases:
        return _bases[key], []
    node, problems = _read(path, chain)
    if not problems and EXTENDS[0] not in node.keys:
        _bases[key] = node
    return node, problems


def _check_base(target: Path, chain: tuple[Path, ...]) -> None:
    """Raises UserError if the file that `extends` names cannot be read, or extends itself."""
    names = " → ".join(display_path(path) for path in (*chain, target))
    if target.resolve() in [path.resolve() for path in chain]:
        raise UserError(f"extends is circular: {names}")
    _refuse_pipe(target)
    try:
        with target.open("rb"):
            return
    except IsADirectoryError:
        raise UserError(f"extends names a folder: {names}", "name a .yaml file in it") from None
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the recipe that extends names: {names}: {reason}") from None
