"""The plugin API: its reference and the snapshot of each version are those of the code, and CHANGES is complete."""

import importlib
import inspect
import os
import re
from pathlib import Path

import public_api
import pytest

from sftrun import api_changes, hookspecs, kinds, options
from sftrun.api_changes import Change
from sftrun.events import EVENTS
from sftrun.hookspecs import KINDS

PAGE = Path(__file__).parent.parent / "docs" / "plugin-api.md"
SNAPSHOTS = Path(__file__).parent / "api"
AGAIN = "write it again: SFTRUN_UPDATE=1 pytest tests/test_plugin_api.py"


def snapshots():
    """Returns the public API of each version, as it was written down."""
    found = {}
    for file in SNAPSHOTS.glob("*.txt"):
        lines = file.read_text("utf-8").splitlines()
        found[int(file.stem)] = dict(line.split(": ", 1) for line in lines)
    return found


def test_nothing_public_changes_within_a_version():
    surface = public_api.surface()
    file = SNAPSHOTS / f"{hookspecs.API_VERSION}.txt"
    if os.environ.get("SFTRUN_UPDATE"):
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text("".join(f"{key}: {text}\n" for key, text in surface.items()), "utf-8")
    found = public_api.complaints(snapshots(), surface, hookspecs.API_VERSION)
    assert not found, (
        f"{'; '.join(found)}. Raise API_VERSION and list the changes in CHANGES; "
        f"or, while version {hookspecs.API_VERSION} is not released, {AGAIN}"
    )


BEFORE = {"masker.choose": "(spans)", "masker.narrow": "optional", "sftrun.kinds.Training.seed": "int"}


@pytest.mark.parametrize(
    ("now", "changes", "found"),
    [
        ({}, (), []),
        ({"masker.narrow": None}, (), ["masker.narrow was removed within version 1"]),
        ({"masker.choose": "(work)"}, (), ["masker.choose was changed within version 1"]),
        ({"masker.cut": "optional"}, (), ["masker.cut is added in version 1, but CHANGES does not say so"]),
        ({"masker.cut": "optional"}, (Change(1, "added", "masker.cut"),), []),
        ({"sftrun.events.New.step": "int"}, (Change(1, "added", "sftrun.events.New"),), []),
        (
            {"masker.narrow": None},
            (Change(1, "removed", "masker.narrow", "cut"),),
            ["masker.narrow was removed within"],
        ),
    ],
)
def test_within_a_version_the_api_only_grows_and_is_listed(monkeypatch, now, changes, found):
    monkeypatch.setattr(api_changes, "CHANGES", changes)
    assert agrees(public_api.complaints({1: BEFORE}, changed(now), 1), found)


@pytest.mark.parametrize(
    ("now", "changes", "found"),
    [
        ({}, (), []),
        ({"masker.cut": "optional"}, (Change(2, "added", "masker.cut"),), []),
        ({"masker.cut": "optional"}, (Change(1, "added", "masker.cut"),), ["masker.cut is added in version 2, but"]),
        ({"masker.choose": "(work)"}, (Change(2, "changed", "masker.choose"),), []),
        ({"masker.choose": "(work)"}, (), ["masker.choose is changed in version 2, but"]),
        (
            {"masker.narrow": None},
            (Change(2, "removed", "masker.narrow", "cut"),),
            ["masker.narrow is removed in version 2, but no earlier version deprecates it"],
        ),
        (
            {"masker.narrow": None},
            (Change(1, "deprecated", "masker.narrow", "cut"), Change(2, "removed", "masker.narrow", "cut")),
            [],
        ),
    ],
)
def test_a_new_version_lists_what_differs_from_the_one_before(monkeypatch, now, changes, found):
    monkeypatch.setattr(api_changes, "CHANGES", changes)
    surface = changed(now)
    assert agrees(public_api.complaints({1: BEFORE, 2: surface}, surface, 2), found)
    (missing,) = public_api.complaints({1: BEFORE}, surface, 2)
    assert missing == "tests/api/2.txt is missing: write it with SFTRUN_UPDATE=1"


def changed(now):
    """Returns the made-up API with some names changed, added, or (None) removed."""
    return {key: text for key, text in {**BEFORE, **now}.items() if text is not None}


def agrees(complaints, beginnings):
    """Returns True if there is one complaint for each beginning, in order."""
    return len(complaints) == len(beginnings) and all(map(str.startswith, complaints, beginnings))


def test_changes_name_what_there_is_and_say_what_to_use_instead():
    surface = public_api.surface()
    for change in api_changes.CHANGES:
        assert 1 <= change.version <= hookspecs.API_VERSION, change
        kind, _, name = change.name.partition(".")
        named = [f"{each}.{name}" for each in KINDS] if kind == "*" else [change.name]
        known = [key for key in surface if key in named or key.startswith(f"{change.name}.")]
        assert bool(known) == (change.what != "removed"), change
        if change.what in ("deprecated", "removed"):
            assert change.instead, change


# --- docs/plugin-api.md ---


