"""Names of the Hub where there is no network: one clear message, soon."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "recipes/smollm2-smoltalk.yaml"


@pytest.fixture
def deaf():
    """A proxy that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
def test_a_network_that_never_answers_is_one_error(deaf, tmp_path):
    env = {**os.environ, "HTTPS_PROXY": deaf, "HTTP_PROXY": deaf, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "sftrun", str(RECIPE), "--out", str(tmp_path / "out")]
    said = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1
    assert "smollm2-smoltalk.yaml:8:9: error: the model HuggingFaceTB/SmolLM2-135M cannot be fetched" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_model_that_is_neither_cached_nor_to_be_had_is_an_error_at_its_place(sftrun, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = sftrun(RECIPE, "--out", tmp_path / "out")
    assert said.code == 1
    assert ":8:9: error: the model HuggingFaceTB/SmolLM2-135M cannot be fetched from the Hub" in said.err
    assert "check the network" in said.err


def test_a_folder_that_is_written_as_an_id_is_told_how_to_be_written(sftrun, write, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    said = sftrun(write([{}], model={"name": "mine"}), "--out", tmp_path / "out")
    assert "for the folder of this name write ./mine; for the Hub, check the network" in said.err
