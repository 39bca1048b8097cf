"""Source `jsonl`: one JSON object a line, in one file or in a folder with a file for each split."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

import sftrun

SPLITS = ("train", "val", "test")


class JsonlOptions(sftrun.Options):
    """Where the rows are."""

    path: Annotated[sftrun.PathText, sftrun.Meta(description="A .jsonl file, or a folder with train/val/test.jsonl.")]
    val_share: Annotated[
        float,
        sftrun.Meta(ge=0, lt=1, description="Without a val.jsonl: share of the train rows, by hash, used for val."),
    ] = 0.05


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("jsonl", Jsonl, options=JsonlOptions)


class Jsonl:
    """JSON lines: a file, or a folder with train.jsonl and, where there are, val.jsonl and test.jsonl."""

    def __init__(self, options: JsonlOptions) -> None:
        self.path = Path(options.path)
        self.val_share = options.val_share

    def ready(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        at = ("source", "with", "path")
        if not self.path.exists():
            yield sftrun.Problem(f"no such file or folder: {self.path}", path=at)
        elif self.path.is_dir():
            yield from self._folder_problems(at)

    def _folder_problems(self, at: tuple[str, ...]) -> Iterator[sftrun.Problem]:
        known = {f"{split}.jsonl" for split in SPLITS}
        others = sorted(path.name for path in self.path.glob("*.jsonl") if path.name not in known)
        if not (self.path / "train.jsonl").is_file():
            beside = f"; there is {', '.join(others)}" if others else ""
            yield sftrun.Problem(f"no train.jsonl in {self.path}{beside}", path=at, hint="rename it, or name the file")
        elif others:
            yield sftrun.Problem(
                f"not read: {', '.join(others)} in {self.path}",
                path=at,
                hint="the splits are train.jsonl, val.jsonl and test.jsonl",
                severity="warning",
            )

    def splits(self) -> list[str]:
        if not self.path.is_dir():
            return ["train", "val"] if self.val_share else ["train"]
        there = [split for split in SPLITS if self._file(split).is_file()]
        return [split for split in SPLITS if split in there or (split == "val" and self.val_share)]

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        own = self._file(split).is_file()
        cut = 0.0 if self._file("val").is_file() and self.path.is_dir() else self.val_share
        file = self._file(split) if own and self.path.is_dir() else self._file("train")
        for number, line in _lines(file):
            if split == "test" or not cut or (_fraction(line) < cut) == (split == "val"):
                yield _row(line, f"{file.name}:{number}")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.val_share).encode())
        for split in SPLITS if self.path.is_dir() else ("train",):
            if self._file(split).is_file():
                digest.update(f"\0{self._file(split).name}\0".encode())
                with self._file(split).open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        folder = self.path if self.path.is_dir() else self.path.parent
        return str(folder / origin)

    def _file(self, split: str) -> Path:
        return self.path / f"{split}.jsonl" if self.path.is_dir() else self.path


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()  # noqa: PLW2901
            if line:
                yield number, line


def _fraction(line: bytes) -> float:
    # by content, so that equal rows are never on both sides and an added row moves no other
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "big") / 2**64


def _row(line: bytes, origin: str) -> sftrun.Row | sftrun.BadRow:
    try:
        data: Any = msgspec.json.decode(line)
    except UnicodeDecodeError:
        return sftrun.BadRow(origin, "not UTF-8 text")
    except msgspec.DecodeError as error:
        return sftrun.BadRow(origin, f"not valid JSON: {error}")
    if not isinstance(data, dict):
        return sftrun.BadRow(origin, f"must be a JSON object, not a {type(data).__name__}")
    return sftrun.Row(data, origin)
