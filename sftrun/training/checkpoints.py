"""Checkpoints on disk: written under another name, sealed with a marker of sizes and hashes, then named.

What has no marker, or not the files that its marker names, is no checkpoint.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sftrun
from sftrun.training import ranks

MARKER = "whole.json"
SAVING = ".saving"
SEEN = 60.0  # seconds until a network's file system shows what another machine has written


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint; `loss` is the validation loss at its step, where it was computed.

    `finished` says that training had ended with it, and `progress` is what the trainer itself does not save.
    """

    folder: Path
    step: int
    loss: float | None
    finished: bool
    progress: dict[str, Any]
    files: dict[str, tuple[int, str]]

    def broken(self) -> str | None:
        """The first file whose content is not what was written."""
        return next(
            (
                name
                for name, (_, digest) in self.files.items()
                if sftrun.files.file_digest(self.folder / name) != digest
            ),
            None,
        )


def begin(folder: Path) -> Path:
    """An empty folder to write a checkpoint into; what a kill has left there is removed."""
    making = folder / SAVING
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    return making


def files(made: Path) -> list[str]:
    """The files of a checkpoint that is being made, as this process sees them."""
    return sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())


def expect(made: Path, names: list[str]) -> None:
    """Waits until what other processes have written is seen here; raises UserError where it never is."""
    end = time.monotonic() + SEEN
    while absent := [name for name in names if not (made / name).is_file()]:
        if time.monotonic() > end:
            message = f"{', '.join(absent)}, of another process, cannot be seen in {made}"
            raise sftrun.UserError(message, hint="the run directory must be on a file system that all nodes share")
        time.sleep(0.1)


def seal(made: Path, **facts: Any) -> Path:
    """Makes what stands in `.saving/<name>` the whole checkpoint `<name>`; a kill leaves all of it or nothing."""
    found = {}
    for name in files(made):
        sftrun.files.sync_to_disk(made / name)
        found[name] = ((made / name).stat().st_size, sftrun.files.file_digest(made / name))
    (made / MARKER).write_text(json.dumps({**facts, "files": found}), "utf-8")
    sftrun.files.sync_to_disk(made / MARKER)
    for folder in (made, *(path for path in made.rglob("*") if path.is_dir())):
        sftrun.files.sync_to_disk(folder)
    named = made.parent.parent / made.name
    remove(named)
    made.rename(named)
    sftrun.files.sync_to_disk(named.parent)
    made.parent.rmdir()
    return named


def whole(folder: Path) -> list[Checkpoint]:
    """The checkpoints that are there in full, by step. Contents are not read: see `Checkpoint.broken`."""
    found = [_read(each) for each in folder.glob("checkpoint-*")] if folder.is_dir() else []
    return sorted((each for each in found if each is not None), key=lambda each: each.step)


def last(folder: Path, emit: sftrun.kinds.Emit) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as it was written; those that came later are removed."""
    for each in reversed(whole(folder)):
        broken = each.broken()
        if broken is None:
            _clean(folder, {old.step for old in whole(folder) if old.step <= each.step})
            return each
        emit(sftrun.events.Warned(message=f"{each.folder} is left out: {broken} is not what was written there"))
    _clean(folder, set())
    return None


def best(folder: Path) -> Checkpoint | None:
    """The first checkpoint with the lowest validation loss."""
    scored = [each for each in whole(folder) if each.loss is not None]
    return min(scored, key=lambda each: each.loss or 0.0, default=None)


def thin_out(folder: Path, limit: int | None) -> None:
    """Removes all but the `limit` newest checkpoints and the best one."""
    if limit is None:
        return
    kept = best(folder)
    for each in whole(folder)[:-limit]:
        if kept is None or each.step != kept.step:
            remove(each.folder)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, its marker first: one that is partly gone does not count."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


@contextlib.contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Where the disk takes no more, what is half written goes, and the error names the last whole checkpoint."""
    try:
        yield
    except Exception as error:
        if not sftrun.files.is_disk_full(error):
            raise
        if ranks.first():
            shutil.rmtree(folder / SAVING, ignore_errors=True)
        message = f"{what} could not be written, the disk is full or files may not be so large"
        hint = f"make room, then resume the run ({str(error).splitlines()[0]})"
        raise sftrun.UserError(f"{message}; {standing(folder)}", hint=hint) from error


def standing(folder: Path) -> str:
    """What there is to go on from, in words."""
    found = whole(folder)
    return f"the last whole checkpoint is {found[-1].folder}" if found else "there is no checkpoint yet"


def _clean(folder: Path, steps: set[int]) -> None:
    """Leaves the checkpoints of these steps; training makes the others again."""
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for each in folder.glob("checkpoint-*"):
        if each.name not in {f"checkpoint-{step}" for step in steps}:
            remove(each)


def _read(folder: Path) -> Checkpoint | None:
    try:
        facts = json.loads((folder / MARKER).read_text("utf-8"))
        files = {name: (int(size), str(digest)) for name, (size, digest) in facts.pop("files").items()}
        complete = all((folder / name).stat().st_size == size for name, (size, _) in files.items())
        return Checkpoint(folder=folder, files=files, **facts) if complete else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
