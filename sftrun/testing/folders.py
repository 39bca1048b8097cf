"""Folders before and after a component has worked."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sftrun.files import file_digest


def contents(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, by its relative path."""
    return {str(file.relative_to(folder)): file_digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """The current folder of this process, for the duration of a `with`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
