"""Transform `sample`: a part of the conversations, the same one for the same seed."""

import heapq
from collections.abc import Iterable, Iterator
from typing import Annotated

import sftrun
from sftrun.builtin.transforms import _texts
from sftrun.builtin.transforms._disk import Spool
from sftrun.builtin.transforms._hashes import number

Rows = Annotated[int, sftrun.Meta(ge=1)]
Share = Annotated[float, sftrun.Meta(gt=0, le=1)]


class SampleOptions(sftrun.Options):
    """How much is kept: `rows` or `share`."""

    rows: Annotated[Rows | None, sftrun.Meta(description="How many conversations of each split are kept, at most.")] = (
        None
    )
    share: Annotated[
        Share | None, sftrun.Meta(description="Which share of them is kept, each decided by its own hash.")
    ] = None
    splits: Annotated[tuple[_texts.Split, ...], sftrun.Meta(min_length=1, description="Splits to take a part of.")] = (
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

    def apply(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.options.splits:
            return iter(conversations)
        return self._share(conversations, context) if self.options.rows is None else self._rows(conversations, context)

    def _share(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        for talk in conversations:
            if _rank(talk, context) < (self.options.share or 0) * 2**64:
                yield talk
            else:
                _left_out(talk.origin, context)

    def _rows(
        self, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        kept: list[tuple[int, int, str]] = []  # a heap, those that go first on top: rank and place negated, origin
        with Spool() as spool:
            for talk in conversations:
                rank = -_rank(talk, context)
                if len(kept) == self.options.rows and rank <= kept[0][0]:
                    _left_out(talk.origin, context)
                    continue
                heapq.heappush(kept, (rank, -spool.add(talk), talk.origin))
                if len(kept) > (self.options.rows or 0):
                    _left_out(heapq.heappop(kept)[2], context)
            for place in sorted(-place for _, place, _ in kept):
                yield spool.get(place)


def _rank(talk: sftrun.Conversation, context: sftrun.kinds.Context) -> int:
    return number(f"{context.seed} {context.split} {talk.origin}")


def _left_out(origin: str, context: sftrun.kinds.Context) -> None:
    context.note(origin, "filtered", "sample: not chosen")
