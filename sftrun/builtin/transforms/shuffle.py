"""Transform `shuffle`: another order of conversations, the same one for the same seed."""

import random
from array import array
from collections.abc import Iterable, Iterator
from typing import Annotated

import sftrun
from sftrun.builtin.transforms import _texts
from sftrun.builtin.transforms._disk import Spool


class ShuffleOptions(sftrun.Options):
    """What is shuffled."""

    splits: Annotated[tuple[_texts.Split, ...], sftrun.Meta(min_length=1, description="Splits to shuffle.")] = (
        "train",
    )


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("shuffle", Shuffle, options=ShuffleOptions)


class Shuffle:
    """Put conversations in another order, by the recipe's seed; they wait in a file, not in memory."""

    def __init__(self, options: ShuffleOptions) -> None:
        self.splits = options.splits

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.splits:
            yield from conversations
            return
        with Spool() as spool:
            order = array("Q", map(spool.add, conversations))
            random.Random(f"{context.seed} {context.split}").shuffle(order)
            yield from map(spool.get, order)
