"""Adapters of the LoRA family: each form of them is saved, loaded and merged without changing what the model says."""

import json
import shutil

import pytest
import torch
from conftest import talk

import sftrun as api
from sftrun import tiny
from sftrun.flow import prepare
from sftrun.kinds import Exporting, Loading, Training

ROWS = [talk(f"What comes after {number}?", str(number + 1)) for number in range(40)]
IDS = torch.randint(0, 700, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Makes a run directory with prepared rows for a recipe with these keys: `prepared(folder, **{"seed": 4})`."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(name="sftrun/tiny", **sets):
        keys = {
            "model": {"name": str(name), "max_seq_len": 64},
            "source": {"use": "jsonl", "with": {"path": "train.jsonl", "val_share": 0.2}},
            "train": {"max_steps": 6, "batch_size": 8, "learning_rate": 0.01, "save_strategy": "no"},
        }
        (folder / "recipe.yaml").write_text(json.dumps(keys))
        overrides = [f"{key}={json.dumps(value)}" for key, value in sets.items()]
        out = folder / f"run-{len(list(folder.iterdir()))}"
        return prepare(folder / "recipe.yaml", overrides, out)

    return make


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Model folders whose input and output embeddings are one matrix, `tied`, or two, `untied`."""
    from transformers import AutoModelForCausalLM

    folders = {name: tmp_path_factory.mktemp(name) for name in ("tied", "untied")}
    for folder in folders.values():
        tiny.save(folder, seed=0)
    model = AutoModelForCausalLM.from_pretrained(folders["untied"], tie_word_embeddings=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folders["untied"])
    return folders


def recipe_of(run):
    return run.recipe()


def train(run):
    """Trains in this process and returns the events."""
    events, recipe = [], recipe_of(run)
    api.create("backend", recipe.backend).train(Training(recipe=recipe, run=run, emit=events.append))
    return events


def losses(events):
    return [event["loss"] for event in events if event["event"] == "step"]


def load(run, which="tuned"):
    return api.create("backend", recipe_of(run).backend).load(Loading(recipe=recipe_of(run), run=run, which=which))


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model.eval()(input_ids=ids, use_cache=False).logits.float()


def attached(run):
    """An adapter on the base of a recipe, before training."""
    from sftrun.training.model import adapter, load

    recipe = recipe_of(run)
    return adapter.attach(load.load_base(recipe), recipe, run, lambda event: None)


FORMS = {
    "plain": {"tuning.lora.r": 4},
    "rank-stabilised": {"tuning.lora.rslora": True, "tuning.lora.r": 32},
    "dora": {"tuning.lora.dora": True},
    "dora-pissa": {"tuning.lora.dora": True, "tuning.lora.init": "pissa"},
    "gaussian": {"tuning.lora.init": "gaussian"},
    "pissa": {"tuning.lora.init": "pissa", "tuning.lora.r": 4, "tuning.lora.alpha": 12},
    "pissa-rslora": {"tuning.lora.init": "pissa", "tuning.lora.rslora": True},
    "olora": {"tuning.lora.init": "olora"},
    "some-modules": {"tuning.lora.target_modules": ["q_proj", "layers.1.mlp.down_proj"]},
    "chosen-by-peft": {"tuning.lora.target_modules": "auto"},
    "embedding-adapted": {"tuning.lora.target_modules": ["embed_tokens", "v_proj"]},
    "with-a-linear-one": {"tuning.lora.modules_to_save": ["down_proj"]},
    "with-norm": {"tuning.lora.modules_to_save": ["norm"]},
    "with-head": {"tuning.lora.modules_to_save": ["lm_head"]},
    "with-embeddings": {"tuning.lora.modules_to_save": ["embed_tokens", "lm_head"]},
    "pissa-with-embeddings": {"tuning.lora.init": "pissa", "tuning.lora.modules_to_save": ["embed_tokens"]},
}


EITHER = ("with-head", "with-embeddings", "pissa-with-embeddings")
CASES = [(form, "untied" if form == "embedding-adapted" else "tied") for form in FORMS] + [
    (f, "untied") for f in EITHER
]


@pytest.mark.parametrize(("form", "base"), CASES)
def test_what_is_saved_says_after_loading_what_training_said_last_and_so_does_its_merge(form, base, prepared, bases):
    run = prepared(bases[base], **FORMS[form], **{"train.eval_strategy": "epoch"})
    events = train(run)
    last = [event["loss"] for event in events if event["event"] == "eval"][-1]
    sums = load(run).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(last, abs=1e-5)
    facts = api.create("exporter", "merged").export(Exporting(recipe=recipe_of(run), run=run, emit=events.append))
    assert facts["max_difference"] < 1e-4
    assert merged_logits(run) == pytest.approx(logits(load(run).model).numpy(), abs=1e-4)
    config = json.loads((run.export / "merged/config.json").read_text())
    assert config["tie_word_embeddings"] is (base == "tied")


def merged_logits(run):
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(run.export / "merged")).numpy()


@pytest.mark.parametrize("form", ["dora", "pissa", "with-embeddings"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_on_the_same_adapter(form, prepared, bases):
    """PiSSA takes its start out of the base again, and finds the same."""
    sets = {"train.save_strategy": "steps", "train.save_steps": 2, "train.save_total_limit": None}
    run = prepared(bases["tied"], **FORMS[form], **sets)
    train(run)
    whole = (run.model / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-6")
    assert any(event["event"] == "resumed" and event["step"] == 4 for event in train(run))
    assert (run.model / "adapter_model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("form", ["plain", "dora", "pissa", "olora", "with-norm"])
def test_logits_before_saving_and_after_loading_are_equal(form, prepared, bases):
    """The adapter is moved as training would, and saved; the base that it meets again is the untouched one."""
    from sftrun.training import base_model
    from sftrun.training.model import load

    base = bases["tied"]
    run = prepared(base, **FORMS[form])
    adapter = attached(run)
    for weight in adapter.model.parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    before = logits(adapter.model)
    adapter.save(run.model)
    run.write_json("model/base.json", {"weights": base_model.weights_hash(str(base))})
    after = logits(load.load_tuned(recipe_of(run), run))
    assert (before - logits(load.load_base(recipe_of(run)))).abs().max() > 0.01
    assert (before - after).abs().max() < 1e-5


@pytest.mark.parametrize("init", ["default", "gaussian", "pissa", "olora"])
def test_every_start_leaves_the_model_as_it_was(init, prepared):
    run = prepared(**{"tuning.lora.init": init})
    changed = (logits(attached(run).model) - logits(load(run, "base").model)).abs().max()
    assert changed < 1e-5


def test_rslora_scales_by_the_root_of_the_rank(prepared):
    from peft.tuners.lora import LoraLayer

    def scale(**sets):
        model = attached(prepared(**{"tuning.lora.r": 16, "tuning.lora.alpha": 32, **sets})).model
        return next(module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer))

    assert (scale(), scale(**{"tuning.lora.rslora": True})) == (2, 8)


WRONG = {
    ("target_modules", "q_prj"): "the model has no module q_prj; did you mean 'q_proj'? there are: down_proj, embed",
    ("target_modules", "self_attn"): "self_attn is no linear layer, so it can have no adapter; there are: down_proj",
    ("target_modules", "embed_tokens"): "embed_tokens is also the head in this model, and an adapter would change only",
    ("modules_to_save", "lm_haed"): "the model has no module lm_haed; did you mean 'lm_head'?",
}


@pytest.mark.parametrize(("option", "name"), WRONG)
def test_a_module_that_the_model_does_not_have_is_an_error_with_its_likely_name(option, name, prepared):
    run = prepared(**{f"tuning.lora.{option}": ["v_proj" if option == "target_modules" else "norm", name]})
    with pytest.raises(api.UserError) as caught:
        train(run)
    (problem,) = caught.value.problems
    assert problem.path == ("tuning", "lora", option, 1)
    assert f"{problem.message}; {problem.hint}".startswith(WRONG[option, name])


REFUSED = {
    "trained in full, so there is": {"target_modules": ["norm", "q_proj"], "modules_to_save": ["q_proj"]},
    "cannot hold lm_head": {"target_modules": ["lm_head"]},
    "at least one module": {"target_modules": []},
    "dora measures": {"dora": True, "init": "loftq"},
    "the backend hf loses nothing": {"init": "loftq"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_go_together_is_said_before_anything_runs(reason, write):
    problems = api.validate(write(ROWS, tuning={"mode": "lora", "lora": REFUSED[reason]}))
    assert any(reason in problem.message for problem in problems)


@pytest.fixture(scope="module", params=["tied", "untied"])
def extended(request, bases):
    """The base with a tokenizer of two more tokens, one of which its chat template writes."""
    from tokenizers import Tokenizer

    base = bases[request.param]
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|note|>", "<|spare|>"])
    folder = base.parent / f"{base.name}-extended"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer.save(str(folder / "tokenizer.json"))
    template = folder / "chat_template.jinja"
    template.write_text("<|note|>" + template.read_text())
    return folder


@pytest.mark.parametrize("form", ["plain", "pissa", "with-head", "with-embeddings", "full"])
def test_tokens_that_the_model_does_not_know_are_trained_and_saved(form, prepared, extended):
    rows = tiny.ARCHITECTURE["vocab_size"]
    sets = {"tuning.mode": "full"} if form == "full" else FORMS[form]
    run = prepared(extended, **sets, **{"train.eval_strategy": "epoch"})
    events = train(run)
    said = [event["message"] for event in events if event["event"] == "warning"]
    told = any("has no trained embedding for <|note|>, <|spare|>: trained" in message for message in said)
    tied = extended.name.startswith("tied")
    assert told is (form in ("plain", "pissa") or (form == "with-head" and not tied))
    before, after = (load(run, which).model.get_input_embeddings() for which in ("base", "tuned"))
    before, after = (layer(torch.arange(rows + 2)).detach() for layer in (before, after))
    assert len(before) == rows + 2
    assert not torch.equal(before[rows], after[rows])
    assert torch.equal(before[:rows], after[:rows]) is told
    last = [event["loss"] for event in events if event["event"] == "eval"][-1]
    sums = load(run).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(last, abs=1e-5)
    if form != "full":
        assert (
            api.create("exporter", "merged").export(Exporting(recipe=recipe_of(run), run=run, emit=print))[
                "max_difference"
            ]
            < 1e-4
        )


def test_a_special_token_whose_embedding_is_empty_is_trained(prepared, bases, tmp_path):
    """As the reserved tokens of base models are."""
    from safetensors.torch import load_file, save_file

    for file in bases["tied"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][tiny.END_OF_TURN] = 0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    run = prepared(tmp_path)
    said = [event["message"] for event in train(run) if event["event"] == "warning"]
    assert any("has no trained embedding for <|im_end|>: trained" in message for message in said)
    assert load(run).model.get_input_embeddings()(torch.tensor([tiny.END_OF_TURN])).any()


def stepped(base_dtype, ours, **more):
    """Loss, gradients and bytes kept for the backward pass of an adapter under bf16, with peft's casts or without."""
    import peft
    import transformers

    from sftrun.training.model import adapter

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(vocab_size=700, **sizes), dtype=base_dtype
    )
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **more))
    adapter.cast_trained_to_fp32(model)
    if ours:
        adapter.disable_input_casts(model)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each), torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return (
        loss,
        {name: each.grad for name, each in model.named_parameters() if each.grad is not None},
        sum(kept.values()),
    )


def test_in_16_bits_an_adapter_learns_the_same_without_copies_of_its_input_in_32():
    loss, slopes, kept = stepped(torch.bfloat16, ours=False)
    same, others, less = stepped(torch.bfloat16, ours=True)
    assert torch.equal(loss, same)
    assert all(torch.equal(slopes[name], others[name]) for name in slopes)
    assert less < kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_that_is_trained_is_held_in_fp32(dtype):
    _, slopes, _ = stepped(dtype, ours=True, modules_to_save=["lm_head"])
    assert any("lm_head" in name for name in slopes)
    assert {each.dtype for each in slopes.values()} == {torch.float32}
