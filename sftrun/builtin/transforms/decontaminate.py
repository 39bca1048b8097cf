"""Transform `decontaminate`: nothing that a model is measured on is trained."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

import sftrun
from sftrun.builtin.transforms import _texts
from sftrun.builtin.transforms._hashes import fingerprint, grams

if TYPE_CHECKING:
    from sftrun.builtin.transforms._hashes import Hashes

BOM = b"\xef\xbb\xbf"
ROLES = ("user", "assistant")  # a system prompt is the same everywhere


class DecontaminateOptions(sftrun.Options):
    """What train rows are compared with, and how."""

    against: Annotated[
        tuple[Literal["val", "test"], ...], sftrun.Meta(description="Splits that train rows must not overlap with.")
    ] = ("val", "test")
    files: Annotated[
        tuple[sftrun.PathText, ...],
        sftrun.Meta(description="Benchmarks: .jsonl or .json (all strings in it), else text files with a text a line."),
    ] = ()
    ngram: Annotated[
        int,
        sftrun.Meta(
            ge=1, description="Words in a run that is compared. A shorter question must be the same as a whole."
        ),
    ] = 13
    max_overlap: Annotated[
        float,
        sftrun.Meta(
            ge=0, lt=1, description="Largest share of a row's runs that may be found there; 0 for none at all."
        ),
    ] = 0.0


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("decontaminate", Decontaminate, options=DecontaminateOptions)


class Decontaminate:
    """Leave out train rows that share runs of words with val, test or benchmark files."""

    def __init__(self, options: DecontaminateOptions) -> None:
        self.options = options
        self.files = [Path(file) for file in options.files]

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if not self.options.against and not self.files:
            yield sftrun.Problem("decontaminate compares with nothing", hint="name splits in against, or files")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for file in self.files:
            if not file.is_file():
                yield sftrun.Problem(f"decontaminate: no such file: {file}", path=("transforms",))

    def fingerprint(self) -> str:
        """A hash of the files, which decide as well what is prepared."""
        return fingerprint(*self.files)

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split != "train":
            yield from conversations
            return
        measured = self._measured(context)
        for talk in conversations:
            runs = self._runs(talk)
            shared = _shared(runs, measured)
            if shared > self.options.max_overlap * len(runs):
                reason = "decontaminate: overlaps with what is measured"
                context.note(talk.origin, "filtered", reason, f"{shared} of {len(runs)} runs of words")
            else:
                yield talk

    def _measured(self, context: sftrun.kinds.Context) -> "Hashes":
        """Hashes of all runs that must not be trained, sorted: 8 bytes for each."""
        import numpy as np

        found = array("Q")
        for split in self.options.against:
            for talk in context.conversations(split) if split in context.splits else ():
                found.frombytes(self._runs(talk).tobytes())
        for file in self.files:
            for text in _lines(file):
                found.frombytes(grams(_texts.words(text), self.options.ngram).tobytes())
        return np.unique(np.frombuffer(found, np.uint64))

    def _runs(self, talk: sftrun.Conversation) -> "Hashes":
        """Hashes of the runs of a conversation's texts, and of its first question where that is shorter than a run.

        Other short texts, such as `Yes.`, are in most sets and say nothing.
        """
        import numpy as np

        texts = [_texts.words(text) for text in _texts.of_roles(talk, ROLES)]
        asked = [_texts.words(text) for text in _texts.of_roles(talk, ("user",))[:1]]
        short = [words for words in asked if 0 < len(words) < self.options.ngram]
        runs = [grams(words, self.options.ngram) for words in texts if len(words) >= self.options.ngram]
        return np.unique(
            np.concatenate([np.zeros(0, np.uint64), *runs, *(grams(words, len(words)) for words in short)])
        )


def _shared(runs: "Hashes", measured: "Hashes") -> int:
    if not len(measured):
        return 0
    places = measured.searchsorted(runs)
    return int((measured[places.clip(max=len(measured) - 1)] == runs).sum())


def _lines(file: Path) -> Iterator[str]:
    """The texts of a benchmark file."""
    if file.suffix == ".json":
        yield from _texts.below(_decoded(file.read_bytes(), str(file)))
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if file.suffix == ".jsonl" and line.strip():
                yield from _texts.below(_decoded(line, f"{file}:{number}"))
            elif file.suffix != ".jsonl":
                yield line.decode("utf-8-sig", "replace")


def _decoded(data: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(data.removeprefix(BOM))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise sftrun.UserError(f"{where}: not valid JSON: {error}", "mend it, or rename the file to .txt") from None
