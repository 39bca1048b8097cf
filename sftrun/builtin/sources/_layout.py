"""Which files a path names, and which split each of them belongs to."""

import difflib
import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

import sftrun

SPLITS = ("train", "val", "test")
ALSO_VAL = ("validation", "valid", "dev")
COMPRESSED = (".gz", ".zst")
AT = ("source", "with", "path")
WILD = re.compile(r"[*?\[]")
# a split, or one of its numbered parts: train-00000-of-00002
NAMED = re.compile(rf"({'|'.join((*SPLITS, *ALSO_VAL))})(?:[-_.](\d+)(?:-of-(\d+))?)?")
SHOWN = 5


class Layout(msgspec.Struct, frozen=True):
    """The files of each split, the folder that origins are relative to, and what is wrong or worth saying."""

    root: Path
    files: dict[str, list[Path]]
    problems: list[sftrun.Problem]


def layout(path: str, suffixes: Sequence[str]) -> Layout:
    """What a path names: a file, a folder of splits, or a pattern; a folder's files have one of `suffixes`."""
    here = Path(path)
    if here.is_dir():
        return _folder(here, suffixes)
    if here.exists():
        return Layout(here.parent, {"train": [here]}, [])
    return _pattern(path) if WILD.search(path) else Layout(here.parent, {}, [missing(here)])


def missing(path: Path, at: tuple[str, ...] = AT) -> sftrun.Problem:
    """A path that is not there, with what there is near it."""
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    wanted = path.relative_to(there).parts[0]
    names = sorted(item.name for item in there.iterdir())
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {there / close[0]}?" if close else f"{there} holds {_listed(names) or 'nothing'}"
    return sftrun.Problem(f"no such file or folder: {path}", path=at, hint=hint)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _pattern(path: str) -> Layout:
    """All files that a pattern matches, as training rows."""
    root = Path(*itertools.takewhile(lambda part: not WILD.search(part), Path(path).parts))
    files = sorted(file for file in map(Path, glob.glob(path, recursive=True)) if file.is_file())
    if not files:
        return Layout(root, {}, [sftrun.Problem(f"no file matches {path}", path=AT)])
    named = {split for file in files for split in _splits_in(file.relative_to(root))}
    problems = []
    if "train" in named and len(named) > 1:  # else test rows would be trained on
        message = f"{path} matches files of several splits: {', '.join(sorted(named))}"
        problems.append(sftrun.Problem(message, path=AT, hint="name the folder that holds them, or match fewer files"))
    return Layout(root, {"train": files}, problems)


def _splits_in(path: Path) -> Iterator[str]:
    for part in path.parts:
        match = NAMED.fullmatch(part.split(".", 1)[0])
        if match:
            yield match[1] if match[1] in SPLITS else "val"


class Entry(msgspec.Struct, frozen=True):
    """A file or folder named after a split."""

    path: Path
    name: str
    number: int | None = None
    of: int | None = None


def _folder(folder: Path, suffixes: Sequence[str]) -> Layout:
    """The splits of a folder: a file each, numbered files, or a folder of files."""
    entries, unread = _entries(folder, suffixes)
    names = {name: [entry for entry in entries if entry.name == name] for name in (*SPLITS, *ALSO_VAL)}
    files, problems = {}, list(_validation(names))
    also = [entry.path.name for name in ALSO_VAL for entry in names[name]]
    spelled = {"val": next((name for name in ("val", *ALSO_VAL) if names[name]), "val")}
    unread += also if spelled["val"] == "val" else []
    for split in SPLITS:
        found = names[spelled.get(split, split)]
        problems += _unclear(split, found)
        if found:
            files[split] = [file for entry in found for file in _below(entry.path, suffixes)]
    problems += _unused(folder, suffixes, "train" in files, sorted(unread))
    return Layout(folder, files, problems)


def _entries(folder: Path, suffixes: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """What is named after a split, and the names of other files that could hold rows."""
    entries, unread = [], []
    for path in sorted(folder.iterdir()):
        stem = _stem(path, suffixes)
        match = NAMED.fullmatch(stem) if stem else None
        if match and path.is_file():
            entries.append(Entry(path, match[1], _whole(match[2]), _whole(match[3])))
        elif path.is_dir() and path.name in (*SPLITS, *ALSO_VAL) and _below(path, suffixes):
            entries.append(Entry(path, path.name))
        elif stem and path.is_file():
            unread.append(path.name)
    return sorted(entries, key=lambda entry: entry.number or 0), unread  # 10 comes after 9


def _whole(digits: str | None) -> int | None:
    return None if digits is None else int(digits)


def _stem(path: Path, suffixes: Sequence[str]) -> str | None:
    """The name of a file without its suffixes; None for a file of another kind."""
    name = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name
    found = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    return name.removesuffix(found) if found and not name.startswith(".") else None


def _below(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file() and _stem(file, suffixes))
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _validation(names: dict[str, list[Entry]]) -> Iterator[sftrun.Problem]:
    """Says it where another word than val is taken for val; which of two is meant is not guessed."""
    others = [name for name in ALSO_VAL if names[name]]
    if names["val"] or not others:
        return
    said = " and ".join(names[name][0].path.name for name in others)
    if len(others) == 1:
        yield sftrun.Problem(f"{said} is read as the split val", path=AT, severity="warning")
    else:
        yield sftrun.Problem(f"{said} could both be the split val", path=AT, hint="name one of them val")


def _unclear(split: str, entries: list[Entry]) -> Iterator[sftrun.Problem]:
    """Several things that could be a split, and numbered files of which some are missing."""
    shapes = {entry.of if entry.number is not None else entry.path for entry in entries}
    numbers = {entry.number for entry in entries}
    if len(shapes) > 1 or len(numbers) < len(entries):
        names = _listed(entry.path.name for entry in entries)
        yield sftrun.Problem(f"{names} could each be the split {split}", path=AT, hint="keep one of them")
    elif entries and entries[0].of is not None:
        first = 0 if 0 in numbers else 1
        absent = sorted({*range(first, first + entries[0].of)} - numbers)
        if absent:
            message = f"of the {entries[0].of} files of {split}, number {_listed(map(str, absent))} is not there"
            yield sftrun.Problem(message, path=AT, hint="download it again")


def _unused(folder: Path, suffixes: Sequence[str], train: bool, unread: list[str]) -> Iterator[sftrun.Problem]:
    wanted = f"{' or '.join(f'train{suffix}' for suffix in suffixes)}"
    if not train:
        there = unread or sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
        beside = f"; there is {_listed(there)}" if there else ""
        hint = f"rename it, or name the file, or all of them: {folder / '*'}{suffixes[0]}"
        yield sftrun.Problem(f"no {wanted} in {folder}{beside}", path=AT, hint=hint)
    elif unread:
        message = f"not read: {_listed(unread)} in {folder}"
        hint = f"the splits are {', '.join(f'{split}{suffixes[0]}' for split in SPLITS)}"
        yield sftrun.Problem(message, path=AT, hint=hint, severity="warning")
