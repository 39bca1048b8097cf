"""Source `jsonl`: one JSON object a line."""

from collections.abc import Iterator
from pathlib import Path

import sftrun
from sftrun.builtin.sources import _files, _rows, _start

BOM = b"\xef\xbb\xbf"


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("jsonl", Jsonl, options=_files.FileOptions)


class Jsonl(_files.FileSource):
    """JSON lines: a file, several by a pattern, or a folder with train.jsonl and optional val.jsonl and test.jsonl."""

    suffixes = (".jsonl",)

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        for name, file in self.list_files(split):
            yield from self._read_file(name, file, split)

    def _read_file(self, name: str, file: Path, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        # local names, because the loop reads millions of lines
        is_chosen = self.make_filter(split)
        decode_row = _rows.decode_row
        number, begun = 0, False
        try:
            with _files.open_bytes(file) as lines:
                _files.refuse_other_kind(file, lines)
                for number, line in enumerate(sftrun.files.iter_lines(lines), 1):
                    if line is None:
                        if is_chosen is None or is_chosen(f"{name}:{number}".encode()):
                            yield sftrun.BadRow(f"{name}:{number}", _files.TOO_LARGE)
                        continue
                    text = (line.removeprefix(BOM) if number == 1 else line).strip()
                    if text and not begun:
                        begun = True
                        _start.check_first_line(file, text, lines, number)
                    if text and (is_chosen is None or is_chosen(text)):
                        yield decode_row(text, f"{name}:{number}")
        except OSError as error:
            _files.raise_unreadable(file, error, number + 1)
