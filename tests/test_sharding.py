"""A model that is shared among processes, by FSDP2 or DeepSpeed's ZeRO, learns what it learns in one."""

import importlib.util
import json
import shutil

import pytest
import torch
from conftest import talk
from safetensors.torch import load_file

import sftrun as api

has_deepspeed = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not has_deepspeed, reason="needs deepspeed")

ROWS = [talk(f"Count to {number}!", " ".join(map(str, range(number % 23 + 1)))) for number in range(60)]
KEYS = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 96},
    "source": {"use": "jsonl", "with": {"path": "."}},
    "tuning": {"mode": "full"},
    "packing": {"strategy": "best-fit"},
    "train": {
        "max_steps": 4,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    },
}
STRATEGIES = {
    "fsdp": {"launch.strategy": "fsdp"},
    "zero-2": {"launch.strategy": "deepspeed", "launch.zero_stage": 2},
    "zero-3": {"launch.strategy": "deepspeed", "launch.zero_stage": 3},
}
SHARED = [
    "fsdp",
    pytest.param("zero-2", marks=[pytest.mark.slow, needs_deepspeed]),
    pytest.param("zero-3", marks=[pytest.mark.slow, needs_deepspeed]),
]
LORA = {"tuning.mode": "lora", "tuning.lora.init": "pissa", "train.keep_best": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the recipe with these changes, once."""
    folder = tmp_path_factory.mktemp("sharding")
    for split, rows in {"train": ROWS[:48], "val": ROWS[48:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(json.dumps(KEYS))
    made = {}

    def call(**sets):
        key = json.dumps(sets)
        if key not in made:
            overrides = [f"{name}={json.dumps(value)}" for name, value in sets.items()]
            made[key] = api.run(folder / "recipe.yaml", overrides, folder / f"run-{len(made)}")
        return made[key]

    return call


@pytest.fixture(scope="module")
def alone(run):
    """One process, whose batch is as large as those of two together."""
    return lambda **sets: run(**sets, **{"train.batch_size": 2})


@pytest.fixture(scope="module")
def shared(run):
    """Two processes that share the model."""
    two = {"train.batch_size": 1, "launch.processes": 2}
    return lambda name, **sets: run(**sets, **two, **STRATEGIES[name])


def curve(run, name):
    return [(event["step"], event["loss"]) for event in run.events() if event["event"] == name]


def logits(run):
    """What transformers, and peft for an adapter, compute from the folder `model` alone."""
    from sftrun.training.model.load import load_tuned

    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.inference_mode():
        return load_tuned(run.recipe(), run).eval()(input_ids=ids).logits


def same(run, other):
    for name in ("step", "eval"):
        assert [step for step, _ in curve(run, name)] == [step for step, _ in curve(other, name)]
        assert dict(curve(run, name)) == pytest.approx(dict(curve(other, name)), abs=1e-5)
    torch.testing.assert_close(logits(run), logits(other), rtol=0, atol=2e-5)
    files = [next(each.model.glob("*.safetensors")) for each in (run, other)]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()
    assert run.facts("train")["parameters"] == other.facts("train")["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_processes_that_share_a_model_learn_what_one_learns(name, alone, shared):
    """On packed rows, with activations computed twice: the check that sequences do not see each other ran too."""
    same(shared(name), alone())


@pytest.mark.parametrize("name", [pytest.param("fsdp", marks=pytest.mark.slow), *SHARED[1:]])
def test_an_adapter_on_a_shared_base_learns_what_it_learns_in_one_process(name, alone, shared):
    same(shared(name, **LORA), alone(**LORA))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_a_shared_model_goes_on_from_its_checkpoint_to_the_very_same_weights(name, shared, tmp_path):
    whole = shared(name)
    shutil.copytree(whole.path, tmp_path / "stopped")
    stopped = api.RunDir(tmp_path / "stopped")
    shutil.rmtree(stopped.checkpoints / "checkpoint-4")
    shutil.rmtree(stopped.model)
    stopped.stage("train", "interrupted")
    from sftrun.flow import resume

    resume(stopped.path)
    assert [event["step"] for event in stopped.events() if event["event"] == "resumed"] == [2]
    assert (stopped.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()


def test_each_process_writes_its_part_of_a_checkpoint(shared):
    files = shared("fsdp").read_json("checkpoints/checkpoint-4/whole.json")["files"]
    for part in ("weights", "optimizer"):
        sizes = [size for name, (size, _) in files.items() if name.startswith(f"{part}/__")]
        assert len(sizes) == 2
        assert max(sizes) < 1.5 * min(sizes)


def test_deepspeed_does_not_go_on_with_another_number_of_processes(shared):
    from sftrun.training import checkpoints
    from sftrun.training.sharding import apply

    start = checkpoints.complete_checkpoints(shared("fsdp").checkpoints)[0]
    apply.check_resume("fsdp", start)
    with pytest.raises(api.UserError, match="was written by 2 processes, and there are 1"):
        apply.check_resume("deepspeed", start)


@pytest.fixture
def process(tmp_path):
    """A group of one process, for what is asked of a model that is sharded."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def model():
    from transformers import AutoModelForCausalLM

    from sftrun.recipe.model import typed_recipe
    from sftrun.training.base_model import location

    recipe = typed_recipe({"model": {"name": "sftrun/tiny"}, "source": "jsonl"})
    return AutoModelForCausalLM.from_pretrained(location(recipe))


def test_a_model_that_is_not_sharded_is_refused(process, model):
    from sftrun.training.sharding import fsdp

    with pytest.raises(api.UserError, match=r"embed_tokens.weight is whole in each process"):
        fsdp.check_sharding(model)
    fsdp.shard(model, torch.device("cpu"), half=None)
    fsdp.check_sharding(model)
    model.model.norm.weight = torch.nn.Parameter(torch.ones(128))
    with pytest.raises(api.UserError, match=r"model.norm.weight is whole in each process"):
        fsdp.check_sharding(model)


def test_a_model_that_does_not_say_what_its_blocks_are_is_refused(process, model):
    from sftrun.training.sharding import fsdp

    model._no_split_modules = None
    with pytest.raises(api.UserError, match="does not name its blocks"):
        fsdp.shard(model, torch.device("cpu"), half=None)


@needs_deepspeed
def test_a_model_outside_the_engine_of_deepspeed_is_refused(process, model):
    from sftrun.training.sharding import deepspeed

    with pytest.raises(api.UserError, match="it is trained by Qwen3ForCausalLM"):
        deepspeed.check_sharding(model, 3)


FSDP, ZERO = STRATEGIES["fsdp"], STRATEGIES["zero-3"]
REFUSED = {
    "zero_stage is an option of DeepSpeed": {"launch.zero_stage": 2},
    "there is only one": {**FSDP, "launch.processes": 1},
    "fp16 does not work with deepspeed": {**ZERO, "train.precision": "fp16"},
    "adamw_8bit cannot compute with weights that fsdp has sharded": {**FSDP, "train.optimizer": "adamw_8bit"},
    "adafactor keeps means over rows and columns": {**ZERO, "train.optimizer": "adafactor"},
    "a base in 8 bits loses its scales": {**FSDP, "backend": "bnb"},
    "stored as fp32 are lost": {
        **FSDP,
        "backend": {"use": "bnb", "with": {"storage_dtype": "fp32"}},
        "tuning.mode": "qlora",
    },
    "which destroys 4-bit weights": {**ZERO, "backend": "bnb", "tuning.mode": "qlora"},
    "paged_adamw_32bit moves its state to the CPU": {**ZERO, "train.optimizer": "paged_adamw_32bit"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_strategy_cannot_do_is_said_by_validate(message, write, sftrun):
    sets = [word for key, value in REFUSED[message].items() for word in ("--set", f"{key}={json.dumps(value)}")]
    said = sftrun("validate", write(ROWS[:2]), *sets)
    assert said.code == 1
    assert message in said.err


def test_one_process_cannot_share_a_model():
    from sftrun.recipe.model import typed_recipe
    from sftrun.training.sharding import apply

    keys = {"model": {"name": "sftrun/tiny"}, "source": "jsonl", "launch": {"strategy": "fsdp"}}
    with pytest.raises(api.UserError, match="fsdp shares a model among processes, and there is only one"):
        apply.resolve_strategy(typed_recipe(keys))


def test_deepspeed_is_asked_for_before_a_run_starts(write, sftrun, tmp_path, monkeypatch):
    from sftrun import errors

    installed = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "deepspeed" else installed(name))
    sets = ["--set", "launch.strategy=deepspeed", "--set", "launch.processes=2"]
    said = sftrun(write(ROWS[:4]), *sets, "--out", tmp_path / "out")
    assert said.code == 1
    assert "pip install 'sftrun[deepspeed]'" in said.err
    assert not (tmp_path / "out").exists()
