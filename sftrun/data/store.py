"""Prepared samples as memory-mapped Arrow, and the content-addressed cache they are kept in."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sftrun.types import Sample

IGNORED = -100  # the label that torch's cross-entropy leaves out
BATCH = 1000
DONE = "done.json"


def cache_folder() -> Path:
    """Where caches are kept: SFTRUN_CACHE, else the user's cache folder."""
    own = os.environ.get("SFTRUN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftrun"


def key_of(parts: dict[str, Any]) -> str:
    """The address of what was made from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Writer:
    """Writes samples to an Arrow stream file: input_ids, labels (-100 where no loss is), origin."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        self.schema = pa.schema(
            [("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("origin", pa.string())]
        )
        self.out = pa.OSFile(str(file), "wb")
        self.stream = pa.ipc.new_stream(self.out, self.schema)
        self.waiting: list[Sample] = []
        self.digest = hashlib.sha256()
        self.rows = 0

    def add(self, sample: Sample) -> None:
        self.waiting.append(sample)
        if len(self.waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        labels = [_labels(sample) for sample in self.waiting]
        batch = pa.record_batch(
            [
                pa.array([sample.ids for sample in self.waiting], self.schema.field(0).type),
                pa.array(labels, self.schema.field(1).type),
                pa.array([sample.origin for sample in self.waiting], self.schema.field(2).type),
            ],
            schema=self.schema,
        )
        self.stream.write_batch(batch)
        self.digest.update(json.dumps([[sample.ids, sample.trained] for sample in self.waiting]).encode())
        self.rows += len(self.waiting)
        self.waiting = []

    def close(self) -> str:
        """Finishes the file and returns the hash of its ids and masks, in order."""
        if self.waiting:
            self._flush()
        self.stream.close()
        self.out.close()
        return self.digest.hexdigest()


def _labels(sample: Sample) -> list[int]:
    return [token if trained else IGNORED for token, trained in zip(sample.ids, sample.trained, strict=True)]


def read_samples(file: Path) -> Iterator[Sample]:
    """The samples of a stored split, in order."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        for batch in pa.ipc.open_stream(mapped):
            yield from map(to_sample, batch.to_pylist())


def to_sample(row: dict[str, Any]) -> Sample:
    """A stored row as a sample."""
    return Sample(row["input_ids"], [int(label != IGNORED) for label in row["labels"]], row.get("origin", ""))


def find(key: str) -> Path | None:
    """The finished entry of the cache for a key; one that is not whole does not count."""
    entry = cache_folder() / "prepared" / key
    try:
        sizes = json.loads((entry / DONE).read_text())
        whole = all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return None
    return entry if whole else None


def begin() -> Path:
    """A new folder in the cache, invisible to `find` until it is published."""
    root = cache_folder() / "prepared"
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".making-", dir=root))


def publish(making: Path, key: str) -> Path:
    """Makes a finished folder the cache's entry for a key; where another process was first, its entry stays."""
    sizes = {file.name: file.stat().st_size for file in sorted(making.iterdir())}
    for name in sizes:
        _sync(making / name)
    (making / DONE).write_text(json.dumps(sizes))
    _sync(making / DONE)
    entry = making.parent / key
    if entry.exists() and find(key) is None:
        shutil.rmtree(entry)
    try:
        making.rename(entry)
    except OSError:
        shutil.rmtree(making)
    return entry


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def link(entry: Path, folder: Path) -> None:
    """Puts the files of a cache entry into a folder: as hard links where the file system can, else as copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in entry.iterdir():
        target = folder / file.name
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copy2(file, target)


def write_lines(file: Path, items: Iterable[Any]) -> None:
    """Writes JSON lines."""
    import msgspec

    with file.open("wb") as out:
        for item in items:
            out.write(msgspec.json.encode(item) + b"\n")
