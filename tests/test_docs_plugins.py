"""Every code block of docs/plugins.md is run, in order, in its own environment.

A block that starts with `# name` is written to that file; with `# name, from line N` the file must have it there;
a diff is applied to its file. Another Python block is run by itself. In a console block each command is run, and must
print what follows it, where `…` stands for anything.
"""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from environments import Environment

from sftrun import hookspecs, kinds, registry, testing

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "plugins.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.\w+)(?:, from line (\d+))?\n")
COMMAND = re.compile(r"^\$ (.*)\n", re.MULTILINE)


class Block(NamedTuple):
    kind: str
    text: str


class Shell:
    """An environment, and the folder that commands are run in."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment = environment
        self.folder = folder

    def follow(self, block: Block) -> None:
        named = FILE.match(block.text)
        if named:
            self.file(block, self.folder / named[1], named[2], block.text[named.end() :])
        elif block.kind == "python":
            done = self.environment.run("-c", block.text, cwd=self.folder)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
        else:
            assert block.kind == "console", f"nothing runs this block:\n{block.text}"
            self.session(block.text)

    def file(self, block: Block, file: Path, line: str | None, text: str) -> None:
        """Writes a file, changes it, or compares it from a line on."""
        if block.kind == "diff":
            file.write_text(patched(file.read_text("utf-8"), text), "utf-8")
        elif line:
            lines = file.read_text("utf-8").splitlines(keepends=True)[int(line) - 1 :]
            assert "".join(lines).startswith(text), f"{file.name} has something else from line {line} on"
        else:
            file.write_text(text, "utf-8")

    def session(self, text: str) -> None:
        """Runs the commands of a console block, and compares what each prints."""
        _, *parts = COMMAND.split(text)
        for command, printed in zip(parts[::2], parts[1::2], strict=True):
            said = self.run(shlex.split(command))
            pattern = ".*".join(map(re.escape, printed.strip().split("…")))
            assert re.fullmatch(pattern, said.strip(), re.DOTALL), f"$ {command}\n{said}"

    def run(self, words: list[str]) -> str:
        program, *arguments = words
        if program == "cd":
            self.folder /= arguments[0]
            return ""
        if program == "pip":
            self.environment.install("--no-build-isolation", *arguments[1:], cwd=self.folder)
            return ""
        if program == "sed":
            subprocess.run(words, cwd=self.folder, check=True)
            return ""
        done = self.environment.run("-m", program, *arguments, cwd=self.folder)
        return done.stdout + done.stderr


def patched(text: str, diff: str) -> str:
    """Returns a text with a diff applied: its context and removed lines are there once."""
    lines = diff.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
    assert text.count(old) == 1, f"not there once:\n{old}"
    return text.replace(old, new)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_code_does_what_the_text_says(tmp_path):
    shell = Shell(Environment(tmp_path / "venv", "sftrun[train]", "pytest", "setuptools"), tmp_path / "empty")
    shell.folder.mkdir()
    blocks = [Block(*found) for found in FENCE.findall(TEXT)]
    assert len(blocks) > 30
    for block in blocks:
        shell.follow(block)


def test_every_kind_has_an_example():
    headings = re.findall(r"^### (\w+)$", TEXT, re.MULTILINE)
    assert [heading.lower() for heading in headings] == list(hookspecs.KINDS)
    for heading in headings:
        section = TEXT.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
        assert "```python" in section, heading


@pytest.mark.parametrize("plugin", ["sftrun_example", "sftrun_unsloth"])
def test_the_known_plugins_are_those_of_the_repository(plugin, monkeypatch):
    folder = ROOT / "plugins" / plugin.replace("_", "-")
    monkeypatch.syspath_prepend(folder)
    declared = re.search(r"entry-points.sftrun]\n(.*?)\n\n", (folder / "pyproject.toml").read_text("utf-8"), re.DOTALL)
    found = registry.Registry()
    for module in re.findall(r'"(.*)"', declared[1]):
        found.load(module, folder.name, "0", lambda module=module: __import__(module, fromlist=["_"]))
    own = [item for each in found.components.values() for item in each.values() if item.distribution == folder.name]
    listed = ", ".join(f"{item.kind} `{item.name}`" for item in own)
    assert f"| [{folder.name}](../plugins/{folder.name}) | {listed} |" in TEXT
    for module in [name for name in sys.modules if name.split(".")[0] == plugin]:
        del sys.modules[module]


def test_the_table_of_kinds_is_what_the_protocols_say():
    rows = re.findall(r"^\| (\w+) \| (.*) \| `(register_\w+)` \|", TEXT, re.MULTILINE)
    assert rows == [(kind, methods(kind), f"register_{kind}s") for kind, _, _ in rows]
    assert {kind for kind, _, _ in rows} == set(hookspecs.KINDS)


def methods(kind: str) -> str:
    """The methods of a kind's Protocol, as the table shows them."""
    protocol = vars(kinds.PROTOCOLS[kind])
    found = {name: inspect.signature(each) for name, each in protocol.items() if inspect.isfunction(each)}
    found = {name: each for name, each in found.items() if not name.startswith("_")}
    return " ".join(f"`{name}({', '.join(list(each.parameters)[1:])})`" for name, each in found.items())


def test_the_table_of_the_kit_has_all_of_it():
    named = re.findall(r"^\| `(\w+)\((.*?)\)` \|", TEXT, re.MULTILINE)
    assert sorted(name for name, _ in named) == testing.__all__
    for name, parameters in named:
        assert parameters == ", ".join(inspect.signature(getattr(testing, name)).parameters)
