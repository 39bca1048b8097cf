"""Source `text`: plain text, such as Markdown, as rows `{"text": …}`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import sftrun
from sftrun.builtin.sources import _files, _start

Numbered = Iterator[tuple[int, str]]


class TextOptions(_files.FileOptions):
    """Path of the texts, and the unit of a row."""

    unit: Annotated[
        Literal["file", "paragraph", "line"],
        sftrun.Meta(description="Unit of one row; blank lines separate paragraphs."),
    ] = "file"
    encoding: Annotated[str, sftrun.Meta(description="Text encoding of the files.")] = "utf-8"


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("text", Text, options=TextOptions)


class Text(_files.FileSource):
    """Texts, for continued pretraining: a file, several by a pattern such as **/*.md, or a folder of splits."""

    suffixes = (".txt", ".md")
    texts = True
    options: TextOptions

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _files.check_encoding(self.options.encoding)

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        is_chosen = self.make_filter(split)
        for name, file in self.list_files(split):
            if other := self._find_other_kind(file):
                if is_chosen is None or is_chosen(name.encode()):
                    yield sftrun.BadRow(f"{name}:1", "; ".join(other))
                continue
            for line, text in self._read_units(file):
                if is_chosen is None or is_chosen(text.encode("utf-8", "surrogateescape")):
                    flaw = _files.find_flaw(text, self.options.encoding) or (
                        None if text.strip() else "the file is empty"
                    )
                    origin = f"{name}:{line}"
                    yield sftrun.BadRow(origin, flaw) if flaw else sftrun.Row({"text": text}, origin)

    def _find_other_kind(self, file: Path) -> tuple[str, str] | None:
        try:
            with _files.open_bytes(file) as stream:
                start = stream.peek(_start.LOOK)
        except OSError as error:
            _files.raise_unreadable(file, error, 1)
        return _start.find_other_kind(start, _files.is_utf8(self.options.encoding), is_text=True)

    def _read_units(self, file: Path) -> Numbered:
        """Yields each unit of a file with the line at which it begins; line ends become `\n`."""
        cut = {"file": _read_file, "paragraph": _read_paragraphs, "line": _read_lines}[self.options.unit]
        line = 0
        try:
            with _files.open_text(file, self.options.encoding) as text:
                for line, unit in cut(file, text):
                    yield line, unit
        except (OSError, UnicodeError) as error:
            _files.raise_unreadable(file, error, line + 1)


def _read_file(file: Path, text: io.TextIOBase) -> Numbered:
    unit = text.read(_files.LONGEST_ROW + 1)
    if len(unit) > _files.LONGEST_ROW:
        raise _files.make_error(file, None, _files.TOO_LARGE, "split the file, or set unit: paragraph")
    yield 1, unit


def _read_lines(file: Path, text: io.TextIOBase) -> Numbered:
    for number, line in enumerate(_files.iter_text_lines(file, text), 1):
        if line.strip():
            yield number, line.rstrip("\n")


def _read_paragraphs(file: Path, text: io.TextIOBase) -> Numbered:
    first, size, lines = 0, 0, list[str]()
    for number, line in enumerate(_files.iter_text_lines(file, text), 1):
        if line.strip():
            first, size = (first, size + len(line)) if lines else (number, len(line))
            if size > _files.LONGEST_ROW:
                raise _files.make_error(
                    file, first, _files.TOO_LARGE, "blank lines separate paragraphs; or set unit: line"
                )
            lines.append(line)
        elif lines:
            yield first, "".join(lines).rstrip("\n")
            lines = []
    if lines:
        yield first, "".join(lines).rstrip("\n")
