"""`sftrun cache`: what is there, by kind, and removing it without harm to what others are at."""

import os
import time

import pytest
from conftest import talk

from sftrun.data import store

DAY = 86400


@pytest.fixture
def made(write, sftrun, tmp_path, monkeypatch):
    """A cache with the prepared data of one run."""
    monkeypatch.setenv("SFTRUN_CACHE", str(tmp_path / "cache"))
    said = sftrun("prepare", write([talk("1?", "2")]), "--out", tmp_path / "run")
    assert said.code == 0, said.err
    (entry,) = (path for path in (tmp_path / "cache/prepared").iterdir() if path.is_dir())
    return entry


def test_it_says_what_is_there_and_clearing_leaves_a_run_what_it_has(made, sftrun, tmp_path):
    said = sftrun("cache")
    assert str(tmp_path / "cache") in said.err
    assert ["prepared", "1"] in [line.split()[:2] for line in said.err.splitlines()]
    assert "1 removed" in sftrun("cache", "--clear").err
    assert not made.exists()
    assert (tmp_path / "run/prepared/train.arrow").stat().st_size > 0
    assert "0 removed" in sftrun("cache", "--clear").err


def test_what_was_used_lately_can_stay(made, write, sftrun, tmp_path):
    before = time.time() - 40 * DAY
    for path in [*made.iterdir(), made]:
        os.utime(path, (before, before))
    assert sftrun("prepare", tmp_path / "recipe.yaml", "--out", tmp_path / "again").code == 0  # uses it
    assert "0 removed" in sftrun("cache", "--clear", "--older-than", 30).err
    for path in [*made.iterdir(), made]:
        os.utime(path, (before, before))
    assert "1 removed" in sftrun("cache", "--clear", "--older-than", 30).err


def test_what_a_process_is_at_stays(made, sftrun):
    with store.entry_lock(made.name, lambda: None):
        assert "0 removed" in sftrun("cache", "--clear").err
    assert made.exists()


def test_what_a_killed_rehearsal_has_left_goes_after_a_day(made, sftrun, tmp_path):
    left = tmp_path / "cache/.rehearsal-x"
    left.mkdir()
    assert "1 removed" in sftrun("cache", "--clear").err  # the prepared data alone
    os.utime(left, (0, time.time() - 2 * DAY))
    assert "1 removed" in sftrun("cache", "--clear").err
    assert not left.exists()


def test_an_age_without_clearing_is_wrong_usage(sftrun):
    assert sftrun("cache", "--older-than", 3).code == 2
