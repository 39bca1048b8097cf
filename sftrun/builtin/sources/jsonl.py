"""Source `jsonl`: one JSON object a line."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import sftrun
from sftrun.builtin.sources import _files, _rows

BOM = b"\xef\xbb\xbf"


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("jsonl", Jsonl, options=_files.FileOptions)


class Jsonl:
    """JSON lines: a file, several by a pattern, or a folder with train.jsonl and, where there are, val and test."""

    def __init__(self, options: _files.FileOptions) -> None:
        self.files = _files.Files(options, ".jsonl")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        return self.files.ready()

    def splits(self) -> list[str]:
        return self.files.splits()

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        for name, file in self.files.of(split):
            yield from self._file(name, file, split)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def locate(self, origin: str) -> str:
        return self.files.locate(origin)

    def _file(self, name: str, file: Path, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        # Millions of lines come through here: what can be done once is done before the loop.
        keep, decoded, number = self.files.keep(split), _rows.decoded, 0
        try:
            with _files.opened(file) as lines:
                for number, line in enumerate(lines, 1):
                    text = (line.removeprefix(BOM) if number == 1 else line).strip()
                    if text and (keep is None or keep(text)):
                        yield decoded(text, f"{name}:{number}")
        except OSError as error:
            _files.damaged(file, error, number + 1)
