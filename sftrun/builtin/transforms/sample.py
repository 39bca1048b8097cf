"""Transform `sample`: keeps a part of the conversations, the same one for the same seed."""

import heapq
from collections.abc import Iterable, Iterator
from typing import Annotated

import sftrun
from sftrun.builtin.transforms import _splits
from sftrun.builtin.transforms._disk import Spool
from sftrun.builtin.transforms._hashes import hash_text

Rows = Annotated[int, sftrun.Meta(ge=1)]
Share = Annotated[float, sftrun.Meta(gt=0, le=1)]


class SampleOptions(sftrun.Options):
    """The size of the part: `rows` or `share`."""

    rows: Annotated[Rows | None, sftrun.Meta(description="Largest number of conversations of each split.")] = None
    share: Annotated[
        Share | None, sftrun.Meta(description="Share of the conversations to keep; a hash of each decides.")
    ] = None
    splits: Annotated[tuple[_splits.Split, ...], sftrun.Meta(min_length=1, description="Splits to sample.")] = (
        "train",
    )


@sftrun.hookimpl
def register_transforms(register: sftrun.Register) -> None:
    register("sample", Sample, options=SampleOptions)


class Sample:
    """Keep a number or a share of the conversations, chosen by the recipe's seed, in their order."""

    def __init__(self, options: SampleOptions) -> None:
        self.options = options

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        if (self.options.rows is None) == (self.options.share is None):
            yield sftrun.Problem("sample needs either rows or share", hint="write rows: 1000, or share: 0.1")

    @_splits.on_chosen_splits
    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        return (
            self._sample_share(conversations, context)
            if self.options.rows is None
            else self._sample_rows(conversations, context)
        )

    def _sample_share(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        for conversation in conversations:
            if _hash_rank(conversation, context) < (self.options.share or 0) * 2**64:
                yield conversation
            else:
                _note_left_out(conversation.origin, context)

    def _sample_rows(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        kept: list[tuple[int, int, str]] = []  # a heap of (-rank, -place, origin): the next one to drop is on top
        with Spool() as spool:
            for conversation in conversations:
                rank = -_hash_rank(conversation, context)
                if len(kept) == self.options.rows and rank <= kept[0][0]:
                    _note_left_out(conversation.origin, context)
                    continue
                heapq.heappush(kept, (rank, -spool.add(conversation), conversation.origin))
                if len(kept) > (self.options.rows or 0):
                    _note_left_out(heapq.heappop(kept)[2], context)
            for place in sorted(-place for _, place, _ in kept):
                yield spool.get(place)


def _hash_rank(conversation: sftrun.Conversation, context: sftrun.kinds.Context) -> int:
    return hash_text(f"{context.seed} {context.split} {conversation.origin}")


def _note_left_out(origin: str, context: sftrun.kinds.Context) -> None:
    context.note(origin, "filtered", "sample: not chosen")
