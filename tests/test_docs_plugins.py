"""Every code block of docs/plugins.md is run, in order, in an environment of its own.

A block that starts with `# name` is written to that file. Another Python block is run by itself. In a console block
each command is run, and must print what follows it, where `…` stands for anything.
"""

import inspect
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from environments import Environment

from sftrun import hookspecs, testing, types

TEXT = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.\w+)\n")
COMMAND = re.compile(r"^\$ (.*)\n", re.MULTILINE)


class Block(NamedTuple):
    kind: str
    text: str


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv", "sftrun[train]", "pytest", "setuptools")


@pytest.mark.slow
def test_the_code_does_what_the_text_says(environment, tmp_path):
    folder = tmp_path / "sftrun-identity"
    folder.mkdir()
    blocks = [Block(*found) for found in FENCE.findall(TEXT)]
    assert len(blocks) > 10
    for block in blocks:
        named = FILE.match(block.text)
        if named:
            (folder / named[1]).write_text(block.text[named.end() :], "utf-8")
        elif block.kind == "python":
            done = environment.run("-c", block.text)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
        else:
            assert block.kind == "console", f"nothing runs this block:\n{block.text}"
            session(environment, folder, block.text)


def session(environment: Environment, folder: Path, text: str) -> None:
    """Runs the commands of a console block, and compares what each prints."""
    _, *parts = COMMAND.split(text)
    for command, printed in zip(parts[::2], parts[1::2], strict=True):
        said = run(environment, folder, shlex.split(command))
        pattern = ".*".join(map(re.escape, printed.strip().split("…")))
        assert re.fullmatch(pattern, said.strip(), re.DOTALL), f"$ {command}\n{said}"


def run(environment: Environment, folder: Path, words: list[str]) -> str:
    program, *arguments = words
    if program == "pip":
        environment.install("--no-build-isolation", *arguments[1:], cwd=folder)
        return ""
    if program == "sed":
        subprocess.run(words, cwd=folder, check=True)
        return ""
    done = environment.run("-m", program, *arguments, cwd=folder)
    return done.stdout + done.stderr


def test_the_table_of_kinds_is_what_the_protocols_say():
    rows = re.findall(r"^\| (\w+) \| (.*) \| `(register_\w+)` \|", TEXT, re.MULTILINE)
    assert rows == [(kind, methods(kind), f"register_{kind}s") for kind, _, _ in rows]
    assert {kind for kind, _, _ in rows} == set(hookspecs.KINDS)


def methods(kind: str) -> str:
    """The methods of a kind's Protocol, as the table shows them."""
    protocol = vars(getattr(types, kind.capitalize()))
    found = {name: inspect.signature(each) for name, each in protocol.items() if not name.startswith("_")}
    return " ".join(f"`{name}({', '.join(list(each.parameters)[1:])})`" for name, each in found.items())


def test_the_table_of_the_kit_has_all_of_it():
    named = re.findall(r"^\| `(\w+)\((.*?)\)` \|", TEXT, re.MULTILINE)
    assert sorted(name for name, _ in named) == testing.__all__
    for name, parameters in named:
        assert parameters == ", ".join(inspect.signature(getattr(testing, name)).parameters)
