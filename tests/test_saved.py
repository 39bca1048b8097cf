"""The folder `model/`: in the dtype of the base, and the same bytes in every process."""

import json

import pytest
import torch
from safetensors.torch import load_file

import sftrun
from sftrun import tiny
from sftrun.testing.bench import Bench

pytestmark = pytest.mark.older

TRAIN = {"train.max_steps": 1, "train.batch_size": 4, "train.save_strategy": "no", "train.eval_strategy": "no"}
MODULES = ["v_proj", "up_proj", "q_proj", "o_proj", "k_proj", "gate_proj", "down_proj"]


@pytest.fixture
def bench(tmp_path):
    return lambda *sets: Bench(sftrun.create("backend", "hf"), sets, tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_full_tuning_saves_the_dtype_of_the_base(bench, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    tiny.save(base, 0)
    AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).save_pretrained(base)
    saved = bench(f"model.name={base}").trained(TRAIN).run.model
    weights = load_file(saved / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {f"torch.{dtype}"}
    assert weights.keys() == load_file(base / "model.safetensors").keys()  # a tied head is saved once
    assert json.loads((saved / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(saved, dtype="auto").dtype == getattr(torch, dtype)


def test_weights_too_large_for_the_dtype_of_the_base_stay_in_fp32_and_it_is_said(bench, tmp_path):
    """A learning rate that throws the weights beyond 65,504, the largest number of float16."""
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    tiny.save(base, 0)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    huge = {**TRAIN, "train.learning_rate": 1e5, "train.max_grad_norm": 0, "train.precision": "fp32"}
    trained = bench(f"model.name={base}").trained(huge)
    weights = load_file(trained.run.model / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    warned = [event["message"] for event in trained.events if event["event"] == "warning"]
    assert any("some weights are too large for float16, the dtype of the base" in each for each in warned)


def test_an_adapter_lists_its_modules_in_the_same_order_in_every_process(bench):
    modules = f"tuning.lora.target_modules={json.dumps(MODULES)}"
    saved = bench("tuning.mode=lora", modules).trained(TRAIN).run.model
    assert json.loads((saved / "adapter_config.json").read_text())["target_modules"] == sorted(MODULES)
