"""Source `text`: plain text, such as Markdown, as rows `{"text": …}`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, TextIO

import sftrun
from sftrun.builtin.sources import _files

Numbered = Iterator[tuple[int, str]]


class TextOptions(_files.FileOptions):
    """Where the texts are, and how they are cut into rows."""

    unit: Annotated[
        Literal["file", "paragraph", "line"],
        sftrun.Meta(description="What is one row; paragraphs are separated by blank lines."),
    ] = "file"
    encoding: Annotated[str, sftrun.Meta(description="Text encoding of the files.")] = "utf-8"


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("text", Text, options=TextOptions)


class Text:
    """Texts, for continued pretraining: a file, several by a pattern such as **/*.md, or a folder of splits."""

    def __init__(self, options: TextOptions) -> None:
        self.options = options
        self.files = _files.Files(options, ".txt", ".md")

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        yield from _files.unknown_encoding(self.options.encoding)

    def check_machine(self, recipe: sftrun.Recipe) -> Iterable[sftrun.Problem]:
        return self.files.ready()

    def splits(self) -> list[str]:
        return self.files.splits()

    def rows(self, split: str) -> Iterator[sftrun.Row | sftrun.BadRow]:
        keep = self.files.keep(split)
        for name, file in self.files.of(split):
            for line, text in self._units(file):
                if keep is None or keep(text.encode("utf-8", "surrogateescape")):
                    flaw = _files.flaw(text) or (None if text.strip() else "the file is empty")
                    origin = f"{name}:{line}"
                    yield sftrun.BadRow(origin, flaw) if flaw else sftrun.Row({"text": text}, origin)

    def fingerprint(self) -> str:
        return self.files.fingerprint(self.options.unit, self.options.encoding)

    def locate(self, origin: str) -> str:
        return self.files.locate(origin)

    def _units(self, file: Path) -> Numbered:
        """Each unit of a file with the line it begins at; line ends are those of Unix."""
        cut = {"file": _whole, "paragraph": _paragraphs, "line": _lines}[self.options.unit]
        line = 0
        try:
            with _files.opened_text(file, self.options.encoding) as text:
                for line, unit in cut(text):
                    yield line, unit
        except (OSError, UnicodeError) as error:
            _files.damaged(file, error, line + 1)


def _whole(text: TextIO) -> Numbered:
    yield 1, text.read()


def _lines(text: TextIO) -> Numbered:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield number, line.rstrip("\n")


def _paragraphs(text: TextIO) -> Numbered:
    first, lines = 0, list[str]()
    for number, line in enumerate(text, 1):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield first, "".join(lines).rstrip("\n")
            lines = []
    if lines:
        yield first, "".join(lines).rstrip("\n")
