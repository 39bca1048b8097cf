"""Virtual environments that hold what is declared, and nothing else.

They are made without an index, and without waiting for torch: the distributions are linked from the environment that
the tests run in.
"""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


class Environment:
    """A virtual environment with some requirements, and all that they need in turn."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        venv.create(folder)
        self.python = folder / "bin" / "python"
        self.site = next((folder / "lib").glob("python3*")) / "site-packages"
        for requirement in requirements:
            for name in needed(requirement, set()):
                self._link(metadata.distribution(name))

    def _link(self, found: metadata.Distribution) -> None:
        top = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        for name in top:
            if not (self.site / name).exists():
                (self.site / name).symlink_to(Path(str(found.locate_file(name))).resolve())

    def install(self, *words: object, cwd: Path | None = None) -> None:
        """Installs with pip: not from an index, but it fails where a declared dependency is not there."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-index", *words]
        subprocess.run(pip, check=True, cwd=cwd)

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs its Python, outside the repository unless told otherwise."""
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [self.python, *map(str, words)],
            cwd=cwd or self.site,
            env={**kept, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def needed(text: str, seen: set[str]) -> Iterator[str]:
    """The names of a requirement and of all that it needs in turn, as their metadata say."""
    wanted = Requirement(text)
    if f"{wanted.name}{wanted.extras}" in seen:
        return
    seen.add(f"{wanted.name}{wanted.extras}")
    yield wanted.name
    for line in metadata.distribution(wanted.name).requires or ():
        marker = Requirement(line).marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted.extras or {""}):
            yield from needed(line, seen)
