"""Layout of data files: finds the files that a path names, and the split of each."""

import difflib
import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

import sftrun

SPLITS = ("train", "val", "test")
VAL_ALIASES = ("validation", "valid", "dev")
COMPRESSED = (".gz", ".zst")
AT = ("source", "with", "path")
WILD = re.compile(r"[*?\[]")
# matches a split, or one of its numbered parts: train-00000-of-00002
NAMED = re.compile(rf"({'|'.join((*SPLITS, *VAL_ALIASES))})(?:[-_.](\d+)(?:-of-(\d+))?)?")
SHOWN = 5  # names in a message, at most


class Layout(msgspec.Struct, frozen=True):
    """The files of each split, the folder that origins are relative to, and problems with them."""

    root: Path
    files: dict[str, list[Path]]
    problems: list[sftrun.Problem]


def find_layout(path: str, suffixes: Sequence[str]) -> Layout:
    """Finds the files of a path: a file, a folder of splits, or a pattern; files of a folder have one of `suffixes`."""
    location = Path(path)
    if location.is_dir():
        return _read_folder(location, suffixes)
    if location.exists():
        return Layout(location.parent, {"train": [location]}, [])
    return _match_pattern(path) if WILD.search(path) else Layout(location.parent, {}, [describe_missing(location)])


def describe_missing(path: Path, at: tuple[str, ...] = AT) -> sftrun.Problem:
    """Returns the problem of a missing path, with a similar name or the contents of its folder."""
    parent = next((parent for parent in path.parents if parent.is_dir()), Path())
    wanted = path.relative_to(parent).parts[0]
    names = sorted(item.name for item in parent.iterdir())
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {parent / close[0]}?" if close else f"{parent} holds {_list_names(names) or 'nothing'}"
    return sftrun.Problem(f"no such file or folder: {path}", path=at, hint=hint)


def _list_names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _match_pattern(path: str) -> Layout:
    """Returns the files that a pattern matches, as training rows."""
    root = Path(*itertools.takewhile(lambda part: not WILD.search(part), Path(path).parts))
    files = sorted(file for file in map(Path, glob.glob(path, recursive=True)) if file.is_file())
    if not files:
        return Layout(root, {}, [sftrun.Problem(f"no file matches {path}", path=AT)])
    named = {split for file in files for split in _find_splits(file.relative_to(root))}
    problems = []
    if "train" in named and len(named) > 1:  # otherwise test rows would be trained on
        message = f"{path} matches files of several splits: {', '.join(sorted(named))}"
        problems.append(sftrun.Problem(message, path=AT, hint="set path to their folder, or match fewer files"))
    return Layout(root, {"train": files}, problems)


def _find_splits(path: Path) -> Iterator[str]:
    for part in path.parts:
        match = NAMED.fullmatch(part.split(".", 1)[0])
        if match:
            yield match[1] if match[1] in SPLITS else "val"


class SplitEntry(msgspec.Struct, frozen=True):
    """A file or folder named after a split; a numbered file has a `number` and perhaps a `total`."""

    path: Path
    name: str
    number: int | None = None
    total: int | None = None


def _read_folder(folder: Path, suffixes: Sequence[str]) -> Layout:
    """Finds the splits of a folder: single files, numbered files, or folders of files."""
    entries, unread = _find_entries(folder, suffixes)
    names = {name: [entry for entry in entries if entry.name == name] for name in (*SPLITS, *VAL_ALIASES)}
    files, problems = {}, list(_check_validation_name(names))
    also = [entry.path.name for name in VAL_ALIASES for entry in names[name]]
    spelled = {"val": next((name for name in ("val", *VAL_ALIASES) if names[name]), "val")}
    unread += also if spelled["val"] == "val" else []
    for split in SPLITS:
        found = names[spelled.get(split, split)]
        problems += _check_ambiguous(split, found)
        if found:
            files[split] = [file for entry in found for file in _list_files(entry.path, suffixes)]
    problems += _check_unread(folder, suffixes, "train" in files, sorted(unread))
    return Layout(folder, files, problems)


def _find_entries(folder: Path, suffixes: Sequence[str]) -> tuple[list[SplitEntry], list[str]]:
    """Returns the entries named after a split, and the names of other files that could hold rows."""
    entries, unread = [], []
    for path in sorted(folder.iterdir()):
        stem = _get_stem(path, suffixes)
        match = NAMED.fullmatch(stem) if stem else None
        if match and path.is_file():
            entries.append(SplitEntry(path, match[1], _parse_number(match[2]), _parse_number(match[3])))
        elif path.is_dir() and path.name in (*SPLITS, *VAL_ALIASES) and _list_files(path, suffixes):
            entries.append(SplitEntry(path, path.name))
        elif stem and path.is_file():
            unread.append(path.name)
    return sorted(entries, key=lambda entry: entry.number or 0), unread  # sorts 10 after 9


def _parse_number(digits: str | None) -> int | None:
    return None if digits is None else int(digits)


def _get_stem(path: Path, suffixes: Sequence[str]) -> str | None:
    """Returns the name of a file without its suffixes; None for a file of another kind."""
    name = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name
    found = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    return name.removesuffix(found) if found and not name.startswith(".") else None


def _list_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file() and _get_stem(file, suffixes))
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _check_validation_name(names: dict[str, list[SplitEntry]]) -> Iterator[sftrun.Problem]:
    """Yields a warning if another name is read as val, and an error if several could be."""
    others = [name for name in VAL_ALIASES if names[name]]
    if names["val"] or not others:
        return
    names_of_others = " and ".join(names[name][0].path.name for name in others)
    if len(others) == 1:
        yield sftrun.Problem(f"{names_of_others} is read as the split val", path=AT, severity="warning")
    else:
        yield sftrun.Problem(f"{names_of_others} could both be the split val", path=AT, hint="name one of them val")


def _check_ambiguous(split: str, entries: list[SplitEntry]) -> Iterator[sftrun.Problem]:
    """Yields a problem if several entries could be a split, or if numbered files are missing."""
    shapes = {entry.total if entry.number is not None else entry.path for entry in entries}
    numbers = {entry.number for entry in entries}
    if len(shapes) > 1 or len(numbers) < len(entries):
        names = _list_names(entry.path.name for entry in entries)
        yield sftrun.Problem(f"{names} could each be the split {split}", path=AT, hint="keep one of them")
    elif entries and entries[0].total is not None:
        first = 0 if 0 in numbers else 1
        absent = sorted({*range(first, first + entries[0].total)} - numbers)
        if absent:
            message = f"of the {entries[0].total} files of {split}, number {_list_names(map(str, absent))} is missing"
            yield sftrun.Problem(message, path=AT, hint="download it again")


def _check_unread(folder: Path, suffixes: Sequence[str], train: bool, unread: list[str]) -> Iterator[sftrun.Problem]:
    wanted = f"{' or '.join(f'train{suffix}' for suffix in suffixes)}"
    if not train:
        names = unread or sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
        others = f"; it has {_list_names(names)}" if names else ""
        hint = f"rename a file, or set path to a file or to a pattern: {folder / '*'}{suffixes[0]}"
        yield sftrun.Problem(f"no {wanted} in {folder}{others}", path=AT, hint=hint)
    elif unread:
        message = f"not read: {_list_names(unread)} in {folder}"
        hint = f"the splits are {', '.join(f'{split}{suffixes[0]}' for split in SPLITS)}"
        yield sftrun.Problem(message, path=AT, hint=hint, severity="warning")
