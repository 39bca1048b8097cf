"""The run directory: the only thing that stages pass on to each other."""

import contextlib
import errno
import glob
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sftrun import files, scrub
from sftrun.errors import UserError
from sftrun.events import Event, Warned, encode, to_json
from sftrun.recipe.model import Recipe
from sftrun.recipe.resolved import from_resolved, resolved_yaml
from sftrun.runs import record

STAMPED = re.compile(r"(.+)-(\d{8}-\d{6})(?:-(\d+))?")  # name of a run directory without --out: recipe, time, number
RESOLVED, STATE = "resolved.yaml", "state.json"
FIRST = (RESOLVED, "recipe.yaml")  # files that are written before BEGUN
BEGUN = "lock.json"  # the last file that is written before the first stage
LOCK = ".lock"
UNFINISHED = re.compile(r"\..+\.\d+")  # name of a temporary file of `write_atomically`
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
        write_atomically(self.path / name, text if name == RESOLVED else scrub.hide(text))
        if name == RESOLVED:
            self._recipe = None

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file atomically; state.json and lock.json are sealed by their hash."""
        if name in record.SEALED:  # the seal is of what is written, without secrets
            data = files.seal(json.loads(scrub.hide(json.dumps(data, ensure_ascii=False))))
        self.write(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file; {} if the file does not exist yet.

        Raises UserError, with what to do, if it is damaged.
        """
        return record.read_json(self.path, name)

    def merge_json(self, name: str, data: dict[str, Any]) -> None:
        """Adds keys to a JSON file."""
        self.write_json(name, {**self.read_json(name), **data})

    def recipe(self) -> Recipe:
        """Returns the resolved recipe, parsed once; raises UserError if resolved.yaml is not what the run wrote."""
        if self._recipe is None:
            try:
                self._recipe = from_resolved((self.path / RESOLVED).read_text("utf-8"))
            except (UserError, UnicodeDecodeError):
                message = f"{self.path / RESOLVED} is not what the run wrote: it was edited, or is cut off"
                raise UserError(message, hint=record.advise(self.path, RESOLVED)) from None
        return self._recipe

    def write_recipe(self, recipe: Recipe) -> None:
        """Writes resolved.yaml: the recipe with every default."""
        self.write(RESOLVED, resolved_yaml(recipe))
        self._recipe = recipe

    def event(self, event: Event) -> None:
        """Appends one line to events.jsonl."""
        line = scrub.hide(to_json({"time": round(time.time(), 3), **encode(event)})) + "\n"
        with (self.path / "events.jsonl").open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line.encode()) < len(line.encode()):  # a full disk takes what it can
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    def events(self) -> list[dict[str, Any]]:
        """Returns the events so far, without a last line that a kill cut short."""
        return list(record.read_lines(self.path, "events.jsonl"))

    def mend(self) -> None:
        """Removes what a kill left: a last event that it cut short, and folders that were not finished."""
        file = self.path / "events.jsonl"
        if file.is_file():
            with file.open("r+b") as lines:
                lines.truncate(lines.read().rfind(b"\n") + 1)
        for folder in (self.path, self.model, self.eval, self.export):
            files.remove_unfinished(folder)

    def check(self, within: Sequence[str] = record.EVERYTHING) -> None:
        """Raises UserError, with what to do, if files are missing or not as their stages left them."""
        record.check(self.path, self.read_json(STATE), within)

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
            self._remove_unfinished()
            try:
                yield
            finally:
                self.locks.remove(file.fileno())
                self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Removes the temporary files of processes that were killed while they wrote; the caller has the lock."""
        for pattern in (".*", "*/.*"):
            for file in self.path.glob(pattern):
                if UNFINISHED.fullmatch(file.name) and file.is_file():
                    file.unlink(missing_ok=True)

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
    if file := files.find_file_above(out or root):
        raise UserError(
            f"no run directory can be made at {out or root}: {file} is not a folder", hint="name another --out"
        )
    if out is None:
        return RunDir(_create_stamped(recipe_file.stem, root).absolute())
    try:
        _check_empty(out, again)
    except UserError:
        if _is_locked(out):
            hint = "wait until it ends, or name another --out"
            raise UserError(f"another process is using {out}", hint=hint) from None
        raise
    out.mkdir(parents=True, exist_ok=True)
    return RunDir(out.absolute())


def _is_locked(out: Path) -> bool:
    """Returns True if another process works in a run directory."""
    import fcntl

    try:
        with (out / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not locked by anyone, or a file system without locks
        return False
    return False


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
    before, now = _recipe_of(link), _recipe_of(run.path)
    if before and now and before != now:
        emit(Warned(message=f"{link.name} was a run of {before}; from now on it is one of {now}"))
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
        is_run = name and name[1] == recipe_file.stem and (path / BEGUN).is_file()
        # another recipe of the same name has another file
        if name and is_run and _recipe_of(path) in (None, name_recipe(recipe_file)):
            found.append((name[2], int(name[3] or 1), path))
    return RunDir(max(found)[2].absolute()) if found else None


def name_recipe(recipe_file: Path) -> str:
    """Returns a recipe file relative to the folder of `runs`, so that a project can be moved."""
    return Path(os.path.relpath(recipe_file)).as_posix()


def _recipe_of(path: Path) -> str | None:
    """Returns the recipe file of a run; None if it is unknown."""
    try:
        named: str | None = record.read_json(path, BEGUN).get("recipe_file")
    except UserError:  # opening the run says so
        return None
    return named


def open_run(run: str | os.PathLike[str]) -> RunDir:
    """Returns an existing run directory; raises UserError if the folder is not one."""
    path = Path(run)
    began = (path / BEGUN).is_file() or (path / STATE).is_file()
    if not began and not (path / RESOLVED).is_file():
        raise UserError(f"{path} is not a run directory", hint="a run directory has a file resolved.yaml; see runs/")
    for name in (RESOLVED, BEGUN) if began else ():
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing", hint=record.advise(path, name))
    opened = RunDir(path.absolute())
    opened.recipe()
    for name in record.SEALED:
        opened.read_json(name)
    return opened
