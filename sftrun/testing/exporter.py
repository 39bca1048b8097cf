"""Promises of an exporter."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftrun import kinds
from sftrun.errors import UserError
from sftrun.runs.directory import RunDir
from sftrun.testing.examples import check_event
from sftrun.testing.folders import contents, working_folder

LARGEST = 1 << 16  # bytes of a file while the disk is full: less than any model, more than a line of a log


def check_exporter(exporter: kinds.Exporter, run: RunDir) -> None:
    """Raises AssertionError unless an exporter fills `export/` of a run that has trained, twice with the same result.

    Its facts are JSON with the `path` of what it wrote, and nothing else of the run changes. An export that fails, on a
    full disk or without a model, leaves nothing half-written. All happens in a copy of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = RunDir(Path(shutil.copytree(run.path, Path(folder) / "run")))
        current = Path(folder) / "current"
        current.mkdir()
        with working_folder(current):
            shutil.rmtree(copy.export, ignore_errors=True)
            before = _outside(copy)
            _check_full_disk(exporter, copy)
            facts = _export(exporter, copy)
            _check_facts(facts, copy)
            changed = sorted(dict(before.items() ^ _outside(copy).items()))
            assert not changed, f"the exporter changed {', '.join(changed)} of the run; write below work.run.export"
            first = contents(copy.export)
            again = _export(exporter, copy)
            assert again == facts, f"the facts are not the same a second time: {facts}, then {again}"
            differing = sorted(dict(first.items() ^ contents(copy.export).items()))
            assert not differing, f"not the same files a second time: {', '.join(differing)}"
            _check_without_model(exporter, copy)
        left = sorted(contents(current))
        assert not left, f"the exporter wrote {', '.join(left)} into the current folder; write below work.run.export"


def _export(exporter: kinds.Exporter, run: RunDir) -> dict[str, Any]:
    return exporter.export(kinds.Exporting(recipe=run.recipe(), run=run, emit=check_event))


def _check_facts(facts: Any, run: RunDir) -> None:
    assert isinstance(facts, dict), f"export() must return a dict of facts, not {type(facts).__name__}"
    try:
        same = json.loads(json.dumps(facts, allow_nan=False)) == facts
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the facts must be JSON: {error}; {facts}") from error
    assert same, f"the facts must be the same when read back from JSON: {facts}"
    path = facts.get("path")
    assert isinstance(path, str), f"the facts must have the path of what was written: {facts}"
    written = (run.path / path).resolve()
    below = run.export.resolve() in (written, *written.parents)
    assert below, f"path must lie below export/ of the run, relative to the run: {path!r}"
    assert written.exists(), f"there is nothing at {path}"


def _outside(run: RunDir) -> dict[str, str]:
    """Returns the contents of a run outside `export/`."""
    return {name: digest for name, digest in contents(run.path).items() if Path(name).parts[0] != run.export.name}


def _check_full_disk(exporter: kinds.Exporter, run: RunDir) -> None:
    """Raises AssertionError if an export on a full disk leaves anything, if it fails at all."""
    try:
        with full_disk():
            _export(exporter, run)
    except AssertionError:
        raise
    except Exception:
        _check_nothing_left(run, {}, "a full disk")
    shutil.rmtree(run.export, ignore_errors=True)


def _check_without_model(exporter: kinds.Exporter, run: RunDir) -> None:
    before = contents(run.export)
    shutil.rmtree(run.model)
    try:
        _export(exporter, run)
    except UserError:
        _check_nothing_left(run, before, "a run without a model")
        return
    except Exception as error:
        message = f"without a model: must be a UserError, not {type(error).__name__}: {error}"
        raise AssertionError(message) from error
    raise AssertionError("a run without a model must be a UserError")


def _check_nothing_left(run: RunDir, before: dict[str, str], cause: str) -> None:
    left = sorted(contents(run.export).keys() - before.keys())
    assert not left, f"an export that failed ({cause}) left {', '.join(left)}; write with sftrun.files.atomic_folder"
    lost = sorted(before.keys() - contents(run.export).keys())
    assert not lost, f"an export that failed ({cause}) removed {', '.join(lost)} of an earlier one"


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the size of files, in place of a disk that is full."""
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
