"""GPUs are hidden from every test but those marked `gpu`."""

import os
import subprocess
import sys
from types import SimpleNamespace

import conftest
import pytest


@pytest.mark.parametrize("markers", ["gpu", "gpu and slow", "(slow or older) and gpu", "not (slow or not gpu)"])
def test_gpus_are_visible_if_only_gpu_tests_are_selected(markers, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    conftest.pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr=markers)))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize("markers", ["", "slow", "not slow", "slow or not slow", "not gpu", "gpu or slow", "gpu("])
def test_gpus_are_hidden_if_any_other_test_may_be_selected(markers, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    conftest.pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr=markers)))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_subprocess_sees_no_gpu_either():
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "''\n"


@pytest.mark.gpu
def test_a_gpu_test_sees_a_gpu():
    import torch

    assert torch.cuda.device_count() > 0
