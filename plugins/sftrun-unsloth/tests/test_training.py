"""The backend and the exporter on unsloth itself: on its CPU backend, and on a GPU if there is one."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import sftrun
import sftrun.data

pytestmark = pytest.mark.unsloth

LORA = ["tuning.mode=lora", "train.learning_rate=2e-3"]
QLORA = [*LORA, "tuning.mode=qlora"]


def prepared(recipe: Path, out: Path, *settings: str) -> sftrun.RunDir:
    return sftrun.prepare(recipe, settings, out)


def training(run, emit=lambda event: None, recipe=None):
    return sftrun.kinds.Training(recipe=recipe or run.recipe(), run=run, emit=emit)


def trained(recipe: Path, out: Path, *settings: str) -> tuple[sftrun.RunDir, list]:
    """A run trained in this process, and its events."""
    run = prepared(recipe, out, *settings)
    events: list = []
    sftrun.create("backend", run.recipe().backend).train(training(run, events.append))
    return run, events


def loaded(recipe: Path, run: sftrun.RunDir, *settings: str, which="tuned"):
    described = sftrun.load(recipe, settings)
    work = sftrun.kinds.Loading(recipe=described, run=run, which=which)
    return sftrun.create("backend", described.backend).load(work)


def losses(events):
    return [event["loss"] for event in events if event["event"] == "step"]


def last(events, kind):
    return [event for event in events if event["event"] == kind][-1]


def proved(events):
    """Returns the data of the event with which the backend proves its loss."""
    return next(event["data"] for event in events if event["event"] == "custom" and event["name"] == "proved")


@pytest.fixture(scope="module")
def full(recipe, tmp_path_factory):
    return trained(recipe, tmp_path_factory.mktemp("full") / "run")


@pytest.fixture(scope="module")
def base(full):
    """A setting: start from the model that full tuning has left."""
    return f"model.name={full[0].model}"


@pytest.fixture(scope="module")
def lora(recipe, base, tmp_path_factory):
    return trained(recipe, tmp_path_factory.mktemp("lora") / "run", base, *LORA)


@pytest.fixture(scope="module")
def qlora(recipe, base, tmp_path_factory):
    return trained(recipe, tmp_path_factory.mktemp("four") / "run", base, *QLORA)


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_the_loss_falls_and_every_token_is_counted(mode, request):
    run, events = request.getfixturevalue(mode)
    found = losses(events)
    assert len(found) == 12
    assert sum(found[5:10]) < sum(found[:5])  # an epoch has five steps
    stats = run.read_json("prepared/stats.json")["train"]
    done = last(events, "step")  # 12 steps of 8 of 40 rows
    assert 2 * stats["tokens"] < done["tokens"] < 3 * stats["tokens"]
    assert done["trained_tokens"] / done["tokens"] == pytest.approx(stats["trained_tokens"] / stats["tokens"], rel=0.05)


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_the_loss_that_is_trained_on_is_that_of_the_trained_tokens(mode, request):
    """unsloth's patched loss, against the cross-entropy of the trained positions' logits."""
    _, events = request.getfixturevalue(mode)
    proof = proved(events)
    assert proof["loss"] == pytest.approx(proof["expected"], rel=1e-4)
    assert losses(events)[0] == pytest.approx(proof["expected"], rel=1e-3)


def test_a_loss_of_other_tokens_stops_the_run(recipe, full, tmp_path):
    from sftrun_unsloth import _model, _train

    described = sftrun.load(recipe)
    trainer = _train.make_trainer(_model.load_base(described), training(full[0], print, described))
    honest = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **more: honest(model, inputs | {"labels": inputs["input_ids"]}, **more)
    with pytest.raises(sftrun.UserError, match="unsloth would not train on this mask"):
        trainer.keeper.train(trainer)


def test_prepared_ids_and_labels_reach_the_model_untouched(recipe, full, tmp_path):
    """Caught at the model's own door in a real epoch, against what the file says."""
    from sftrun_unsloth import _model, _train

    run, _ = full
    described = sftrun.load(recipe, ["train.epochs=1", "train.eval_strategy=no"])
    model = _model.load_base(described)
    trainer = _train.make_trainer(model, training(run, recipe=described))
    trainer.proved = True
    seen = Counter()

    def catch(module, args, given):
        for ids, labels, mask in zip(given["input_ids"], given["labels"], given["attention_mask"], strict=True):
            size = int(mask.sum())
            assert mask[:size].all()
            assert (labels[size:] == -100).all()
            seen[tuple(ids[:size].tolist()), tuple((labels[:size] != -100).int().tolist())] += 1
            assert all(label in (-100, number) for label, number in zip(labels.tolist(), ids.tolist(), strict=True))

    model.register_forward_pre_hook(catch, with_kwargs=True)
    trainer.keeper.train(trainer)
    file = sftrun.data.Samples(run.prepared / "train.arrow")
    assert seen == Counter((tuple(sample.ids), tuple(sample.trained)) for sample in file)


