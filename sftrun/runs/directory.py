"""The run directory: the only thing that stages pass on to each other."""

import contextlib
import errno
import glob
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from sftrun.errors import UserError
from sftrun.events import Event, Warned, encode, to_json
from sftrun.recipe.model import Recipe
from sftrun.recipe.resolved import from_resolved, resolved_yaml

STAMPED = re.compile(r"(.+)-(\d{8}-\d{6})(?:-(\d+))?")  # name of a run directory without --out: recipe, time, number
RESOLVED, STATE = "resolved.yaml", "state.json"
FIRST = (RESOLVED, "recipe.yaml")  # files that are written before BEGUN
BEGUN = "lock.json"  # the last file that is written before the first stage
LOCK = ".lock"
PATIENCE = 10.0  # seconds to wait for the lock, until the workers of a killed attempt have ended


class RunDir:
    """A run directory; every write to it is atomic."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prepared = path / "prepared"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.eval = path / "eval"
        self.export = path / "export"
        self.tensorboard = path / "tensorboard"
        self.log = path / "run.log"
        self.locks: list[int] = []
        self._recipe: Recipe | None = None

    def write(self, name: str, text: str) -> None:
        """Writes a text file atomically: a temporary file, fsync, rename."""
        write_atomically(self.path / name, text)
        if name == RESOLVED:
            self._recipe = None

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file atomically."""
        self.write(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file; {} if the file does not exist yet."""
        file = self.path / name
        return json.loads(file.read_text("utf-8")) if file.is_file() else {}

    def merge_json(self, name: str, data: dict[str, Any]) -> None:
        """Adds keys to a JSON file."""
        self.write_json(name, {**self.read_json(name), **data})

    def recipe(self) -> Recipe:
        """Returns the resolved recipe, parsed once; raises UserError if resolved.yaml is not one."""
        if self._recipe is None:
            self._recipe = from_resolved((self.path / RESOLVED).read_text("utf-8"))
        return self._recipe

    def write_recipe(self, recipe: Recipe) -> None:
        """Writes resolved.yaml: the recipe with every default."""
        self.write(RESOLVED, resolved_yaml(recipe))
        self._recipe = recipe

    def event(self, event: Event) -> None:
        """Appends one line to events.jsonl."""
        line = to_json({"time": round(time.time(), 3), **encode(event)}) + "\n"
        with (self.path / "events.jsonl").open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line.encode()) < len(line.encode()):  # a full disk takes what it can
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    def events(self) -> list[dict[str, Any]]:
        """Returns the events so far, without a last line that a kill cut short."""
        file = self.path / "events.jsonl"
        *whole, _cut = (file.read_text("utf-8") if file.is_file() else "").split("\n")
        return [json.loads(line) for line in whole]

    def mend(self) -> None:
        """Removes a last event that a kill cut short, so that the next event starts a new line."""
        file = self.path / "events.jsonl"
        if file.is_file():
            with file.open("r+b") as lines:
                lines.truncate(lines.read().rfind(b"\n") + 1)

    def done(self, name: str) -> bool:
        """Returns True if a stage is done."""
        return bool(self.read_json(STATE).get(name, {}).get("status") == "done")

    def facts(self, stage: str) -> dict[str, Any]:
        """Returns what state.json has about a stage: its status, and what was found out in it."""
        return dict(self.read_json(STATE).get(stage, {}))

    def add_facts(self, stage: str, **facts: Any) -> None:
        """Adds to state.json what was found out in a stage: the base of an adapter, the batch that was chosen, …"""
        state = self.read_json(STATE)
        self.write_json(STATE, {**state, stage: {**state.get(stage, {}), **facts}})

    def mark_undone(self, *names: str) -> None:
        """Makes stages run again; what was found out in them (the batch that was chosen, …) is kept."""
        state = self.read_json(STATE)
        for name in names:
            state.get(name, {}).pop("status", None)
        self.write_json(STATE, state)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run directory inside the block; workers inherit the lock and keep it until the last one exits.

        Raises UserError if another process has the lock.
        """
        import fcntl

        with (self.path / LOCK).open("a") as file:
            _acquire_lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, self.path)
            self.locks.append(file.fileno())
            try:
                yield
            finally:
                self.locks.remove(file.fileno())

    def stage(self, name: str, status: str, **made: Any) -> None:
        """Records the status of a stage, and facts about its result."""
        state = self.read_json(STATE)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        state[name] = {**state.get(name, {}), "status": status, status: now, **made}
        self.write_json(STATE, state)


