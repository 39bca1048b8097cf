"""Splits that a transform works on."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

import sftrun

Split = Literal["train", "val", "test"]
Splits = Annotated[tuple[Split, ...], sftrun.Meta(min_length=1, description="Splits to work on.")]
ALL_SPLITS: tuple[Split, ...] = ("train", "val", "test")

Apply = Callable[[Any, Iterable[sftrun.Conversation], sftrun.kinds.Context], Iterator[sftrun.Conversation]]


def on_chosen_splits(apply: Apply) -> Apply:
    """Decorates a transform's `apply`: splits that are not in `self.options.splits` pass unchanged."""

    @functools.wraps(apply)
    def apply_or_pass(
        self: Any, conversations: Iterable[sftrun.Conversation], context: sftrun.kinds.Context
    ) -> Iterator[sftrun.Conversation]:
        if context.split not in self.options.splits:
            return iter(conversations)
        return apply(self, conversations, context)

    return apply_or_pass
