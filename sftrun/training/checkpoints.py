"""Checkpoints on disk: written to a temporary folder, sealed with a marker of sizes and hashes, then renamed.

A folder without a marker, or without the files that its marker names, does not count as a checkpoint.
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
VISIBLE = 60.0  # seconds until a network file system shows another machine's files


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint; `loss` is the validation loss at its step, if it was computed.

    `finished` is True if training had ended with it; `progress` holds state that the trainer itself does not save.
    """

    folder: Path
    step: int
    loss: float | None
    finished: bool
    progress: dict[str, Any]
    files: dict[str, tuple[int, str]]

    def broken_file(self) -> str | None:
        """Returns the first file whose content has changed since it was written."""
        return next(
            (
                name
                for name, (_, digest) in self.files.items()
                if sftrun.files.file_digest(self.folder / name) != digest
            ),
            None,
        )


def begin(folder: Path) -> Path:
    """Creates an empty folder for a new checkpoint; removes leftovers of a killed process."""
    making = folder / SAVING
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    return making


def list_files(folder: Path) -> list[str]:
    """Returns the files of an unfinished checkpoint that are visible to this process."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def wait_for_files(folder: Path, names: list[str]) -> None:
    """Waits until files of other processes are visible; raises UserError after a minute."""
    end = time.monotonic() + VISIBLE
    while missing := [name for name in names if not (folder / name).is_file()]:
        if time.monotonic() > end:
            message = f"{', '.join(missing)}, written by another process, cannot be seen in {folder}"
            raise sftrun.UserError(message, hint="the run directory must be on a file system that all nodes share")
        time.sleep(0.1)


def seal(saving: Path, **facts: Any) -> Path:
    """Writes the marker of `.saving/<name>`, then renames that folder to the checkpoint `<name>` atomically."""
    files = {}
    for name in list_files(saving):
        sftrun.files.sync_to_disk(saving / name)
        files[name] = ((saving / name).stat().st_size, sftrun.files.file_digest(saving / name))
    (saving / MARKER).write_text(json.dumps(sftrun.files.seal({**facts, "files": files})), "utf-8")
    sftrun.files.sync_to_disk(saving / MARKER)
    for folder in (saving, *(path for path in saving.rglob("*") if path.is_dir())):
        sftrun.files.sync_to_disk(folder)
    checkpoint = saving.parent.parent / saving.name
    remove(checkpoint)
    saving.rename(checkpoint)
    sftrun.files.sync_to_disk(checkpoint.parent)
    saving.parent.rmdir()
    return checkpoint


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints by step; `Checkpoint.broken_file` checks their contents."""
    candidates = [_read(each) for each in folder.glob("checkpoint-*")] if folder.is_dir() else []
    return sorted((each for each in candidates if each is not None), key=lambda each: each.step)


def latest_intact(folder: Path, emit: sftrun.kinds.Emit) -> Checkpoint | None:
    """Returns the newest checkpoint with intact files; warns of damaged ones, and removes later ones."""
    _warn_of_markers(folder, emit)
    for each in reversed(complete_checkpoints(folder)):
        broken = each.broken_file()
        if broken is None:
            _clean(folder, {old.step for old in complete_checkpoints(folder) if old.step <= each.step})
            return each
        emit(sftrun.events.Warned(message=f"{each.folder} is not used: {broken} has changed since it was written"))
    _clean(folder, set())
    return None


def best(folder: Path) -> Checkpoint | None:
    """Returns the first checkpoint with the lowest validation loss."""
    scored = [each for each in complete_checkpoints(folder) if each.loss is not None]
    return min(scored, key=lambda each: each.loss or 0.0, default=None)


def prune(folder: Path, limit: int | None) -> None:
    """Removes all but the `limit` newest checkpoints and the best one."""
    if limit is None:
        return
    kept = best(folder)
    for each in complete_checkpoints(folder)[:-limit]:
        if kept is None or each.step != kept.step:
            remove(each.folder)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, its marker first, so that a partly removed checkpoint does not count."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turns a full disk into a UserError that names the last complete checkpoint; removes partly written files."""
    try:
        yield
    except Exception as error:
        if not sftrun.files.is_disk_full(error):
            raise
        if ranks.is_first():
            shutil.rmtree(folder / SAVING, ignore_errors=True)
        message = f"{what} could not be written: the disk is full, or a quota or file size limit is reached"
        hint = f"make room, then resume the run ({str(error).splitlines()[0]})"
        raise sftrun.UserError(f"{message}; {describe_latest(folder)}", hint=hint) from error


def describe_latest(folder: Path) -> str:
    """Returns a phrase that names the last complete checkpoint."""
    complete = complete_checkpoints(folder)
    return f"the last complete checkpoint is {complete[-1].folder}" if complete else "there is no checkpoint yet"


def _clean(folder: Path, steps: set[int]) -> None:
    """Removes every checkpoint except the ones of these steps; training writes the others again."""
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for each in folder.glob("checkpoint-*"):
        if each.name not in {f"checkpoint-{step}" for step in steps}:
            remove(each)


def _read(folder: Path) -> Checkpoint | None:
    try:
        facts = sftrun.files.read_sealed(folder / MARKER)
        files = {name: (int(size), str(digest)) for name, (size, digest) in facts.pop("files").items()}
        complete = all((folder / name).stat().st_size == size for name, (size, _) in files.items())
        return Checkpoint(folder=folder, files=files, **facts) if complete else None
    except (OSError, sftrun.UserError, TypeError, KeyError, AttributeError):
        return None


def _warn_of_markers(folder: Path, emit: sftrun.kinds.Emit) -> None:
    """Warns of checkpoints whose marker is no longer the one that was written; those without one are half removed."""
    for each in sorted(folder.glob(f"checkpoint-*/{MARKER}")):
        if _read(each.parent) is None:
            message = f"{each.parent} is not used: {MARKER} or a file that it names has changed since it was written"
            emit(sftrun.events.Warned(message=message))
