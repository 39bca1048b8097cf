"""Layout of data files: finds the files that a path names, and the split of each."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

import sftrun
from sftrun.builtin.sources import _names, _search
from sftrun.builtin.sources._names import SPLITS, Label, SplitName

AT = ("source", "with", "path")
PLAIN: Label = ("", "")
SHOWN = 5  # names in a message, at most


class Layout(msgspec.Struct, frozen=True):
    """The files of each split, the folder that origins are relative to, and problems with them."""

    root: Path
    files: dict[str, list[Path]]
    problems: list[sftrun.Problem]


def find_layout(path: str, suffixes: tuple[str, ...], texts: bool = False) -> Layout:
    """Finds the files of a path: a file, a folder of splits, or a pattern; files of a folder have one of `suffixes`.

    With `texts`, a file is a text, whose name may have nothing to do with splits.
    """
    location = Path(path)
    if location.is_dir():
        return _read_folder(location, suffixes)
    if location.exists():
        search = _search.Search(AT)
        return Layout(location.parent, {"train": [location]} if search.accept(location) else {}, search.problems)
    folder, parts = _search.split_pattern(path)
    if not parts or not folder.is_dir():
        return Layout(folder, {}, [describe_missing(folder)])
    return _match_pattern(path, folder, parts, texts)


def describe_missing(path: Path, at: tuple[str, ...] = AT) -> sftrun.Problem:
    """Returns the problem of a missing path, with a similar name or the contents of its folder."""
    parent = next((parent for parent in path.parents if parent.is_dir()), Path())
    wanted = path.relative_to(parent).parts[0]
    names = sorted(item.name for item in parent.iterdir())
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {parent / close[0]}?" if close else f"{parent} holds {_list_names(names) or 'nothing'}"
    return sftrun.Problem(f"no such file or folder: {path}", path=at, hint=sftrun.files.printable(hint))


def _list_names(names: Iterable[str]) -> str:
    names = [sftrun.files.printable(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _match_pattern(path: str, folder: Path, parts: Sequence[str], texts: bool) -> Layout:
    """Returns the files that a pattern matches, as training rows."""
    search = _search.Search(AT)
    files = search.match(folder, parts)
    problems = [*search.problems, *_check_skipped(search)]
    if not files:
        problems.append(sftrun.Problem(f"no file matches {path}", path=AT))
        return Layout(folder, {}, problems)
    inside = [file.relative_to(folder) for file in files]
    if not any(sign in part for part in parts for sign in "*?"):
        message = f"{path} is read as a pattern, which matches {_list_names(map(str, inside))}"
        problems.append(sftrun.Problem(message, path=AT, severity="warning"))
    problems += _check_texts(path, inside) if texts else _check_splits(path, inside)
    return Layout(folder, {"train": files}, problems)


def _check_skipped(search: _search.Search) -> Iterator[sftrun.Problem]:
    if search.skipped:
        names = _list_names(map(str, search.skipped))
        yield sftrun.Problem(f"not read: {names}, made by sftrun run", path=AT, severity="warning")


def _check_splits(path: str, files: Sequence[Path]) -> Iterator[sftrun.Problem]:
    """Yields a problem if a pattern matches files of val or test, whose rows would be trained on."""
    named = {file: _names.find_splits(file) for file in files}
    held_out = [file for file, splits in named.items() if splits - {"train"}]
    found = sorted(set().union(*named.values()))
    if not held_out:
        return
    if len(held_out) == len(files) and len(found) == 1:
        message = f"{path} matches files of the split {found[0]} only, and trains on them"
        yield sftrun.Problem(message, path=AT, severity="warning")
    elif len(found) == 1:
        yield _refuse_splits(f"{path} matches files of the split {found[0]}: {_list_names(map(str, held_out))}")
    else:
        yield _refuse_splits(f"{path} matches files of several splits: {', '.join(found)}")


def _check_texts(path: str, files: Sequence[Path]) -> Iterator[sftrun.Problem]:
    """Yields a problem if a pattern matches texts whose names differ by the split alone, such as wiki.test.txt."""
    splits: dict[tuple[Path, Label], set[str]] = {}
    for file in files:
        name = _names.parse_name(_names.get_bare_name(file))
        if name:
            splits.setdefault((file.parent, name.label), set()).add(name.split)
    found = next((each for each in splits.values() if len(each) > 1), None)
    if found:
        yield _refuse_splits(f"{path} matches files of several splits: {', '.join(sorted(found))}")


def _refuse_splits(message: str) -> sftrun.Problem:
    return sftrun.Problem(message, path=AT, hint="set path to their folder, or match fewer files")


class SplitEntry(msgspec.Struct, frozen=True):
    """A file named after a split, or a folder of files."""

    path: Path
    name: SplitName
    files: list[Path]


def _read_folder(folder: Path, suffixes: tuple[str, ...]) -> Layout:
    """Finds the splits of a folder: single files, numbered files, or folders of files."""
    search = _search.Search(AT)
    entries, unread = _find_entries(folder, suffixes, search)
    train = [entry for entry in entries if entry.name.split == "train"]
    labels = {entry.name.label for entry in train}
    label = labels.pop() if len(labels) == 1 else PLAIN
    problems = [] if len(labels) < 2 or PLAIN in labels else [_describe_ambiguous("train", train)]
    files: dict[str, list[Path]] = {}
    read = []
    for split in SPLITS:
        found = [entry for entry in entries if entry.name.split == split and entry.name.label == label]
        chosen = _prefer_plain_word(split, found)
        problems += [*_check_words(split, chosen), *_check_ambiguous(split, chosen)]
        if chosen:
            files[split] = [file for entry in chosen for file in entry.files]
        read += chosen
    if label != PLAIN:
        problems.append(_describe_labelled(read))
    unread += [entry.path.name for entry in entries if entry not in read]
    problems += _check_unread(folder, suffixes, sorted(unread)) if train else [_describe_no_train(folder, suffixes)]
    return Layout(folder, files, [*search.problems, *_check_skipped(search), *problems])


def _find_entries(
    folder: Path, suffixes: tuple[str, ...], search: _search.Search
) -> tuple[list[SplitEntry], list[str]]:
    """Returns the entries named after a split, and the names of other files that could hold rows."""
    entries, unread = [], []
    for path in sorted(folder.iterdir()):
        stem = path.name if path.is_dir() else _names.get_stem(path, suffixes)
        name = _names.parse_name(stem) if stem and not stem.startswith(".") else None
        if path.is_dir():
            files = [file for file in search.list_below(path) if _names.get_stem(file, suffixes)] if name else []
        else:
            files = [path] if stem and search.accept(path) else []
        if name and files:
            entries.append(SplitEntry(path, name, files))
        elif files:
            unread.append(path.name)
    return sorted(entries, key=lambda entry: entry.name.number or 0), unread  # sorts 10 after 9


def _prefer_plain_word(split: str, entries: list[SplitEntry]) -> list[SplitEntry]:
    """Returns the entries whose word is the name of the split, or all of them if it is another word."""
    return [entry for entry in entries if entry.name.word == split] or entries


def _check_words(split: str, entries: list[SplitEntry]) -> Iterator[sftrun.Problem]:
    """Yields a warning if another word is read as a split."""
    if len({entry.name.word for entry in entries} - {split}) == 1 and entries[0].name.word != split:
        names = _list_names(entry.path.name for entry in entries)
        yield sftrun.Problem(f"{names} is read as the split {split}", path=AT, severity="warning")


def _check_ambiguous(split: str, entries: list[SplitEntry]) -> Iterator[sftrun.Problem]:
    """Yields a problem if several entries could be a split, or if numbered files are missing."""
    names = [entry.name for entry in entries]
    shapes = {(e.name.word, e.path if e.name.number is None else e.name.total) for e in entries}
    numbers = {name.number for name in names}
    if len(shapes) > 1 or len(numbers) < len(names):
        yield _describe_ambiguous(split, entries)
    elif names and names[0].total is not None:
        first = 0 if 0 in numbers else 1
        absent = sorted({*range(first, first + names[0].total)} - numbers)
        if absent:
            message = f"of the {names[0].total} files of {split}, number {_list_names(map(str, absent))} is missing"
            yield sftrun.Problem(message, path=AT, hint="download it again")


def _describe_ambiguous(split: str, entries: list[SplitEntry]) -> sftrun.Problem:
    names = _list_names(entry.path.name for entry in entries)
    return sftrun.Problem(
        f"{names} could each be the split {split}", path=AT, hint="keep one of them, or set path to one of them"
    )


def _describe_labelled(entries: list[SplitEntry]) -> sftrun.Problem:
    """Returns the warning that says which files are read as which split."""
    named = {split: [e.path.name for e in entries if e.name.split == split] for split in SPLITS}
    parts = [f"{_list_names(names)} as {split}" for split, names in named.items() if names]
    return sftrun.Problem(f"read: {'; '.join(parts)}", path=AT, severity="warning")


def _check_unread(folder: Path, suffixes: tuple[str, ...], unread: list[str]) -> Iterator[sftrun.Problem]:
    if unread:
        message = f"not read: {_list_names(unread)} in {folder}"
        hint = f"the splits are {', '.join(f'{split}{suffixes[0]}' for split in SPLITS)}"
        yield sftrun.Problem(message, path=AT, hint=hint, severity="warning")


def _describe_no_train(folder: Path, suffixes: tuple[str, ...]) -> sftrun.Problem:
    """Returns the problem of a folder without train; its hint is no pattern that matches files of val or test."""
    wanted = f"{' or '.join(f'train{suffix}' for suffix in suffixes)}"
    items = [item for item in sorted(folder.iterdir()) if not item.name.startswith(".")]
    rows = [item.name for item in items if _names.get_stem(item, suffixes)]
    names = rows or [item.name for item in items]
    others = f"; it has {_list_names(names)}" if names else ""
    is_safe = rows and not any(_names.find_splits(Path(name)) for name in rows)
    pattern = f" or to a pattern: {folder / '*'}{suffixes[0]}" if is_safe else ""
    inner = next((item for item in items if item.is_dir() and _has_train(item, suffixes)), None)
    hint = f"did you mean {inner}?" if inner else f"rename a file, or set path to a file{pattern}"
    return sftrun.Problem(f"no {wanted} in {folder}{others}", path=AT, hint=hint)


def _has_train(folder: Path, suffixes: tuple[str, ...]) -> bool:
    entries, _ = _find_entries(folder, suffixes, _search.Search(AT))
    return any(entry.name.split == "train" for entry in entries)
