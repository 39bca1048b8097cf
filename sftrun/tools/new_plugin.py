"""Writes the project of a new plugin: a component that works, its tests, a README and a CI workflow."""

import difflib
import os
import re
from importlib import metadata, resources
from pathlib import Path
from string import Template

import sftrun
from sftrun.errors import UserError
from sftrun.hookspecs import API_VERSION, KINDS
from sftrun.registry import current

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
METRIC_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")  # a metric's name is also the key of its score
LONGEST = 24  # characters of a name; longer ones break the lines of the templates
LIGHT = ("source", "formatter", "exporter", "metric", "tracker")  # kinds whose tests need no tokenizer and no torch
UNTYPED = """
[[tool.mypy.overrides]]
module = ["transformers.*", "trl.*"]
ignore_missing_imports = true
follow_imports = "skip"
"""
FILES = {  # the template of each file of a project
    "pyproject.toml": "pyproject.toml.txt",
    "$module.py": "$kind.py.txt",
    "tests/test_$short.py": "test_$kind.py.txt",
    "README.md": "README.md.txt",
    ".github/workflows/ci.yml": "ci.yml.txt",
}


def new_plugin(name: str, kind: str, out: str | os.PathLike[str] | None = None) -> Path:
    """Writes a project with one component into a new folder, by default `sftrun-<name>`, and returns the folder.

    Raises UserError if the kind or the name is wrong, the name is taken, or the folder exists.
    """
    _check_kind(kind)
    _check_name(name, kind)
    _check_free(name, kind)
    folder = Path(out) if out is not None else Path(_distribution(name))
    words = _words(name, kind)
    words["recipe"] = _fill(f"{kind}.yaml.txt", words)
    texts = {Template(file).substitute(words): _fill(each, words) for file, each in FILES.items()}
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists already", hint="name another folder: --out DIR") from None
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, "utf-8")
    return folder


def _check_kind(kind: str) -> None:
    if kind in KINDS:
        return
    close = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(KINDS)}"
    raise UserError(f"unknown kind of component '{kind}'", hint=hint)


def _check_name(name: str, kind: str) -> None:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).removeprefix("sftrun-").strip("-")
    hint = f"did you mean '{plain}'?" if NAME.fullmatch(plain) and plain != name else "such as last-reply"
    if not (METRIC_NAME if kind == "metric" else NAME).fullmatch(name):
        message = f"'{name}' is no name: use lower-case letters and digits, with hyphens between words"
        raise UserError(message, hint=hint)
    if name.startswith("sftrun-"):
        raise UserError(f"'{name}': recipes use the name of the component, without sftrun-", hint=hint)
    if len(name) > LONGEST:
        raise UserError(f"'{name}' is longer than {LONGEST} characters", hint="short names keep recipes easy to read")


def _check_free(name: str, kind: str) -> None:
    """Raises UserError if a component or a distribution of this name is installed."""
    taken = current().components[kind].get(name)
    if taken:
        message = f"there is a {kind} '{name}' already: it is in {taken.distribution} {taken.version}"
        raise UserError(message, hint="choose another name; two of one name are an error")
    try:
        version = metadata.version(_distribution(name))
    except metadata.PackageNotFoundError:
        return
    raise UserError(f"{_distribution(name)} {version} is installed already", hint="choose another name")


def _distribution(name: str) -> str:
    return f"sftrun-{name.replace('_', '-')}"


def _words(name: str, kind: str) -> dict[str, str]:
    """Returns what the templates are filled with."""
    base = "".join(word.capitalize() for word in re.split("[-_]", name))
    base = base.removesuffix(kind.capitalize()) or base  # the judge strict-judge is a StrictJudge
    short = name.replace("-", "_")
    return {
        "name": name,
        "kind": kind,
        "short": short,
        "module": f"sftrun_{short}",
        "distribution": _distribution(name),
        "component": f"{base}{kind.capitalize()}",
        "options": f"{base}Options",
        "api": str(API_VERSION),
        "version": ".".join(sftrun.__version__.split(".")[:2]),
        "untyped": UNTYPED if kind == "backend" else "",
        "needed": "sftrun" if kind in LIGHT else "sftrun[train]",
    }


def _fill(template: str, words: dict[str, str]) -> str:
    file = resources.files("sftrun.tools") / "templates" / Template(template).substitute(words)
    return Template(file.read_text("utf-8")).substitute(words)
