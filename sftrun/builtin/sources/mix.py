"""Source `mix`: the rows of several sources, in proportion."""

import bisect
import contextlib
import hashlib
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

import sftrun

AnyRow = sftrun.Row | sftrun.BadRow
Weight = Annotated[float, sftrun.Meta(gt=0)]


class MixOptions(sftrun.Options):
    """The sources, and the proportion of each."""

    sources: Annotated[
        list[str | sftrun.Use],
        sftrun.component("source"),
        sftrun.Meta(min_length=1, description="The sources whose rows are mixed."),
    ]
    weights: Annotated[
        list[Weight] | None,
        sftrun.Meta(description="Relative number of rows of each source; null: one source after another."),
    ] = None
    stopping: Annotated[
        Literal["all", "first"],
        sftrun.Meta(
            description="With weights: train ends when every source was read completely (smaller ones are repeated), "
            "or when the first one was. Rows of val and test are never repeated."
        ),
    ] = "all"
    seed: Annotated[int, sftrun.Meta(ge=0, description="With weights: seed of the order.")] = 0


@sftrun.hookimpl
def register_sources(register: sftrun.Register) -> None:
    register("mix", Mix, options=MixOptions)


class Mix:
    """Several sources as one: one after another, or mixed by weights."""

    def __init__(self, options: MixOptions) -> None:
        self.options = options
        self.sources: list[sftrun.kinds.Source] = [sftrun.create("source", use) for use in options.sources]

    def check_recipe(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        o, default = self.options, MixOptions(sources=[])
        if o.weights is None:
            for name in ("stopping", "seed"):
                if getattr(o, name) != getattr(default, name):
                    yield sftrun.Problem(f"{name} of mix has no effect without weights")
        elif len(o.weights) != len(o.sources):
            message = f"mix has {len(o.sources)} sources, but {len(o.weights)} weights"
            yield sftrun.Problem(message, hint="give each source one weight, in the same order")

    def check_machine(self, recipe: sftrun.Recipe) -> Iterator[sftrun.Problem]:
        for index, source in enumerate(self.sources):
            if hasattr(source, "check_machine"):
                yield from (_move_problem(problem, index) for problem in source.check_machine(recipe))

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        for index, source in enumerate(self.sources):
            if hasattr(source, "check_prepared"):
                yield from (_move_problem(problem, index) for problem in source.check_prepared(recipe, run))

    def splits(self) -> list[str]:
        there = {split for source in self.sources for split in source.splits()}
        return [split for split in ("train", "val", "test") if split in there]

    def rows(self, split: str) -> Iterator[AnyRow]:
        indices = [index for index, source in enumerate(self.sources) if split in source.splits()]
        streams = (Stream(self.sources[index], index, split) for index in indices)
        if self.options.weights is None:
            return itertools.chain.from_iterable(map(_read_all, streams))  # one is open at a time
        weights = [self.options.weights[index] for index in indices]
        ends = self.options.stopping if split == "train" else "each"
        return _draw(list(streams), weights, ends, random.Random(f"{self.options.seed} {split}"))

    def fingerprint(self) -> str:
        o = self.options
        digest = hashlib.sha256(repr((o.weights, o.stopping, o.seed)).encode())
        for index, source in enumerate(self.sources):
            with _locate_errors(index):
                digest.update(repr((type(source).__qualname__, _hash_code(source), source.fingerprint())).encode())
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        mark, _, inner = origin.partition("/")
        return self.sources[int(mark.partition("#")[0])].locate(inner)


class Stream:
    """The rows of one source, with the next one read ahead; it can be restarted."""

    def __init__(self, source: sftrun.kinds.Source, index: int, split: str) -> None:
        self.source, self.index, self.split = source, index, split
        self.passes = 0
        self.restart()

    def restart(self) -> None:
        """Starts again from the first row."""
        self.passes += 1
        with _locate_errors(self.index):
            self.rows = iter(self.source.rows(self.split))
            self.ahead = next(self.rows, None)

    def take(self) -> AnyRow:
        """Returns the next row; its origin names source and pass: 0/train.jsonl:12, repeated 0#2/train.jsonl:12."""
        row = self.ahead
        assert row is not None
        with _locate_errors(self.index):
            self.ahead = next(self.rows, None)
        again = f"#{self.passes}" if self.passes > 1 else ""
        return msgspec.structs.replace(row, origin=f"{self.index}{again}/{row.origin}")


def _read_all(stream: Stream) -> Iterator[AnyRow]:
    while stream.ahead is not None:
        yield stream.take()


def _draw(streams: Sequence[Stream], weights: Sequence[float], ends: str, chance: random.Random) -> Iterator[AnyRow]:
    """Yields rows by weight until `all` streams were read, or the `first`, or `each` once without repeating any."""
    open_ = [(stream, weight) for stream, weight in zip(streams, weights, strict=True) if stream.ahead is not None]
    unread = {id(stream) for stream, _ in open_}
    while unread:
        edges = list(itertools.accumulate(weight for _, weight in open_))
        stream, is_read = open_[0][0], False
        while not is_read:
            stream = open_[bisect.bisect(edges, chance.random() * edges[-1], hi=len(edges) - 1)][0]
            yield stream.take()
            is_read = stream.ahead is None
        unread.discard(id(stream))
        if ends == "first":
            return
        if ends == "each":
            open_ = [(other, weight) for other, weight in open_ if other is not stream]
        elif unread:
            stream.restart()


@contextlib.contextmanager
def _locate_errors(index: int) -> Iterator[None]:
    try:
        yield
    except sftrun.UserError as error:
        raise sftrun.UserError(_move_problem(problem, index) for problem in error.problems) from error


def _move_problem(problem: sftrun.Problem, index: int) -> sftrun.Problem:
    """Returns a problem of one of the sources with its path in the recipe."""
    if problem.path is None or problem.path[:1] != ("source",):
        return problem
    return msgspec.structs.replace(problem, path=("source", "with", "sources", index, *problem.path[1:]))


def _hash_code(source: Any) -> str:
    """Returns a hash of a source's module, because its code decides which rows are read."""
    file = getattr(sys.modules.get(type(source).__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
