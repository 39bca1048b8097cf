"""Systems other than Linux are named before anything starts, and nothing fails where a signal is missing."""

import platform
import subprocess
import sys

import pytest
from conftest import talk

from sftrun.launch.signals import SIGNALS
from sftrun.runs.directory import RunDir


def test_windows_is_refused_with_what_to_use(write, sftrun, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    said = sftrun("prepare", write([talk("hi", "ho")]))
    assert said.code == 1
    assert "sftrun runs on Linux and macOS, not on Windows; use it in the Windows Subsystem for Linux" in said.err


def test_a_mac_is_told_that_its_gpu_is_not_used(write, sftrun, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    said = sftrun("prepare", write([talk("hi", "ho")]))
    assert said.code == 0
    assert "warning: sftrun does not use the GPU of a Mac: everything runs on the CPU" in said.err


def test_signals_are_handled_where_there_is_no_hangup():
    code = """
import os, signal
del signal.SIGHUP
from sftrun.launch.signals import SIGNALS
try:
    with SIGNALS.handling():
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("heeded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "heeded\n"
    assert SIGNALS.depth == 0


@pytest.mark.parametrize("when", ["before", "during"])
def test_what_a_killed_process_left_unwritten_is_removed(tmp_path, when):
    (tmp_path / "model").mkdir()
    left = [tmp_path / ".state.json.123", tmp_path / "model" / ".README.md.45"]
    kept = [tmp_path / ".node0", tmp_path / ".env.local", tmp_path / "state.json.123"]
    for file in kept:
        file.touch()
    if when == "before":
        for file in left:
            file.touch()
    with RunDir(tmp_path).locked():
        assert not any(file.exists() for file in left)
        if when == "during":
            for file in left:
                file.touch()
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)
