"""Temporary files, for what may be larger than memory; they are gone when they are closed or the process ends."""

import pickle
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sftrun

if TYPE_CHECKING:
    import sqlite3


class Spool:
    """Conversations in a file, read back in any order. Memory holds 8 bytes for each."""

    def __init__(self) -> None:
        import tempfile

        folder = sftrun.files.cache_folder()  # where prepared rows go as well; /tmp may be memory
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.starts = array("Q")

    def add(self, talk: sftrun.Conversation) -> int:
        """Writes one and returns its place."""
        self.starts.append(self.file.tell())
        # the file has no name and nobody else can write to it; pickle keeps values that JSON has not
        pickle.dump(talk, self.file, pickle.HIGHEST_PROTOCOL)
        return len(self.starts) - 1

    def get(self, place: int) -> sftrun.Conversation:
        """Reads one; nothing may be added afterwards."""
        self.file.seek(self.starts[place])
        talk: sftrun.Conversation = pickle.load(self.file)
        return talk

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def database() -> "Iterator[sqlite3.Connection]":
    """An SQLite database in a temporary file; memory holds at most 64 MB of it."""
    import sqlite3

    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()
