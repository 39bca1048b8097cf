"""GPUs are counted in one place: by the driver, else by torch, once for a run and all its workers."""

import os
from pathlib import Path

import drivers
import pytest
import torch
from conftest import talk

from sftrun import gpus
from sftrun.errors import UserError
from sftrun.events import Custom
from sftrun.launch.workers import Ranks, run_in_worker
from sftrun.memory.machine import read_machine
from sftrun.recipe.model import typed_recipe
from sftrun.recipe.resolved import resolved_yaml
from sftrun.runs import lockfile
from sftrun.runs.directory import RunDir

ROWS = [talk("hi", "ho")] * 4
QUICK = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
cpu_torch = pytest.mark.skipif(torch.version.cuda is not None, reason="is about a torch for the CPU alone")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H100", "NVIDIA L4"]),
        ("1,0", ["NVIDIA L4", "NVIDIA H100"]),
        ("1,7,0", ["NVIDIA L4"]),
        ("1,-1,0", ["NVIDIA L4"]),
        ("GPU-8b2e", ["NVIDIA L4"]),
        ("MIG-1,MIG-2,MIG-3", ["NVIDIA H100", "NVIDIA L4"]),
        ("", []),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_takes(tmp_path, monkeypatch, visible, names):
    drivers.install(tmp_path, monkeypatch, drivers.H100, drivers.L4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in gpus.visible_gpus()] == names
    assert gpus.gpu_count() == len(names)


def test_a_gpu_that_shares_the_memory_of_the_machine_is_named(tmp_path, monkeypatch, write):
    from sftrun import load

    drivers.install(tmp_path, monkeypatch, ("NVIDIA GB10", "[N/A]", "[N/A]"))
    found, cpu = read_machine("cuda"), read_machine("cpu")
    assert (found.name, found.total) == ("NVIDIA GB10", cpu.total)
    from sftrun.registry import current

    (listed,) = lockfile.facts(load(write(ROWS)), current(), [])["hardware"]["gpus"]
    assert listed == {"name": "NVIDIA GB10", "memory_gb": None}


@pytest.fixture
def pretend_torch(tmp_path, monkeypatch):
    """A machine with GPUs and without the driver's program, and a torch that sees three."""
    device = tmp_path / "kfd"
    device.touch()
    monkeypatch.setattr(gpus, "DEVICE_FILES", (str(device),))
    monkeypatch.setattr(gpus, "_driver_program", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    module = tmp_path / "site" / "torch" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "class cuda:\n"
        "    device_count = staticmethod(lambda: 3)\n"
        "    get_device_name = staticmethod(lambda number: f'MI300X {number}')\n"
        "    mem_get_info = staticmethod(lambda number: (5 * 2**30, 8 * 2**30))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(module.parent.parent))
    for cached in (gpus._installed, gpus._seen_by_torch):
        cached.cache_clear()
    yield
    for cached in (gpus._installed, gpus._seen_by_torch):
        cached.cache_clear()


def test_without_the_drivers_program_torch_is_asked(pretend_torch):
    assert [gpu.name for gpu in gpus.visible_gpus()] == ["MI300X 0", "MI300X 1", "MI300X 2"]
    assert read_machine("cuda").free == 5 * 2**30


def test_workers_and_ranks_are_told_and_do_not_ask(tmp_path, monkeypatch):
    calls = drivers.install(tmp_path, monkeypatch, drivers.L4, drivers.L4)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write("resolved.yaml", resolved_yaml(typed_recipe({"model": {"name": "sftrun/tiny"}, "source": "jsonl"})))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    seen = []
    run_in_worker("workers:gpus_seen", run, seen.append)
    run_in_worker("workers:gpus_seen", run, seen.append, Ranks(processes=2))
    assert seen == [Custom(name="gpus", data={"count": 2})] * 2
    assert drivers.count_calls(calls) == 1


@cpu_torch
@pytest.mark.slow
def test_a_rank_without_a_gpu_is_named_if_each_was_to_have_one(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.write("resolved.yaml", resolved_yaml(typed_recipe({"model": {"name": "sftrun/tiny"}, "source": "jsonl"})))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(UserError, match=r"there is no GPU for process . of this machine: torch .* sees 0; install"):
        run_in_worker("workers:joins", run, print, Ranks(processes=2))


@cpu_torch
def test_gpus_that_torch_cannot_use_are_named_before_anything_starts(write, sftrun, tmp_path, monkeypatch):
    drivers.install(tmp_path, monkeypatch, drivers.H100, drivers.H100)
    said = sftrun(write(ROWS))
    assert said.code == 1
    assert "this machine has 2 GPUs (NVIDIA H100), and torch" in said.err
    assert "is built for the CPU alone; launch.processes is auto" in said.err
    assert "CUDA_VISIBLE_DEVICES=" in said.err


@cpu_torch
@pytest.mark.slow
def test_a_run_asks_the_driver_once_and_says_that_it_trains_on_the_cpu(write, sftrun, tmp_path, monkeypatch):
    calls = drivers.install(tmp_path, monkeypatch, drivers.L4)
    said = sftrun(write(ROWS, train=QUICK), "--out", str(tmp_path / "out"))
    assert said.code == 0, said.err
    assert "is built for the CPU alone: everything runs on the CPU" in said.err
    assert drivers.count_calls(calls) == 1