def table(head, rows):
    cells = [" | ".join(each.replace("|", "\\|") for each in row) for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {row} |" for row in cells)])


def text_of(doc):
    """Returns a docstring as one paragraph per paragraph."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(doc or ""))


def cell(doc):
    return " ".join(text_of(doc).split())


def versions():
    rows = [
        (str(each.version), each.what, f"`{each.name}`", f"`{each.instead}`" if each.instead else "")
        for each in sorted(api_changes.CHANGES, key=lambda each: each.version)
    ]
    current = f"The current version is {hookspecs.API_VERSION}; the oldest that is supported is "
    return f"{current}{hookspecs.OLDEST_API_VERSION}.\n\n{table(('version', 'change', 'name', 'use instead'), rows)}"


def methods(owner):
    rows = [(f"`{each.name}{each.text if each.is_method else ': ' + each.text}`", each.doc) for each in owner]
    return table(("name", "meaning"), [(name, cell(doc)) for name, doc in rows])


def all_kinds():
    every = f"### Every kind\n\n{text_of(kinds.Checks.__doc__)}\n\n{methods(public_api.members(kinds.Checks))}"
    return "\n\n".join([every, *map(of_kind, KINDS)])


def of_kind(kind):
    protocol = kinds.PROTOCOLS[kind]
    head = f"### {kind}\n\n{text_of(protocol.__doc__)}\n\nIts hook is `register_{kind}s`."
    extra = public_api.optional(kind)
    listed = f" Optional: {', '.join(f'`{name}`' for name in extra)}." if extra else ""
    return f"{head}{listed}\n\n{methods(public_api.members(protocol))}"


def classes(module):
    """Returns a section per class of a module, and a line per type alias."""
    parts = []
    for name, value in public_api.names(module):
        text = public_api.entry(module, name, value)
        if text.startswith("class"):
            rows = methods(public_api.public_members(value))
            parts.append(f"### `{module}.{name}`\n\n{text_of(value.__doc__)}\n\n{rows}")
    return "\n\n".join(parts)


def all_events():
    rows = [
        (f"`{name}`", f"`{event.__name__}`", "<br>".join(f"`{each.name}: {each.text}`" for each in fields), cell(doc))
        for name, event in EVENTS.items()
        for fields, doc in [(list(public_api.members(event)), event.__doc__)]
    ]
    return table(("event", "class in `sftrun.events`", "fields", "meaning"), rows)


def modules():
    parts = []
    for module in (
        each for each in public_api.MODULES if each not in ("sftrun.kinds", "sftrun.types", "sftrun.events")
    ):
        about = text_of(importlib.import_module(module).__doc__).split("\n\n")[0]
        rows = [named(module, name, value) for name, value in public_api.names(module)]
        parts.append(f"### `{module}`\n\n{about}\n\n{table(('name', 'meaning'), rows)}")
    training = importlib.import_module("sftrun.training")
    return "\n\n".join([*parts, f"### `sftrun.training`\n\n{inspect.cleandoc(training.__doc__)}"])


def named(module, name, value):
    """Returns a row about a public name: a function with its signature, a class with its members."""
    text = public_api.entry(module, name, value)
    if text.startswith("("):
        return f"`{name}{text}`", cell(value.__doc__)
    if text.startswith("class"):
        members = [each.name for each in public_api.public_members(value)] if name != "Recipe" else []
        listed = ", ".join(f"`{each}`" for each in members if not each.startswith("_"))
        return f"`{name}`", cell(value.__doc__) + (f" It has {listed}." if listed else "")
    if text.startswith("is "):
        return f"`{name}`", f"`{text.removeprefix('is ').removeprefix('of ')}{'.' + name if ' of ' in text else ''}`"
    marked = re.search(rf"^- `{name}`: (.*)$", options.__doc__, re.MULTILINE)
    return f"`{name}`", f"`{text}`" if text[0] == "=" else marked[1] if marked else "A type alias."


SECTIONS = {
    "versions": versions,
    "kinds": all_kinds,
    "contexts": lambda: classes("sftrun.kinds"),
    "types": lambda: classes("sftrun.types"),
    "events": all_events,
    "modules": modules,
}


def test_the_reference_is_fresh():
    text = PAGE.read_text("utf-8")
    for name, write in SECTIONS.items():
        fresh = f"<!-- {name} -->\n{write()}\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: fresh, text, flags=re.DOTALL)  # noqa: B023
        assert count == 1
    if os.environ.get("SFTRUN_UPDATE"):
        PAGE.write_text(text, "utf-8")
    assert PAGE.read_text("utf-8") == text, AGAIN


def test_every_kind_and_event_is_in_the_reference():
    text = PAGE.read_text("utf-8")
    for kind in KINDS:
        assert f"\n### {kind}\n" in text
    for name in EVENTS:
        assert f"\n| `{name}` | " in text


def test_the_oldest_version_is_not_newer_than_the_current_one():
    assert 1 <= hookspecs.OLDEST_API_VERSION <= hookspecs.API_VERSION
