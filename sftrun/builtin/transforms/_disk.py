"""Temporary files for data that may exceed memory; closing them, or the end of the process, removes them."""

import pickle
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sftrun

if TYPE_CHECKING:
    import sqlite3


class Spool:
    """A file of conversations, readable in any order. Memory holds 8 bytes for each."""

    def __init__(self) -> None:
        import tempfile

        folder = sftrun.files.cache_folder()  # on the disk of prepared rows, because /tmp may be in memory
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.starts = array("Q")

    def add(self, conversation: sftrun.Conversation) -> int:
        """Writes a conversation and returns its place."""
        self.starts.append(self.file.tell())
        # pickle keeps values that JSON lacks; it is safe, because the file has no name and nobody else can write it
        pickle.dump(conversation, self.file, pickle.HIGHEST_PROTOCOL)
        return len(self.starts) - 1

    def get(self, place: int) -> sftrun.Conversation:
        """Reads a conversation; nothing may be added afterwards."""
        self.file.seek(self.starts[place])
        conversation: sftrun.Conversation = pickle.load(self.file)
        return conversation

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def database() -> "Iterator[sqlite3.Connection]":
    """An SQLite database in a temporary file; at most 64 MB of it are in memory."""
    import sqlite3

    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()
