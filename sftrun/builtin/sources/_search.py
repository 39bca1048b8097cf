"""Search for files: matches a pattern, and lists the files below a folder."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sftrun
from sftrun import files

WILD = re.compile(r"[*?\[]")
ANY_FOLDERS = "**"
RESOLVED = "resolved.yaml"  # in each run directory, whose own files are no data


def split_pattern(path: str) -> tuple[Path, list[str]]:
    """Splits a path into a folder and the parts of a pattern; a part is no pattern if it exists as it is written."""
    parts = list(Path(path).parts)
    folder = Path()
    while parts and not (WILD.search(parts[0]) and not os.path.lexists(folder / parts[0])):
        folder /= parts.pop(0)
    return folder, parts


class Search:
    """A search for files; `problems` has what it could not read, `skipped` the run directories it did not enter."""

    def __init__(self, at: tuple[str, ...]) -> None:
        self.at = at
        self.problems: list[sftrun.Problem] = []
        self.skipped: list[Path] = []

    def match(self, folder: Path, parts: Sequence[str]) -> list[Path]:
        """Returns the files below a folder that match a pattern, in the order of their names."""
        found = sorted(set(self._iter_matches(folder, parts)))
        return [path for path in found if self.accept(path)]

    def list_below(self, folder: Path) -> list[Path]:
        """Returns every file below a folder, in the order of their names, without hidden ones."""
        return self.match(folder, [ANY_FOLDERS, "*"])

    def accept(self, path: Path) -> bool:
        """Returns True for a file; notes a problem if the path is a pipe, a broken link or has an unusable name."""
        if path.is_dir():
            return False
        flaw = files.describe_special(path) or (None if files.is_utf8(path) else "has a name that is not UTF-8 text")
        if flaw:
            hint = "rename it" if "name" in flaw else "replace it with a file"
            self.problems.append(sftrun.Problem(f"{files.printable(path)} {flaw}", path=self.at, hint=hint))
        return not flaw

    def _iter_matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        part, rest = parts[0], parts[1:]
        if part == ANY_FOLDERS:
            for below in self._iter_folders(folder, set()):
                yield from self._iter_matches(below, rest or ["*"])
            return
        for path in self._match_part(folder, part):
            if not rest:
                yield path
            elif path.is_dir():
                yield from self._iter_matches(path, rest)

    def _match_part(self, folder: Path, part: str) -> Iterator[Path]:
        """Yields the entries of a folder that a part of a pattern matches; one with that very name is the only one."""
        if not WILD.search(part) or os.path.lexists(folder / part):
            yield from [folder / part] if os.path.lexists(folder / part) else []
            return
        matches = re.compile(fnmatch.translate(part)).match
        for name in self._list_names(folder):
            if matches(name) and (part.startswith(".") or not name.startswith(".")):
                yield folder / name

    def _iter_folders(self, folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
        """Yields a folder and those below it, each once, also if links lead to it several times."""
        found = folder.stat()
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
        yield folder
        for name in self._list_names(folder):
            below = folder / name
            if name.startswith(".") or not below.is_dir():
                continue
            if (below / RESOLVED).is_file():
                self.skipped.append(below)
            else:
                yield from self._iter_folders(below, seen)

    def _list_names(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            message = f"{files.printable(folder)} cannot be read: {error.strerror}"
            self.problems.append(sftrun.Problem(message, path=self.at))
            return []
