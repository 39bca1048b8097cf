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

Some = sftrun.Row | sftrun.BadRow
Weight = Annotated[float, sftrun.Meta(gt=0)]


class MixOptions(sftrun.Options):
    """Which sources, and how much of each."""

    sources: Annotated[
        list[str | sftrun.Use],
        sftrun.component("source"),
        sftrun.Meta(min_length=1, description="The sources whose rows are mixed."),
    ]
    weights: Annotated[
        list[Weight] | None,
        sftrun.Meta(description="How many rows of each, relative to each other; null: one source after another."),
    ] = None
    stopping: Annotated[
        Literal["all", "first"],
        sftrun.Meta(
            description="With weights: train ends when all sources were read whole, the smaller ones again and again, "
            "or when the first was. Rows of val and test never come twice."
        ),
    ] = "all"
    seed: Annotated[int, sftrun.Meta(ge=0, description="With weights: another seed, another order.")] = 0


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
                yield from (_inside(problem, index) for problem in source.check_machine(recipe))

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        for index, source in enumerate(self.sources):
            if hasattr(source, "check_prepared"):
                yield from (_inside(problem, index) for problem in source.check_prepared(recipe, run))

    def splits(self) -> list[str]:
        there = {split for source in self.sources for split in source.splits()}
        return [split for split in ("train", "val", "test") if split in there]

    def rows(self, split: str) -> Iterator[Some]:
        indices = [index for index, source in enumerate(self.sources) if split in source.splits()]
        streams = [Stream(self.sources[index], index, split) for index in indices]
        if self.options.weights is None:
            return itertools.chain.from_iterable(map(_whole, streams))
        weights = [self.options.weights[index] for index in indices]
        ends = self.options.stopping if split == "train" else "each"
        return _drawn(streams, weights, ends, random.Random(f"{self.options.seed} {split}"))

    def fingerprint(self) -> str:
        o = self.options
        digest = hashlib.sha256(repr((o.weights, o.stopping, o.seed)).encode())
        for index, source in enumerate(self.sources):
            with _placed(index):
                digest.update(repr((type(source).__qualname__, _code(source), source.fingerprint())).encode())
        return digest.hexdigest()

    def locate(self, origin: str) -> str:
        mark, _, inner = origin.partition("/")
        return self.sources[int(mark.partition("#")[0])].locate(inner)


class Stream:
    """The rows of one source, again from the start when asked for; the next one is known before it is taken."""

    def __init__(self, source: sftrun.kinds.Source, index: int, split: str) -> None:
        self.source, self.index, self.split = source, index, split
        self.passes = 0
        self.again()

    def again(self) -> None:
        self.passes += 1
        with _placed(self.index):
            self.rows = iter(self.source.rows(self.split))
            self.ahead = next(self.rows, None)

    def take(self) -> Some:
        """The next row, with an origin that is this stream's alone: 0/train.jsonl:12, read again 0#2/train.jsonl:12."""
        row = self.ahead
        assert row is not None
        with _placed(self.index):
            self.ahead = next(self.rows, None)
        again = f"#{self.passes}" if self.passes > 1 else ""
        return msgspec.structs.replace(row, origin=f"{self.index}{again}/{row.origin}")


def _whole(stream: Stream) -> Iterator[Some]:
    while stream.ahead is not None:
        yield stream.take()


def _drawn(streams: Sequence[Stream], weights: Sequence[float], ends: str, chance: random.Random) -> Iterator[Some]:
    """Rows by weight until `all` streams were read whole, or the `first`, or `each` once and none again."""
    open_ = [(stream, weight) for stream, weight in zip(streams, weights, strict=True) if stream.ahead is not None]
    unread = {id(stream) for stream, _ in open_}
    while unread:
        edges = list(itertools.accumulate(weight for _, weight in open_))
        stream, whole = open_[0][0], False
        while not whole:
            stream = open_[bisect.bisect(edges, chance.random() * edges[-1], hi=len(edges) - 1)][0]
            yield stream.take()
            whole = stream.ahead is None
        unread.discard(id(stream))
        if ends == "first":
            return
        if ends == "each":
            open_ = [(other, weight) for other, weight in open_ if other is not stream]
        elif unread:
            stream.again()


@contextlib.contextmanager
def _placed(index: int) -> Iterator[None]:
    try:
        yield
    except sftrun.UserError as error:
        raise sftrun.UserError(_inside(problem, index) for problem in error.problems) from error


def _inside(problem: sftrun.Problem, index: int) -> sftrun.Problem:
    """A problem of one of the sources, with the place that it has in the recipe."""
    if problem.path is None or problem.path[:1] != ("source",):
        return problem
    return msgspec.structs.replace(problem, path=("source", "with", "sources", index, *problem.path[1:]))


def _code(source: Any) -> str:
    """A hash of the module that a source comes from: as the rows, it decides what is read."""
    file = getattr(sys.modules.get(type(source).__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
