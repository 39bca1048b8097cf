"""Changes of the plugin API by version: read by the registry, by the tests, and by docs/plugin-api.md."""

from typing import Literal

import msgspec


class Change(msgspec.Struct, frozen=True):
    """One change of the plugin API, and what to use instead.

    `name` is `<kind>.<method or attribute>` for components (`masker.narrow`), with `*` for every kind; for anything
    else it is the dotted public name (`sftrun.files.file_digest`, `sftrun.events.Step.loss`).
    """

    version: int
    what: Literal["added", "changed", "deprecated", "removed"]
    name: str
    instead: str = ""


CHANGES: tuple[Change, ...] = (
    # drafts of version 1 had these names
    Change(1, "removed", "*.check", "check_recipe"),
    Change(1, "removed", "*.ready", "check_machine"),
    Change(1, "removed", "*.prepared", "check_prepared"),
    Change(1, "removed", "backend.launches", "distributed"),
    Change(1, "removed", "masker.reads_train", "honours_flags"),
)


def of_kind(kind: str) -> dict[str, Change]:
    """Returns the newest change of each method and attribute of a kind of component."""
    changes = sorted(CHANGES, key=lambda change: change.version)
    owned = [(change, *change.name.partition(".")[::2]) for change in changes if change.name.count(".") == 1]
    return {name: change for change, owner, name in owned if owner in (kind, "*")}


def removed_message(change: Change) -> str:
    """Returns the message for a component that has a removed method or attribute."""
    name = change.name.rpartition(".")[2]
    instead = f"; use '{change.instead}' instead" if change.instead else ""
    return f"has '{name}', which API version {change.version} has removed{instead}"


def warning(change: Change, api: int) -> str | None:
    """Returns the warning about a method for a component that declares API version `api`; None if there is none."""
    name = change.name.rpartition(".")[2]
    if change.what == "deprecated":
        instead = f"; use '{change.instead}' instead" if change.instead else ""
        return f"has '{name}', which is deprecated since API version {change.version}{instead}"
    if change.what == "added" and api < change.version:
        hint = f"declare SFTRUN_API = {change.version} if it is meant, or rename it"
        return f"has '{name}', which sftrun calls since API version {change.version}; {hint}"
    return None
