"""Yields the samples that a recipe trains on, row by row, without running it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sftrun.data.ledger import Counts, describe_reasons
from sftrun.errors import Problem, UserError
from sftrun.recipe.model import Recipe
from sftrun.recipe.validate import PathLike, load_with_places
from sftrun.registry import current
from sftrun.runs.preflight import DATA_KINDS, check_machine
from sftrun.runs.session import with_places
from sftrun.types import Conversation

if TYPE_CHECKING:
    from sftrun.data.pipeline import InspectedSample, Pipeline


def inspect(
    recipe: PathLike | Recipe, overrides: Sequence[str] = (), split: str = "train", origin: str = ""
) -> "Iterator[InspectedSample]":
    """Yields the samples of a split, or only those from `origin`.

    Raises UserError at the end for malformed rows, and if there is no sample.
    """
    return inspect_and_count(recipe, overrides, split, origin, Counts(), lambda warning: None)


def inspect_and_count(
    recipe: PathLike | Recipe,
    overrides: Sequence[str],
    split: str,
    origin: str,
    counts: Counts,
    warn: Callable[[Problem], None],
) -> "Iterator[InspectedSample]":
    """Yields samples as `inspect` does; `counts` counts the rows left out or changed, `warn` gets warnings."""
    loaded = load_with_places(recipe, overrides)
    with with_places(loaded.document):
        warnings = check_machine(loaded.recipe, DATA_KINDS)
        from sftrun.data.pipeline import Pipeline

        pipeline = Pipeline(loaded.recipe, current(), counts.add)
        for warning in (*loaded.warnings, *warnings, *pipeline.warnings):
            warn(warning)
        if split not in pipeline.source.splits():
            raise UserError(f"the data has no split {split}; it has {', '.join(pipeline.source.splits())}")
        any_found = False
        for item in pipeline.inspect(split):
            if not origin or item.sample.origin == origin:
                any_found = True
                yield item
        if pipeline.problems:
            raise UserError(pipeline.problems)
        if not any_found:
            raise _explain_nothing(pipeline, split, origin, counts)


def describe_left_out(counts: Counts, split: str) -> str:
    """Returns how many rows were left out, by reason, with the first one; empty if none was."""
    reasons = counts.list_left_out(split)
    if not reasons:
        return ""
    first = counts.first[split, next(iter(reasons))]
    where = f"{first.origin}: {first.detail}" if first.detail else first.origin
    return f"{describe_reasons(reasons)}; first: {where}"


def _explain_nothing(pipeline: "Pipeline", split: str, origin: str, counts: Counts) -> UserError:
    left_out = describe_left_out(counts, split)
    if origin:
        return UserError(f"no row of {split} that is trained on comes from {origin}", hint=left_out or None)
    read = pipeline.rows_in[split]
    return UserError(f"{split} has no row to show: {read:,} rows read", hint=left_out or None)


def add_titles(items: "Iterable[InspectedSample]") -> "Iterator[tuple[str, InspectedSample]]":
    """Yields samples, each with a title: its origin and its token counts."""
    for item in items:
        yield _title(item), item


def group_by_shape(items: "Iterable[InspectedSample]") -> "list[tuple[str, InspectedSample]]":
    """Returns the first sample of each shape of conversation, the most frequent shape first."""
    first: dict[str, InspectedSample] = {}
    rows: Counter[str] = Counter()
    for item in items:
        name = describe_shape(item.conversation)
        first.setdefault(name, item)
        rows[name] += 1
    return [(f"{name}: {number:,} rows; {_title(first[name])}", first[name]) for name, number in rows.most_common()]


def describe_shape(conversation: Conversation) -> str:
    """Returns the roles and other keys of the messages: `user assistant(tool_calls) tool assistant`."""
    names = ["tools"] if conversation.tools else []
    for message in conversation.messages:
        more = [key for key, value in message.items() if key not in ("role", "content") and value not in (None, [], "")]
        more += [] if message.get("content") else ["empty"]
        names.append(message["role"] + (f"({', '.join(more)})" if more else ""))
    return " ".join(names)


def _title(item: "InspectedSample") -> str:
    sample = item.sample
    return f"{sample.origin}: {len(sample.ids)} tokens, {sum(sample.trained)} trained"