def test_a_masked_token_has_exactly_no_gradient(recipe, full):
    """The gradient at the last hidden states: not zero where a trained token is predicted, zero everywhere else."""
    from sftrun_unsloth import _model, _train

    run, _ = full
    described = sftrun.load(recipe)
    model = _model.load_base(described).train()
    trainer = _train.make_trainer(model, training(run, print, described))
    batch = next(iter(trainer.get_train_dataloader()))
    kept = []
    model.model.norm.register_forward_hook(lambda module, given, out: (out.retain_grad(), kept.append(out))[1])
    trainer.compute_loss(model, dict(batch), num_items_in_batch=None).backward()
    (hidden,) = kept
    predicts = (batch["labels"][:, 1:] != -100).to(hidden.device)
    assert (hidden.grad[:, :-1][predicts].abs().sum(-1) > 0).all()
    assert (hidden.grad[:, :-1][~predicts] == 0).all()
    assert (hidden.grad[:, -1] == 0).all()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(recipe, base, lora, tmp_path):
    again, events = trained(recipe, tmp_path / "again", base, *LORA)
    other, _ = trained(recipe, tmp_path / "other", base, *LORA, "seed=1")
    assert losses(events) == losses(lora[1])
    weights = [(run.model / "adapter_model.safetensors").read_bytes() for run in (lora[0], again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_the_loss_does_not_depend_on_how_a_step_is_split(recipe, base, lora, tmp_path):
    _, split = trained(recipe, tmp_path / "run", base, *LORA, "train.batch_size=2", "train.grad_accum=4")
    assert losses(split) == pytest.approx(losses(lora[1]), rel=1e-4)


@pytest.mark.parametrize(
    ("mode", "settings"), [("full", []), ("lora", LORA), ("qlora", QLORA)], ids=["full", "lora", "qlora"]
)
def test_a_saved_model_says_after_loading_what_it_said_before(mode, settings, recipe, base, request):
    run, events = request.getfixturevalue(mode)
    settings = settings if mode == "full" else [base, *settings]
    sums = loaded(recipe, run, *settings).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(last(events, "eval")["loss"], rel=1e-6)
    before = loaded(recipe, run, *settings, which="base").losses("val")
    assert before.loss != sums.loss


def test_logits_are_the_same_after_saving_and_loading(recipe, base, tmp_path):
    import torch
    from sftrun_unsloth import _model, _train

    from sftrun.training import saved

    settings = [base, *LORA, "train.max_steps=3"]
    run = prepared(recipe, tmp_path / "run", *settings)
    described = sftrun.load(recipe, settings)
    model = _train.adapted(_model.load_base(described), described)
    trainer = _train.make_trainer(model, training(run, recipe=described))
    trainer.keeper.train(trainer)
    saved.save(trainer.model, trainer.model.save_pretrained, described, run)
    ids = torch.tensor([sftrun.data.Samples(run.prepared / "train.arrow")[0].ids])
    with torch.no_grad():
        said = [one(input_ids=ids).logits for one in (trainer.model.eval(), loaded(recipe, run, *settings).model)]
    assert torch.equal(*said)


def test_qloras_are_qloras(recipe, base, qlora, lora):
    model = loaded(recipe, qlora[0], base, *QLORA).model
    quantized = [module for module in model.modules() if type(module).__module__.startswith("bitsandbytes")]
    assert len(quantized) == 14  # seven in each of two layers
    assert losses(qlora[1]) != losses(lora[1])


def test_the_run_records_what_has_trained(lora):
    facts = lora[0].facts("train")
    assert facts["backend"] == {"asked": "unsloth", "used": "unsloth", "reasons": []}
    assert facts["parameters"]["trained"] < facts["parameters"]["all"] / 3
    assert set(facts["unsloth"]) == {"unsloth", "unsloth_zoo"}


def test_answers_do_not_depend_on_the_batch(recipe, base, lora):
    model = loaded(recipe, lora[0], base, *LORA)
    lines = (lora[0].prepared / "prompts-test.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["ids"] for line in lines]
    one, four = (sftrun.types.Decoding(max_new_tokens=8, batch_size=size) for size in (1, 4))
    answers = model.generate(prompts, one)
    assert model.generate(prompts, four) == answers
    assert all(len(answer) <= 8 for answer in answers)
    assert any(model.decode(answer).strip() for answer in answers)


def test_early_stopping_leaves_the_weights_of_the_lowest_loss(recipe, base, tmp_path):
    """With a learning rate that harms, the loss rises from the first evaluation to the second."""
    also = [
        base,
        *LORA,
        "train.learning_rate=0.05",
        "train.warmup=6",
        "train.eval_strategy=steps",
        "train.eval_steps=2",
    ]
    settings = [*also, "train.early_stopping={patience: 1}", "train.save_strategy=epoch"]
    run, events = trained(recipe, tmp_path / "run", *settings)
    found = {event["step"]: event["loss"] for event in events if event["event"] == "eval"}
    lowest = min(found, key=found.get)
    assert last(events, "stopped_early")["best_step"] == last(events, "best")["step"] == lowest
    assert list(found) == [2, 4]
    sums = loaded(recipe, run, *settings).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(found[lowest], rel=1e-6)


def test_the_best_weights_are_kept_where_the_recipe_says(recipe, tmp_path):
    run, events = trained(recipe, tmp_path / "run", "train.keep_best=true", "train.save_strategy=epoch")
    best = last(events, "best")
    assert best["loss"] == min(event["loss"] for event in events if event["event"] == "eval")
    sums = loaded(recipe, run).losses("val")
    assert sums.loss / sums.tokens == pytest.approx(best["loss"], rel=1e-6)


def test_an_adapter_of_modules_that_are_not_there_is_refused(recipe, tmp_path):
    settings = ["tuning.mode=lora", "tuning.lora.target_modules=[q_prjo]"]
    with pytest.raises(sftrun.UserError, match="unsloth cannot make this adapter"):
        trained(recipe, tmp_path / "run", *settings)


def test_an_adapter_refuses_a_base_that_has_changed(recipe, base, lora, full):
    from safetensors.torch import load_file, save_file

    weights = full[0].model / "model.safetensors"
    kept = weights.read_bytes()
    changed = load_file(weights)
    changed["model.norm.weight"] += 1
    save_file(changed, weights, metadata={"format": "pt"})
    try:
        with pytest.raises(sftrun.UserError, match="does not match its base"):
            loaded(recipe, lora[0], base, *LORA)
    finally:
        weights.write_bytes(kept)


def test_an_adapter_is_no_base(recipe, lora, tmp_path):
    with pytest.raises(sftrun.UserError, match="holds an adapter, not a whole model"):
        trained(recipe, tmp_path / "run", f"model.name={lora[0].model}")


def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path):
    with pytest.raises(sftrun.UserError, match=r"the loss is (nan|inf) at step \d+; there is no checkpoint yet"):
        trained(recipe, tmp_path / "run", "train.learning_rate=1e30", "train.max_grad_norm=0")
    assert not (tmp_path / "run/model").exists()


def test_the_whole_flow_with_a_merge_in_worker_processes(recipe, base, tmp_path):
    settings = [base, *LORA, "evaluators=[loss]", "exporters=[unsloth-merged, merged]", "train.save_strategy=epoch"]
    run = sftrun.run(recipe, settings, out=tmp_path / "run")
    facts = run.read_json("export/facts.json")
    assert facts["unsloth-merged"]["same_argmax_rows"] == facts["unsloth-merged"]["rows"] == 8
    assert facts["unsloth-merged"]["max_difference"] < 0.05  # 16-bit weights
    assert facts["merged"]["max_difference"] < 1e-4  # transformers and peft alone read the adapter too
    assert (run.export / "unsloth-merged/chat_template.jinja").is_file()
    scores = run.read_json("eval/scores.json")
    assert scores["tuned"]["loss"]["test_loss"] != scores["base"]["loss"]["test_loss"]
    assert [event["step"] for event in run.events() if event["event"] == "checkpoint"] == [5, 10, 12]
    assert not list(Path.cwd().glob("unsloth_compiled_cache"))


def test_a_merge_that_says_something_else_is_refused(recipe, base, lora):
    described = sftrun.load(recipe, [base, *LORA, "exporters=[unsloth-merged]"])
    strict = sftrun.create("exporter", sftrun.Use(use="unsloth-merged", with_={"max_difference": 1e-12}))
    with pytest.raises(sftrun.UserError, match="differs from the adapter by"):
        strict.export(sftrun.kinds.Exporting(recipe=described, run=lora[0], emit=print))
    assert not list(lora[0].export.iterdir())


def test_a_merge_into_4_bits_without_a_gpu_is_refused_before_training(recipe, base):
    from sftrun.runs.preflight import check_machine

    described = sftrun.load(recipe, [base, *QLORA, "exporters=[unsloth-merged]"])
    with pytest.raises(sftrun.UserError, match="4-bit base on a GPU only"):
        check_machine(described)


def test_the_exporter_merged_finds_the_4_bits_again(recipe, base, qlora):
    """It merges into what 4 bits stand for, with transformers and peft alone."""
    settings = [base, *QLORA, "exporters=[merged]"]
    described = sftrun.load(recipe, settings)
    run, events = qlora
    facts = sftrun.create("exporter", "merged").export(sftrun.kinds.Exporting(recipe=described, run=run, emit=print))
    assert facts["max_difference"] < 1e-3
    assert facts["base"] == "dequantised from 4 bits"
    merged = [f"model.name={run.export}/merged", "tuning.mode=lora"]
    sums = loaded(recipe, run, *merged, which="base").losses("val")
    assert sums.loss / sums.tokens == pytest.approx(last(events, "eval")["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("missing", "settings", "said"),
    [
        ("UNSLOTH_CPU_BF16", ["train.precision=bf16"], "unsloth does not train in bf16 on this machine"),
        ("UNSLOTH_CPU_LOAD_IN_4BIT", ["tuning.mode=qlora"], "not as asked"),
    ],
)
def test_what_unsloth_would_silently_replace_is_refused(missing, settings, said, recipe, monkeypatch):
    monkeypatch.setenv(missing, "0")  # as on a machine that does not have it
    with pytest.raises(sftrun.UserError, match=said):
        sftrun.run(recipe, settings, out=recipe.parent / missing)


def test_its_recipe_runs(tmp_path):
    recipe = Path(__file__).parent.parent / "recipes" / "chat.yaml"
    run = sftrun.run(recipe, ["train.max_steps=20", "evaluators=[]"], out=tmp_path / "run")
    found = losses(run.events())
    assert found[-1] < found[0]


def test_it_refuses_to_come_after_transformers():
    code = "import transformers, sftrun_unsloth._first"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "unsloth must be imported before transformers" in done.stderr


def test_it_never_installs_system_packages():
    from sftrun_unsloth import _first  # noqa: F401
    from unsloth_zoo.llama_cpp import install_package

    with pytest.raises(RuntimeError, match="UNSLOTH_AUTO_INSTALL=0"):
        install_package("cmake", sudo=False)


SETTINGS = {
    "train.epochs": 1,
    "train.max_steps": 3,
    "train.learning_rate": 1e-3,
    "train.scheduler": "linear",
    "train.warmup": 0.5,
    "train.weight_decay": 0.1,
    "train.batch_size": 2,
    "train.eval_batch_size": 3,
    "train.grad_accum": 2,
    "train.max_grad_norm": 0.5,
    "train.gradient_checkpointing": True,
    "train.optimizer": "adafactor",
    "train.adam_beta1": 0.8,
    "train.adam_beta2": 0.95,
    "train.adam_epsilon": 1e-6,
    "train.eval_strategy": "no",
    "train.eval_steps": 5,
    "train.save_strategy": "epoch",
    "train.save_steps": 5,
    "train.save_total_limit": 1,
    "train.logging_steps": 3,
    "train.dataloader_workers": 1,
    "train.dataloader_prefetch": 4,
    "seed": 7,
}
NEEDED = {
    "train.dataloader_prefetch": ["train.dataloader_workers=1"],
    "train.eval_steps": ["train.eval_strategy=steps", "train.eval_steps=9"],
    "train.save_steps": ["train.save_strategy=steps", "train.save_steps=9"],
}


def test_every_setting_of_the_recipe_has_a_case():
    from sftrun_unsloth._limits import HONOURS

    above = {f"train.{name}" for name in ("precision", "early_stopping", "keep_best", "group_by_length")}
    of_the_core = {"train.batch_size", "seed"}
    assert {key for key in HONOURS if key.startswith("train.")} == above | (SETTINGS.keys() - of_the_core)


@pytest.mark.parametrize("leaf", SETTINGS)
def test_every_setting_reaches_the_trainer(leaf, recipe, full):
    from sftrun_unsloth import _train

    settings = ["train.max_steps=null", *NEEDED.get(leaf, [])]
    value = json.dumps(SETTINGS[leaf]).strip('"')
    before, after = (sftrun.load(recipe, [*settings, *more]) for more in ([], [f"{leaf}={value}"]))
    one, two = (_train.arguments(each, full[0], 40).to_dict() for each in (before, after))
    assert one != two


def test_rows_of_similar_lengths_share_a_batch_where_the_recipe_says(recipe, full):
    from sftrun_unsloth import _model, _train

    orders = []
    for setting in ("true", "false"):
        described = sftrun.load(recipe, [f"train.group_by_length={setting}"])
        trainer = _train.make_trainer(_model.load_base(described), training(full[0], print, described))
        orders.append(list(trainer._get_train_sampler()))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))


@pytest.mark.parametrize(("leaf", "value"), [("r", 4), ("alpha", 8), ("dropout", 0.1), ("target_modules", ["q_proj"])])
def test_every_setting_of_the_adapter_reaches_it(leaf, value, recipe):
    from sftrun_unsloth import _model, _train

    found = []
    for settings in ([], [f"tuning.lora.{leaf}={json.dumps(value)}"]):
        described = sftrun.load(recipe, ["tuning.mode=lora", *settings])
        model = _train.adapted(_model.load_base(described), described)
        found.append(repr(model.peft_config["default"].to_dict()))
    assert found[0] != found[1]


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [LORA, QLORA, ["tuning.mode=full"]], ids=["lora", "qlora", "full"])
def test_on_a_gpu_it_trains_evaluates_and_merges(settings, recipe, tmp_path):
    exporters = [] if settings == ["tuning.mode=full"] else ["exporters=[unsloth-merged]"]
    run = sftrun.run(recipe, [*settings, "evaluators=[loss]", *exporters], out=tmp_path / "run")
    found = losses(run.events())
    assert sum(found[-3:]) < sum(found[:3])
    proof = proved(run.events())
    assert math.isclose(proof["loss"], proof["expected"], rel_tol=2e-2)
    saved = run.read_json("eval/scores.json")["tuned"]["loss"]["val_loss"]
    assert saved == pytest.approx(last(run.events(), "eval")["loss"], rel=1e-2)