def write_atomically(file: Path, text: str) -> None:
    """Writes a file atomically: after a kill, the file is either the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    making = file.with_name(f".{file.name}.{os.getpid()}")
    with making.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    making.replace(file)


def _acquire_lock(file: int, how: int, path: Path) -> None:
    import fcntl

    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, how)
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"another process is using {path}", hint="wait until it ends, or stop it") from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return None


def create(recipe_file: Path, out: Path | None, root: Path = Path("runs"), again: bool = False) -> RunDir:
    """Creates and returns a run directory: `out`, or one below `root` named after the recipe and the time.

    Raises UserError if `out` is not empty. With `again`, files of a run that was killed before its first stage do not
    count.
    """
    if out is None:
        return RunDir(_create_stamped(recipe_file.stem, root).absolute())
    _check_empty(out, again)
    out.mkdir(parents=True, exist_ok=True)
    return RunDir(out.absolute())


def _create_stamped(stem: str, root: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    root.mkdir(parents=True, exist_ok=True)
    for name in (f"{stem}-{stamp}", *(f"{stem}-{stamp}-{number}" for number in range(2, 100))):
        with contextlib.suppress(FileExistsError):  # another run began in the same second
            (root / name).mkdir()
            return root / name
    raise UserError(f"{root} has a hundred runs of {stem} that began in this second", hint="name another --out")


def vacate(run: RunDir, again: bool) -> None:
    """Empties a new run directory, which the caller has locked; raises UserError if another process was faster."""
    for path in _check_empty(run.path, again):
        path.unlink()


def _check_empty(out: Path, again: bool) -> list[Path]:
    """Returns the files of a run that was killed before its first stage, without the lock file.

    Raises UserError if the folder has other files, or if it has any and `again` is False.
    """
    if not out.exists():
        return []
    left = [path for path in out.iterdir() if path.name != LOCK] if out.is_dir() else [out]
    if left and not (again and _never_began(left)):
        hint = "name another --out, or remove it"
        if (out / BEGUN).is_file():
            hint = f"name another --out; to resume the run in it: sftrun resume {shlex.quote(str(out))}"
        raise UserError(f"{out} is not empty", hint=hint)
    return left


def _never_began(left: list[Path]) -> bool:
    known = all(path.is_file() and (path.name[0] == "." or path.name in FIRST) for path in left)
    return known and any(path.name == FIRST[0] for path in left)


def point_latest(run: RunDir, emit: Callable[[Event], None]) -> None:
    """Links `<recipe>-latest`, next to a finished run, to that run, so that another recipe can build on it.

    A run that the user named is found by that name.
    """
    name = STAMPED.fullmatch(run.path.name)
    if not name:
        return
    link = run.path.parent / f"{name[1]}-latest"
    making = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        making.symlink_to(run.path.name)
        making.replace(link)
    except OSError as error:  # a file system without links: the run itself is whole
        emit(Warned(message=f"no link {link.name} could be made: {error}"))


def find_latest(recipe_file: Path, root: Path = Path("runs")) -> RunDir | None:
    """Returns the newest run of a recipe below `root`, finished or not; None if there is none."""
    found = []
    for path in root.glob(f"{glob.escape(recipe_file.stem)}-*"):
        name = STAMPED.fullmatch(path.name)
        if name and name[1] == recipe_file.stem and (path / BEGUN).is_file():
            found.append((name[2], int(name[3] or 1), path))
    return RunDir(max(found)[2].absolute()) if found else None


def open_run(run: str | os.PathLike[str]) -> RunDir:
    """Returns an existing run directory; raises UserError if the folder is not one."""
    path = Path(run)
    if not (path / "resolved.yaml").is_file():
        raise UserError(f"{path} is not a run directory", hint="a run directory has a file resolved.yaml; see runs/")
    return RunDir(path.absolute())
