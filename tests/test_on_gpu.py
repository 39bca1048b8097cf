"""What only a GPU shows: a switch for speed or memory trains what plain training trains. `pytest -m gpu` runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import transformers
from conftest import talk, wait_for
from safetensors.torch import load_file

from sftrun import tiny
from sftrun.recipe.validate import load
from sftrun.runs.directory import RunDir

pytestmark = pytest.mark.gpu

ROWS = [talk(f"What comes after {number}? " * (1 + number % 5), f"It is {number + 1}.") for number in range(96)]
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 2048, "eos_token_id": 2, "pad_token_id": 0}
TRAIN = {"max_steps": 12, "batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1, "save_strategy": "no"}
PACKED = ("packing.strategy=best-fit", "train.batch_size=2")

# the switches, and how far a loss may be from that of the same training without them
SAME = {
    "bf16": (("train.precision=bf16",), (), 0.05),
    "tf32": (("train.tf32=true",), (), 0.05),
    "checkpointing": (("train.gradient_checkpointing=true",), (), 1e-3),
    "offload": (("train.activation_offload=true",), (), 1e-3),
    "compile": (("train.compile=true",), (), 2e-3),
    "compile, packed": ((*PACKED, "train.compile=true"), PACKED, 2e-3),
    "liger": (("train.cross_entropy=liger",), (), 2e-3),
    "liger in bf16": (("train.cross_entropy=liger", "train.precision=bf16"), ("train.precision=bf16",), 0.05),
    "packed, bf16": ((*PACKED, "train.precision=bf16"), PACKED, 0.05),
    "packed, flex": ((*PACKED, "train.attention=flex"), PACKED, 2e-3),
    "packed, sdpa": ((*PACKED, "train.attention=sdpa"), (*PACKED, "train.attention=eager"), 2e-3),
    "8-bit optimizer": (("train.optimizer=adamw_8bit",), (), 0.1),
    "paged optimizer": (("train.optimizer=paged_adamw_8bit",), ("train.optimizer=adamw_8bit",), 1e-3),
    "4 bits": (("tuning.mode=qlora", "backend=bnb"), ("tuning.mode=lora",), 0.3),
}  # fmt: skip
NEEDED = {"liger": "liger_kernel", "liger in bf16": "liger_kernel", "4 bits": "bitsandbytes"}
NEEDED |= {"8-bit optimizer": "bitsandbytes", "paged optimizer": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with rows, a model whose heads are as wide as those of real models, and a recipe in fp32."""
    path = tmp_path_factory.mktemp("gpu")
    (path / "rows").mkdir()
    for split, rows in (("train", ROWS[:80]), ("val", ROWS[80:])):
        (path / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(**SHAPE, vocab_size=1024)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(path / "base")
    for name in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.folder() / name, path / "base" / name)
    keys = {
        "model": {"name": "./base", "max_seq_len": 256},
        "source": {"use": "jsonl", "with": {"path": "rows"}},
        "tuning": {"mode": "full"},
        "train": {**TRAIN, "precision": "fp32"},
    }
    (path / "recipe.yaml").write_text(json.dumps(keys))
    return path


@pytest.fixture(scope="module")
def losses(folder):
    """Trains in this process; returns the losses. The same training is not done twice."""
    known = {}

    def of(*sets):
        from sftrun.flow import prepare
        from sftrun.kinds import Training
        from sftrun.registry import create

        if sets not in known:
            torch.compiler.reset()
            events = []
            run = prepare(folder / "recipe.yaml", sets, folder / f"run-{len(known)}")
            recipe = load(folder / "recipe.yaml", sets)
            create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=events.append))
            print(*(event for event in events if event["event"] in ("using", "warning")), sep="\n")
            known[sets] = [event["loss"] for event in events if event["event"] == "step"]
        return known[sets]

    return of


@pytest.mark.parametrize("name", SAME)
def test_a_switch_trains_what_is_trained_without_it(losses, name):
    if name in NEEDED and not find_spec(NEEDED[name]):
        pytest.skip(f"needs {NEEDED[name]}")
    sets, plain, apart = SAME[name]
    seen, expected = losses(*sets), losses(*plain)
    print(max(abs(one - other) for one, other in zip(seen, expected, strict=True)), seen, expected)
    assert expected[-1] < expected[0]
    assert seen == pytest.approx(expected, abs=apart)


def test_a_gpu_trains_what_a_cpu_trains(losses, folder):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "sftrun", folder / "recipe.yaml", "--out", folder / "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    on_cpu = [event["loss"] for event in RunDir(folder / "cpu").events() if event["event"] == "step"]
    assert losses() == pytest.approx(on_cpu, abs=2e-3)


def test_killed_and_resumed_it_ends_the_same(folder):
    sets = [
        word for key in ("max_steps=60", "save_strategy=steps", "save_steps=10") for word in ("--set", f"train.{key}")
    ]
    words = [sys.executable, "-m", "sftrun"]

    def run(*more):
        return subprocess.Popen(
            [*words, *map(str, more)], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    whole = run("recipe.yaml", "--out", "whole", *sets)
    assert whole.wait() == 0, whole.stderr.read()
    first = run("recipe.yaml", "--out", "killed", *sets)
    wait_for((folder / "killed/checkpoints/checkpoint-10").exists)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = run("resume", "killed")
    assert again.wait() == 0, again.stderr.read()
    one, other = (load_file(RunDir(folder / name).model / "model.safetensors") for name in ("whole", "killed"))
    print({name: float((one[name] - other[name]).abs().max()) for name in one})
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-3)


def test_the_estimate_of_memory_is_near_what_a_training_takes(folder):
    words = [sys.executable, "-m", "sftrun", "plan", folder / "recipe.yaml", "--probe", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    print(plan)
    assert plan["peak"] == pytest.approx(plan["measured"]["peak"], rel=0.15)
