"""Transform `dedupe`: keeps the first of equal or similar conversations."""

import json
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import sftrun
from sftrun.builtin.transforms import _splits, _texts
from sftrun.builtin.transforms._disk import database
from sftrun.builtin.transforms._hashes import hash_ngrams, hash_text
from sftrun.builtin.transforms._near import Match, NearDuplicates

if TYPE_CHECKING:
    import sqlite3

Share = Annotated[float, sftrun.Meta(gt=0, le=1)]


class DedupeOptions(sftrun.Options):
    """The compared messages, and the similarity of duplicates."""

    by: Annotated[
        Literal["conversation", "prompt"],
        sftrun.Meta(description="Compared messages: all, or those before the last answer."),
    ] = "conversation"
    ignore_case: Annotated[bool, sftrun.Meta(description="True: ignore case. White space is always normalised.")] = (
        False
    )
    threshold: Annotated[
        Share | None,
        sftrun.Meta(description="Jaccard similarity from which texts are duplicates; null for exact ones only."),
    ] = None
    shingle: Annotated[int, sftrun.Meta(ge=1, description="With a threshold: words in a compared run.")] = 3
    permutations: Annotated[
        int,
        sftrun.Meta(
            ge=1, le=512, description="With a threshold: length of the MinHash; a longer one finds more, slower."
        ),
    ] = 128
    splits: Annotated[
        tuple[_splits.Split, ...], sftrun.Meta(min_length=1, description="Splits to work on, each by itself.")
    ] = _splits.ALL_SPLITS


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("dedupe", Dedupe, options=DedupeOptions)


class Dedupe:
    """Leave out conversations that equal, or are similar to, an earlier one."""

    def __init__(self, options: DedupeOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        defaults = DedupeOptions()
        for name in ("shingle", "permutations"):
            if self.options.threshold is None and getattr(self.options, name) != getattr(defaults, name):
                yield sftrun.Problem(f"dedupe: {name} has no effect without threshold", hint="add threshold: 0.8")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if self.options.threshold is not None:
            why = "dedupe with a threshold"
            yield from sftrun.missing_packages("numpy", path=("transforms",), why=why, extra="train")
            yield from sftrun.missing_packages("rensa", path=("transforms",), why=why, extra="transforms")

    @_splits.on_chosen_splits
    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        with database() as connection:
            seen = SeenRows(connection, self.options)
            for conversation in conversations:
                same = seen.find_earlier(conversation)
                if same:
                    context.note(conversation.origin, "filtered", *same)
                else:
                    yield conversation


class SeenRows:
    """The rows seen so far: hashes and origins, on disk. A hash of 64 bits stands for a conversation."""

    def __init__(self, connection: "sqlite3.Connection", options: DedupeOptions) -> None:
        self.connection = connection
        self.options = options
        connection.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY, origin TEXT)")
        if options.threshold is not None:
            self.near = NearDuplicates(connection, options.threshold, options.permutations)

    def find_earlier(self, conversation: sftrun.Conversation) -> tuple[str, str] | None:
        """Returns why a conversation is a duplicate, and of which row; remembers it if it is none."""
        key = hash_text(self._make_exact_key(conversation)) - 2**63  # SQLite's integers are signed
        found = self.connection.execute("SELECT origin FROM seen WHERE key = ?", (key,)).fetchone()
        if found:
            return f"dedupe: same {self.options.by}", f"as {found[0]}"
        like = self._find_similar(conversation)
        kept = like.origin if like else conversation.origin
        self.connection.execute("INSERT INTO seen VALUES (?, ?)", (key, kept))
        return (f"dedupe: similar {self.options.by}", f"{like.similarity:.2f} like {kept}") if like else None

    def _find_similar(self, conversation: sftrun.Conversation) -> Match | None:
        if self.options.threshold is None:
            return None
        import numpy as np

        messages = self._get_compared(conversation)
        words = [
            word for message in messages for text in _texts.list_strings(message) for word in _texts.split_words(text)
        ]
        # parts other than text, such as images, have no words to compare
        if not words or not all(map(_texts.is_text_only, messages)):
            return None
        found = np.unique(hash_ngrams(words, self.options.shingle))
        bands = self.near.make_bands(found)
        like = self.near.find(found, bands)
        if not like:
            self.near.add(conversation.origin, found, bands)
        return like

    def _get_compared(self, conversation: sftrun.Conversation) -> list[sftrun.Message]:
        answered = (
            self.options.by == "prompt"
            and conversation.messages
            and conversation.messages[-1].get("role") == "assistant"
        )
        return conversation.messages[:-1] if answered else conversation.messages

    def _make_exact_key(self, conversation: sftrun.Conversation) -> str:
        messages = [
            {key: each for key, each in message.items() if key != "train"}
            for message in self._get_compared(conversation)
        ]
        whole = [messages, conversation.tools, conversation.template_kwargs, conversation.plain]
        return json.dumps(self._normalise(whole), sort_keys=True, default=str)

    def _normalise(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._normalise(inner) for key, inner in value.items() if inner is not None}
        if isinstance(value, list | tuple):
            return [self._normalise(inner) for inner in value]
        if not isinstance(value, str):
            return value
        text = " ".join(unicodedata.normalize("NFC", value).split())
        return text.casefold() if self.options.ignore_case else text
