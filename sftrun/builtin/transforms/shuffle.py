"""Transform `shuffle`: reorders conversations at random, in the same way for the same seed."""

import random
from array import array
from collections.abc import Iterable, Iterator
from typing import Annotated

import sftrun
from sftrun.builtin.transforms import _splits
from sftrun.builtin.transforms._disk import Spool


class ShuffleOptions(sftrun.Options):
    """The splits to shuffle."""

    splits: Annotated[tuple[_splits.Split, ...], sftrun.Meta(min_length=1, description="Splits to shuffle.")] = (
        "train",
    )


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("shuffle", Shuffle, options=ShuffleOptions)


class Shuffle:
    """Put conversations in a random order, by the recipe's seed; they wait in a file, not in memory."""

    def __init__(self, options: ShuffleOptions) -> None:
        self.options = options

    @_splits.on_chosen_splits
    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        with Spool() as spool:
            order = array("Q", map(spool.add, conversations))
            random.Random(f"{context.seed} {context.split}").shuffle(order)
            yield from map(spool.get, order)
