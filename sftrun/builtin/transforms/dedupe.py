"""Transform `dedupe`: keep one of conversations that are the same, or nearly the same."""

import json
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import sftrun
from sftrun.builtin.transforms import _texts
from sftrun.builtin.transforms._disk import database
from sftrun.builtin.transforms._hashes import grams, number
from sftrun.builtin.transforms._near import Like, Near

if TYPE_CHECKING:
    import sqlite3

Share = Annotated[float, sftrun.Meta(gt=0, le=1)]


class DedupeOptions(sftrun.Options):
    """What counts as the same."""

    by: Annotated[
        Literal["conversation", "prompt"],
        sftrun.Meta(description="What is compared: all messages, or those before the last answer."),
    ] = "conversation"
    ignore_case: Annotated[
        bool, sftrun.Meta(description="Whether upper and lower case are the same. Runs of white space always are.")
    ] = False
    threshold: Annotated[
        Share | None,
        sftrun.Meta(description="Jaccard similarity from which texts are nearly the same; null for exact only."),
    ] = None
    shingle: Annotated[int, sftrun.Meta(ge=1, description="With a threshold: words in a run that is compared.")] = 3
    permutations: Annotated[
        int,
        sftrun.Meta(ge=1, le=512, description="With a threshold: length of the MinHash; longer finds more, slower."),
    ] = 128
    splits: Annotated[
        tuple[_texts.Split, ...], sftrun.Meta(min_length=1, description="Splits to work on, each by itself.")
    ] = _texts.ALL_SPLITS


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("dedupe", Dedupe, options=DedupeOptions)


class Dedupe:
    """Leave out conversations that were there before, exactly or nearly; the first is kept."""

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

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.options.splits:
            yield from conversations
            return
        with database() as connection:
            seen = Seen(connection, self.options)
            for talk in conversations:
                same = seen.before(talk)
                if same:
                    context.note(talk.origin, "filtered", *same)
                else:
                    yield talk


class Seen:
    """What was there before: hashes and origins, on disk. A hash of 64 bits stands for a conversation."""

    def __init__(self, connection: "sqlite3.Connection", options: DedupeOptions) -> None:
        self.connection = connection
        self.options = options
        connection.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY, origin TEXT)")
        if options.threshold is not None:
            self.near = Near(connection, options.threshold, options.permutations)

    def before(self, talk: sftrun.Conversation) -> tuple[str, str] | None:
        """Why and after which row a conversation is left out; one that is not is remembered."""
        key = number(self._exact(talk)) - 2**63  # SQLite's integers are signed
        found = self.connection.execute("SELECT origin FROM seen WHERE key = ?", (key,)).fetchone()
        if found:
            return f"dedupe: same {self.options.by}", f"as {found[0]}"
        like = self._like(talk)
        kept = like.origin if like else talk.origin
        self.connection.execute("INSERT INTO seen VALUES (?, ?)", (key, kept))
        return (f"dedupe: similar {self.options.by}", f"{like.similarity:.2f} like {kept}") if like else None

    def _like(self, talk: sftrun.Conversation) -> Like | None:
        if self.options.threshold is None:
            return None
        import numpy as np

        messages = self._compared(talk)
        words = [word for message in messages for text in _texts.strings(message) for word in _texts.words(text)]
        # what is no text, such as an image, has no words to compare
        if not words or not all(map(_texts.is_text, messages)):
            return None
        found = np.unique(grams(words, self.options.shingle))
        bands = self.near.bands(found)
        like = self.near.find(found, bands)
        if not like:
            self.near.add(talk.origin, found, bands)
        return like

    def _compared(self, talk: sftrun.Conversation) -> list[sftrun.Message]:
        answered = self.options.by == "prompt" and talk.messages and talk.messages[-1].get("role") == "assistant"
        return talk.messages[:-1] if answered else talk.messages

    def _exact(self, talk: sftrun.Conversation) -> str:
        messages = [{key: each for key, each in message.items() if key != "train"} for message in self._compared(talk)]
        whole = [messages, talk.tools, talk.template_kwargs, talk.plain]
        return json.dumps(self._normal(whole), sort_keys=True, default=str)

    def _normal(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._normal(inner) for key, inner in value.items() if inner is not None}
        if isinstance(value, list | tuple):
            return [self._normal(inner) for inner in value]
        if not isinstance(value, str):
            return value
        text = " ".join(unicodedata.normalize("NFC", value).split())
        return text.casefold() if self.options.ignore_case else text
