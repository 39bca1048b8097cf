"""Tests of refusals and fallbacks of the backend, which need no import of unsloth."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sftrun_unsloth import backend, merged
from sftrun_unsloth.backend import Unsloth, UnslothOptions

import sftrun
from sftrun import testing

PACKED = "packing.strategy=best-fit"
FALLBACK = "backend={use: unsloth, with: {fallback: hf}}"
BEYOND = "unsloth does not act on packing.strategy"


@pytest.mark.parametrize("module", [backend, merged])
def test_each_module_is_a_whole_plugin(module):
    testing.check_plugin(module)


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parent.parent.glob("recipes/*.yaml")), ids=lambda file: file.name
)
def test_the_recipes_are_valid(file):
    assert [str(problem) for problem in sftrun.validate(file)] == []


def test_validating_imports_neither_unsloth_nor_torch(recipe):
    code = "import sys, sftrun; print(sftrun.validate(sys.argv[1]), 'unsloth' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, recipe], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False False\n"


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="unsloth is installed here")
def test_without_unsloth_it_says_how_to_install_it(recipe):
    (said,) = Unsloth(UnslothOptions()).check_machine(sftrun.load(recipe))
    assert said.message == "the backend unsloth needs unsloth, unsloth_zoo: not installed"
    assert "in its own environment" in said.hint


def test_packed_rows_are_refused(problems):
    message = 'the backend unsloth does not act on packing.strategy: "best-fit" would have no effect'
    assert problems(PACKED) == [f"error: {message}"]


@pytest.mark.parametrize("fallback", ["hf", "bnb"])
def test_it_honours_recipe_keys_alone_and_those_of_its_fallback(fallback):
    alone = Unsloth(UnslothOptions())
    assert "packing.strategy" not in alone.honours
    assert not alone.distributed
    both = Unsloth(UnslothOptions(fallback=fallback))
    assert both.honours == alone.honours | sftrun.create("backend", fallback).honours
    assert both.distributed


@pytest.mark.parametrize("setting", ["launch.processes=2", "launch.nodes=2"])
def test_several_processes_are_refused_or_left_to_a_fallback(problems, setting):
    said = f"the backend unsloth trains on one GPU, in one process; {setting.replace('=', ' is ')}"
    assert problems(setting) == [f"error: {said}"]
    assert problems(setting, FALLBACK) == [f"warning: {said}"]


@pytest.mark.parametrize(
    "setting", ["attention=eager", "cross_entropy=liger", "compile=true", "activation_offload=true", "tf32=true"]
)
def test_switches_that_unsloth_decides_itself_are_refused_or_left_to_a_fallback(problems, setting):
    (refused,) = problems(f"train.{setting}")
    key = setting.partition("=")[0]
    assert refused.startswith(f"error: the backend unsloth does not act on train.{key}: ")
    assert f"warning: unsloth does not act on train.{key}" in problems(f"train.{setting}", FALLBACK)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("target_modules=[q_proj, lm_head]", "unsloth trains lm_head in full, not with an adapter"),
        ("target_modules=[embed_tokens]", "unsloth trains embed_tokens in full, not with an adapter"),
        ("target_modules=auto", "unsloth does not leave the choice of modules to peft"),
        ("target_modules=[]", "target_modules must name at least one module"),
        (
            "modules_to_save=[embed_tokens]",
            'the backend unsloth does not act on tuning.lora.modules_to_save: ["embed_tokens"] would have no effect',
        ),
        ("init=pissa", "the backend unsloth does not save what init pissa takes out of the base"),
    ],
)
def test_adapters_that_unsloth_would_make_otherwise_are_refused(problems, setting, said):
    assert problems("tuning.mode=lora", f"tuning.lora.{setting}") == [f"error: {said}"]


def test_what_it_takes_is_known_only_when_it_runs(problems):
    (said,) = problems("train.batch_size=auto", "train.effective_batch_size=8")
    assert said.endswith("needs a backend that estimates memory, and the backend unsloth does not")


def test_prefetching_needs_processes(problems):
    assert "dataloader_prefetch needs loader processes" in problems("train.dataloader_prefetch=2")[0]


def test_the_exporter_belongs_to_the_backend_and_comes_first(problems):
    lora = "tuning.mode=lora"
    assert problems(lora, "exporters=[unsloth-merged, merged]") == []
    assert "must be imported before" in problems(lora, "exporters=[merged, unsloth-merged]")[0]
    assert (
        "merges what the backend unsloth has trained" in problems(lora, "backend=hf", "exporters=[unsloth-merged]")[0]
    )
    assert "nothing to merge in tuning.mode full" in problems("exporters=[unsloth-merged]")[0]


def ready(recipe, *settings, **options):
    return list(Unsloth(UnslothOptions(**options)).check_machine(sftrun.load(recipe, settings)))


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A driver that lists two GPUs."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0, GPU-1, H100, 8, 8\\n1, GPU-2, H100, 8, 8\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_several_gpus_are_refused_before_anything_starts(recipe, two_gpus, monkeypatch):
    said = ready(recipe)
    assert "trains on one GPU, in one process; 2 are visible here" in str(said)
    assert "CUDA_VISIBLE_DEVICES=0" in str(said)
    for one in ("1", "0,-1", "-1,0", "GPU-2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", one)
        assert "are visible" not in str(ready(recipe))


def test_several_gpus_are_what_a_fallback_can_be_for(recipe, two_gpus):
    (said,) = ready(recipe, fallback="hf")
    assert (said.severity, said.hint) == ("warning", "hf trains instead (fallback)")


def test_optimizers_that_need_a_gpu_are_refused_without_one(recipe):
    said = ready(recipe, "train.optimizer=adamw_8bit")
    assert "without a GPU unsloth would silently use another optimizer than adamw_8bit" in str(said)


def test_the_best_checkpoint_needs_validation_rows(recipe, tmp_path):
    described = sftrun.load(recipe, ["train.early_stopping={patience: 1}", "train.save_strategy=epoch"])
    (said,) = Unsloth(UnslothOptions()).check_prepared(described, sftrun.RunDir(tmp_path))
    assert said.message == "train.early_stopping needs a validation loss, and the data have no validation rows"


@pytest.fixture
def stranger(tmp_path):
    """A model of an unknown architecture."""
    from sftrun import tiny

    for name in tiny.TOKENIZER_FILES:
        (tmp_path / name).write_bytes((tiny.folder() / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hyperborea"}))
    return tmp_path


def test_an_unknown_architecture_is_refused_before_training(recipe, stranger):
    described = sftrun.load(recipe, [f"model.name={stranger}"])
    (said,) = Unsloth(UnslothOptions()).check_prepared(described, sftrun.RunDir(stranger))
    assert "unsloth does not know the architecture 'hyperborea'" in said.message
    assert list(Unsloth(UnslothOptions(fallback="hf")).check_prepared(described, sftrun.RunDir(stranger))) == []


def test_a_fallback_that_trains_is_recorded_and_evaluates_too(recipe, tmp_path):
    run = sftrun.run(recipe, [PACKED, FALLBACK, "train.max_steps=2", "evaluators=[loss]"], out=tmp_path / "run")
    assert run.facts("train")["backend"] == {"asked": "unsloth", "used": "hf", "reasons": [BEYOND]}
    warnings = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert f"trained with hf instead of unsloth: {BEYOND}" in warnings
    assert "Unsloth" not in run.log.read_text()
    assert run.read_json("eval/scores.json")["tuned"]["loss"]["test_loss"] > 0
