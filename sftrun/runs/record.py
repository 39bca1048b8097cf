"""The record of a run: the hash of every file that a stage wrote, checked before a command uses the files.

`state.json` has it, in the same write that makes a stage done. `state.json` and `lock.json` are sealed: they have the
hash of their own content. A file whose signature is the recorded one is trusted; any other one is hashed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sftrun import files
from sftrun.errors import Problem, UserError

SEALED = ("state.json", "lock.json")
MARKER = "whole.json"  # sealed list of the files of a checkpoint
LOGS = ("events.jsonl", "run.log")  # they grow; what was recorded stays their beginning
FOLDERS = ("prepared", "model", "eval", "export")
CARDS = ("report.html", "README.md", "model/README.md")  # people edit them, and no command reads them
EVERYTHING = (*FOLDERS, *LOGS, *CARDS)


class Recorded(msgspec.Struct, frozen=True):
    """A file as a stage left it."""

    size: int
    sha256: str
    signature: tuple[int, int, int, int] | None = None


def read_json(run: Path, name: str) -> dict[str, Any]:
    """Returns the content of a JSON file of a run, {} if there is none; raises UserError if it is damaged."""
    file = run / name
    if not file.is_file():
        return {}
    if name in SEALED:
        try:
            return files.read_sealed(file)
        except UserError as error:
            raise UserError(error.problems[0].message, hint=advise(run, name)) from None
    data = files.parse_object(file.read_bytes())
    if data is None:
        raise damage(run, name)
    return data


def read_lines(run: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines, without a last line that a kill cut short.

    Raises UserError, with the line, for any other damage.
    """
    file = run / name
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            data = files.parse_object(line)
            if data is None:
                raise damage(run, name, number)
            yield data


def damage(run: Path, name: str, line: int | None = None) -> UserError:
    """Returns the error for a file of a run that cannot be read."""
    place = f"{run / name}:{line}" if line else str(run / name)
    return UserError(f"{place} is damaged: it is not what the run wrote", hint=advise(run, name))


def advise(run: Path, name: str) -> str:
    """Returns how to go on with a run if one of its files is damaged."""
    top = name.split("/", 1)[0]
    resume = f"sftrun resume {files.shell_path(run)}"
    remove = f"put it back, or remove {files.shell_path(run / top)}"
    advice = {
        "prepared": f"{remove}; then prepare the data again: {resume}",
        "model": f"{remove}; then make it again from the last checkpoint: {resume}",
        "eval": f"{remove}; then score again: sftrun eval {files.shell_path(run)}",
        "export": f"{remove}; then export again: {resume}",
        "state.json": f"{remove}; then every stage is passed again, from the last checkpoint: {resume}",
        "report.html": f"write the report again: {remove}, then {resume}",
        "README.md": f"write the report again: {remove}, then {resume}",
        **dict.fromkeys(LOGS, f"{remove}: the log begins again, and nothing else depends on it"),
    }
    return advice.get(top, f"put it back (keys are changed with {resume} --set KEY=VALUE), or start a new run")


def list_files(run: Path, names: Sequence[str]) -> dict[str, Any]:
    """Returns the record of the files below `names`, and of the logs, after they are on the disk."""
    found = {}
    for file in _walk(run, [*names, *LOGS]):
        files.sync_to_disk(file)
        size, name = file.stat().st_size, file.relative_to(run).as_posix()
        digest = _digest_start(file, size) if name in LOGS else files.file_digest(file)
        signature = None if name in LOGS else files.read_signature(file)
        found[name] = msgspec.to_builtins(Recorded(size, digest, signature))
    return found


def _walk(run: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = run / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and not _is_hidden(file.relative_to(run)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def recorded(state: dict[str, Any]) -> dict[str, Recorded]:
    """Returns the files of the stages that are done, in the order of their stages."""
    done = [stage for stage in state.values() if stage.get("status") == "done"]
    return {name: msgspec.convert(each, Recorded) for stage in done for name, each in stage.get("files", {}).items()}


def find_damage(
    run: Path, state: dict[str, Any], within: Sequence[str] = EVERYTHING, thorough: bool = False
) -> list[Problem]:
    """Returns a problem for each folder or file of `within` that is not as recorded.

    `thorough` hashes every file, and looks at the cards too.
    """
    wrong: dict[tuple[str, str], list[str]] = {}
    for name, each in recorded(state).items():
        if not any(name == part or name.startswith(f"{part}/") for part in within) or (name in CARDS and not thorough):
            continue
        flaw = _find_flaw(run / name, each, name in LOGS, thorough)
        if flaw:
            wrong.setdefault((name.split("/", 1)[0], flaw), []).append(name)
    return [
        Problem(f"{_join(names)} of the run {run} {_verb(names, flaw)}", hint=advise(run, names[0]))
        for (_, flaw), names in wrong.items()
    ]


def check(run: Path, state: dict[str, Any], within: Sequence[str] = EVERYTHING) -> None:
    """Raises UserError, with what to do, if files of a run are missing or not as its stages left them."""
    problems = find_damage(run, state, within)
    if problems:
        raise UserError(problems)


def find_damaged_checkpoints(checkpoints: Path) -> list[Problem]:
    """Returns a problem for each checkpoint with files that are not as they were sealed; hashes every file."""
    return [problem for marker in sorted(checkpoints.glob(f"checkpoint-*/{MARKER}")) for problem in _check_seal(marker)]


def _check_seal(marker: Path) -> Iterator[Problem]:
    hint = f"remove {files.shell_path(marker.parent)}; a resumed run continues from an earlier checkpoint"
    try:
        sealed = files.read_sealed(marker)["files"]
    except UserError as error:
        yield Problem(error.problems[0].message, hint=hint)
        return
    for name, (size, digest) in sealed.items():
        flaw = _find_flaw(marker.parent / name, Recorded(size, digest), grows=False, thorough=True)
        if flaw:
            yield Problem(f"{marker.parent / name} {_verb([name], flaw)}", hint=hint)


def find_unrecorded(run: Path, state: dict[str, Any]) -> list[str]:
    """Returns the files in the folders of done stages that no stage wrote."""
    known = recorded(state)
    tops = {name.split("/", 1)[0] for name in known} & set(FOLDERS)
    return [name for file in _walk(run, sorted(tops)) if (name := file.relative_to(run).as_posix()) not in known]


def _find_flaw(file: Path, was: Recorded, grows: bool, thorough: bool) -> str | None:
    if not file.is_file():
        return "missing"
    if grows:
        return None if _digest_start(file, was.size) == was.sha256 else "changed"
    if not thorough and files.read_signature(file) == was.signature:
        return None
    return None if files.file_digest(file) == was.sha256 else "changed"


def _digest_start(file: Path, size: int) -> str:
    """Returns the SHA-256 of the first bytes of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while size > 0 and (block := data.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _join(names: list[str]) -> str:
    shown = names if len(names) <= 5 else [*names[:5], f"{len(names) - 5} more files"]
    return ", ".join(shown)


def _verb(names: list[str], flaw: str) -> str:
    if flaw == "missing":
        return "is missing" if len(names) == 1 else "are missing"
    return f"{'has' if len(names) == 1 else 'have'} changed since the run wrote {'it' if len(names) == 1 else 'them'}"
