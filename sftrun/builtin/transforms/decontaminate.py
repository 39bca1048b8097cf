"""Transform `decontaminate`: removes training rows that overlap with evaluation data."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

import sftrun
from sftrun.builtin.transforms import _texts
from sftrun.builtin.transforms._hashes import hash_files, hash_ngrams

if TYPE_CHECKING:
    from sftrun.builtin.transforms._hashes import Hashes

BOM = b"\xef\xbb\xbf"
ROLES = ("user", "assistant")  # system prompts are equal in many rows


class DecontaminateOptions(sftrun.Options):
    """The data that train rows are compared with, and the comparison."""

    against: Annotated[
        tuple[Literal["val", "test"], ...], sftrun.Meta(description="Splits that train rows must not overlap with.")
    ] = ("val", "test")
    files: Annotated[
        tuple[sftrun.PathText, ...],
        sftrun.Meta(description="Benchmark files: .jsonl or .json (every string), else text with one text a line."),
    ] = ()
    ngram: Annotated[
        int,
        sftrun.Meta(ge=1, description="Words in a compared run. A shorter question is compared as a whole."),
    ] = 13
    max_overlap: Annotated[
        float,
        sftrun.Meta(ge=0, lt=1, description="Largest share of a row's runs that may overlap; 0 allows none."),
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
            yield sftrun.Problem("decontaminate compares with nothing", hint="set against or files")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for file in self.files:
            if not file.is_file():
                yield sftrun.Problem(f"decontaminate: no such file: {file}", path=("transforms",))

    def fingerprint(self) -> str:
        """Hashes the files, which are part of the cache key."""
        return hash_files(*self.files)

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split != "train":
            yield from conversations
            return
        measured = self._hash_measured(context)
        for conversation in conversations:
            runs = self._hash_runs(conversation)
            shared = _count_shared(runs, measured)
            if shared > self.options.max_overlap * len(runs):
                reason = "decontaminate: overlaps with evaluation data"
                context.note(conversation.origin, "filtered", reason, f"{shared} of {len(runs)} runs of words")
            else:
                yield conversation

    def _hash_measured(self, context: sftrun.kinds.Context) -> "Hashes":
        """Returns the sorted hashes of all runs in the evaluation data, 8 bytes each."""
        import numpy as np

        found = array("Q")
        for split in self.options.against:
            for conversation in context.conversations(split) if split in context.splits else ():
                found.frombytes(self._hash_runs(conversation).tobytes())
        for file in self.files:
            for text in _read_texts(file):
                found.frombytes(hash_ngrams(_texts.split_words(text), self.options.ngram).tobytes())
        return np.unique(np.frombuffer(found, np.uint64))

    def _hash_runs(self, conversation: sftrun.Conversation) -> "Hashes":
        """Hashes the runs of a conversation's texts, and its first question if that is shorter than a run.

        Other short texts, such as `Yes.`, occur in most sets and prove no overlap.
        """
        import numpy as np

        texts = [_texts.split_words(text) for text in _texts.get_role_texts(conversation, ROLES)]
        asked = [_texts.split_words(text) for text in _texts.get_role_texts(conversation, ("user",))[:1]]
        short = [words for words in asked if 0 < len(words) < self.options.ngram]
        runs = [hash_ngrams(words, self.options.ngram) for words in texts if len(words) >= self.options.ngram]
        return np.unique(
            np.concatenate([np.zeros(0, np.uint64), *runs, *(hash_ngrams(words, len(words)) for words in short)])
        )


def _count_shared(runs: "Hashes", measured: "Hashes") -> int:
    if not len(measured):
        return 0
    places = measured.searchsorted(runs)
    return int((measured[places.clip(max=len(measured) - 1)] == runs).sum())


def _read_texts(file: Path) -> Iterator[str]:
    """Yields the texts of a benchmark file."""
    if file.suffix == ".json":
        yield from _texts.find_strings(_parse_json(file.read_bytes(), str(file)))
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if file.suffix == ".jsonl" and line.strip():
                yield from _texts.find_strings(_parse_json(line, f"{file}:{number}"))
            elif file.suffix != ".jsonl":
                yield line.decode("utf-8-sig", "replace")


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(data.removeprefix(BOM))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise sftrun.UserError(f"{where}: not valid JSON: {error}", "correct it, or rename the file to .txt") from None
