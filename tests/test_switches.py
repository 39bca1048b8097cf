"""Switches for speed and memory: each one changes how a model is computed, or is refused with a reason."""

from importlib.util import find_spec

import pytest
import torch
import transformers
from conftest import talk
from safetensors.torch import load_file

from sftrun import UserError
from sftrun.events import encode
from sftrun.kinds import Training
from sftrun.recipe.validate import load
from sftrun.runs.directory import RunDir
from sftrun.training.model import switches

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(12)]
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def recipe(write):
    """A recipe of three steps, with overrides."""

    def made(*sets):
        train = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
        return load(write(ROWS, tuning={"mode": "full"}, train=train), list(sets))

    return made


@pytest.fixture
def train(recipe, tmp_path):
    """Trains; returns the events and the weights."""

    def run(name, *sets):
        from sftrun.flow import prepare
        from sftrun.training import train

        wanted, events = recipe(*sets), []
        made = prepare(tmp_path / "recipe.yaml", sets, tmp_path / name)
        train.train(Training(recipe=wanted, run=made, emit=events.append))
        return events, load_file(made.model / "model.safetensors"), made

    return run


def losses(events):
    return [event["loss"] for event in events if event["event"] == "step"]


def small(config, **more):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**SMALL, pad_token_id=0, **more))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("activation_offload=true", "from a GPU to the CPU's memory, and there is no GPU"),
        ("tf32=true", "tf32 is a number format of NVIDIA GPUs since Ampere, and there is none"),
        ("cross_entropy=liger", "the kernels of liger need a GPU, and there is none"),
        ("cross_entropy=cut-cross-entropy", "the kernels of cut-cross-entropy need a GPU"),
        ("attention=flash-attn", "flash-attn is not available: it needs a GPU, and there is none"),
        ("attention=flex", "flex attention trains on a GPU only"),
    ],
)
def test_what_needs_a_gpu_is_refused_before_a_model_is_loaded(recipe, setting, said, tmp_path):
    from sftrun.training import train

    with pytest.raises(UserError, match=said) as caught:
        train.train(Training(recipe=recipe(f"train.{setting}"), run=RunDir(tmp_path), emit=print))
    (problem,) = caught.value.problems
    assert problem.path == ("train", setting.split("=")[0])
    assert problem.hint


def test_all_that_cannot_be_had_is_said_at_once(recipe):
    with pytest.raises(UserError) as caught:
        switches.check_switches(recipe("train.tf32=true", "train.attention=flex", "train.activation_offload=true"))
    assert len(caught.value.problems) == 3


def test_tf32_where_almost_nothing_is_in_fp32_is_said(recipe, tmp_path):
    from sftrun.runs.directory import RunDir
    from sftrun.training import settings

    wanted = recipe("train.tf32=true", "train.precision=bf16", "train.eval_strategy=no")
    (said,) = settings.ineffective_options(wanted, RunDir(tmp_path), rows=1)
    assert "tf32 is for fp32 matrices, and almost all matrices are in bf16" in said


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ("cross_entropy=liger", "liger-kernel"),
        ("cross_entropy=cut-cross-entropy", "cut-cross-entropy"),
        ("attention=flash-attn", "flash-attn"),
    ],
)
def test_a_package_that_is_missing_is_named_before_the_run(recipe, sftrun, tmp_path, setting, package):
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    recipe()
    said = sftrun("run", tmp_path / "recipe.yaml", "--set", f"train.{setting}", "--out", tmp_path / "out")
    assert said.code == 1
    assert f"needs the package {package}, which is not installed" in said.err


@pytest.mark.parametrize("packed", ["none", "best-fit"])
@pytest.mark.parametrize("wanted", ["auto", "eager", "sdpa"])
def test_a_model_gets_the_attention_that_is_asked_for(recipe, wanted, packed):
    model, events = small("LlamaConfig"), []
    used = switches.apply_switches(
        model, recipe(f"train.attention={wanted}", f"packing.strategy={packed}"), events.append
    )
    ours = packed == "best-fit" and wanted != "eager"
    expected = "sftrun-packed" if ours else "eager" if wanted == "eager" else "sdpa"
    assert model.config._attn_implementation == expected
    assert used["attention"] == ("sdpa, sequence by sequence" if ours else expected)
    warned = [event for event in events if event["event"] == "warning"]
    assert bool(warned) == (packed == "best-fit" and wanted == "eager")


def test_an_attention_that_a_model_has_not_is_refused(recipe):
    model = small("BloomConfig")
    with pytest.raises(UserError, match="attention") as caught:
        switches.apply_switches(model, recipe("train.attention=sdpa"), print)
    assert caught.value.problems[0].path == ("train", "attention")


def test_what_was_used_is_said_and_stands_in_the_lock(train):
    events, weights, run = train("eager", "train.attention=eager")
    (used,) = (event for event in events if event["event"] == "using")
    assert (used["attention"], used["optimizer"], used["compiled"]) == ("eager", "adamw (fused)", "nothing")
    assert run.facts("train")["used"] == {key: value for key, value in encode(used).items() if key != "event"}
    other, same, _ = train("sdpa", "train.attention=sdpa")
    assert losses(events) == pytest.approx(losses(other), abs=1e-4)
    for name, each in weights.items():
        torch.testing.assert_close(same[name], each, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("packing", ["best-fit", "none"])
def test_compiled_layers_train_the_same_to_rounding(train, packing, checkpointing):
    import torch._dynamo
    from torch._dynamo.utils import counters

    more = (f"packing.strategy={packing}", "model.max_seq_len=64", f"train.gradient_checkpointing={checkpointing}")

    def graphs(name, *compiles):
        torch._dynamo.reset()
        counters.clear()
        events, _, run = train(name, *more, *compiles)
        return counters["stats"]["unique_graphs"], events, run

    before, plain, _ = graphs("plain")
    after, compiled, run = graphs("compiled", "train.compile=true")
    assert after > before  # more than what transformers compiles itself; layers of one class share a graph
    assert run.facts("train")["used"]["compiled"] == "2 layers"
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)


def test_a_model_without_layers_to_compile_is_refused(recipe):
    with pytest.raises(UserError, match="nothing to compile"):
        switches._compile(torch.nn.Linear(2, 2), False)


@pytest.mark.parametrize("key", ["attention", "compile"])
def test_a_run_may_go_on_with_another_switch_and_it_is_said(recipe, tmp_path, key):
    from sftrun.flow import STAGES, prepare
    from sftrun.runs import resume

    recipe()
    run = prepare(tmp_path / "recipe.yaml", (), tmp_path / "run")
    value = {"attention": "eager", "compile": "true"}[key]
    changed = load(tmp_path / "recipe.yaml", [f"train.{key}={value}"])
    assert f"train.{key} changed" in resume.reconcile(changed, run, 1, STAGES)[0]
