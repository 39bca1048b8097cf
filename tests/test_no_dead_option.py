"""Every leaf of every schema changes what runs: a case for each, and a failure for a leaf without one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import talk

from sftrun.hookspecs import KINDS
from sftrun.options import Use, parse, schema
from sftrun.recipe.model import Recipe, typed_recipe
from sftrun.registry import current
from sftrun.runs.directory import RunDir
from sftrun.testing import examples

pytestmark = pytest.mark.older


def leaves(node: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        if "properties" in child and "x-component" not in child:
            yield from leaves(child, where)
        else:
            yield where


CORE = list(leaves(schema(Recipe)))
OPTIONS = [
    f"{kind} {name}: {leaf}"
    for kind in KINDS
    for name, item in sorted(current().components[kind].items())
    if item.distribution == "sftrun"
    for leaf in leaves(item.schema())
]

# What changes: the trainer's settings, the adapter, what is prepared, what stands in the report, …
TRAINER = {
    "seed": 7,
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
    "train.precision": "bf16",
    "train.activation_offload": True,
    "train.optimizer": "adafactor",
    "train.adam_beta1": 0.8,
    "train.adam_beta2": 0.95,
    "train.adam_epsilon": 1e-6,
    "train.eval_strategy": "no",
    "train.eval_steps": 5,
    "train.save_strategy": "no",
    "train.save_steps": 5,
    "train.save_total_limit": 1,
    "train.logging_steps": 3,
    "train.dataloader_workers": 1,
    "train.dataloader_prefetch": 4,
}
ADAPTER = {
    "tuning.mode": "full",
    "tuning.lora.r": 4,
    "tuning.lora.alpha": 8,
    "tuning.lora.dropout": 0.1,
    "tuning.lora.target_modules": ["q_proj"],
    "tuning.lora.modules_to_save": ["norm"],
    "tuning.lora.rslora": True,
    "tuning.lora.dora": True,
    "tuning.lora.init": "pissa",
}
PREPARED = {
    "model.max_seq_len": 40,
    "model.chat_template": "marked.jinja",
    "model.eot_token": "<|endoftext|>",
    "data.on_bad_row": "skip",
    "data.on_too_long": "truncate",
    "data.max_lost": 0,
    "expect_mask": "0" * 64,
    "transforms": [{"use": "style", "with": {"prompt": "Be kind."}}],
    "formatter": {"use": "chat", "with": {"fields": {"user": "q", "assistant": "a"}}},
    "source jsonl: path": "other",
    "source jsonl: val_share": 0.5,
    "transform style: prompt": "Be brief.",
    "transform style: where": "missing",
    "formatter chat: fields.system": "s",
    "formatter chat: fields.user": "q",
    "formatter chat: fields.assistant": "a",
}
ELSEWHERE = {
    "model.space_to_answer": "test_borders.py: the space at the end of a prompt is trained with the answer",
    "data.crosscheck": "test_crosscheck.py: a difference is a warning, or stops the run",
    "description": "test_report.py: it heads the report",
    "extends": "test_recipe_load.py: another file is merged in",
    "source": "test_plugin_example.py and PREPARED: rows come from what it names",
    "masker": "test_plugin_example.py: another masker trains other spans",
    "packing.strategy": "test_packing.py: rows share sequences",
    "train.early_stopping": "test_resume.py: training stops when the validation loss no longer falls",
    "train.keep_best": "test_resume.py: the model is the best checkpoint, or the last",
    "train.effective_batch_size": "test_memory.py: it says which batches are chosen, and contradicts others",
    "train.on_oom": "test_memory.py: where memory runs out, training stops or goes on with smaller batches",
    "train.group_by_length": "test_packing.py: rows of a batch are of similar lengths",
    **{
        f"launch.{name}": "test_elastic.py: so many train, and start again so often"
        for name in ("processes", "nodes", "restarts")
    },
    "train.attention": "test_switches.py: the model computes it so",
    "train.cross_entropy": "test_switches.py: a kernel that is not there, or not for this machine, is refused",
    "train.compile": "test_switches.py: layers are compiled",
    "train.tf32": "test_switches.py: refused without a GPU that has it",
    "launch.strategy": "test_sharding.py: processes share the model as it says",
    "launch.zero_stage": "test_sharding.py: the engine of DeepSpeed is at this stage",
    "backend": "test_registry.py: an unknown backend is an error",
    "evaluators": "test_training.py: each of them scores",
    "exporters": "test_training.py: each of them writes",
    "trackers": "test_trackers.py: each of them is given the events, and without any nothing is written",
    **{
        f"tracker {name}: {leaf}": "test_trackers.py: it says where the run goes"
        for name, leaves_ in {
            "wandb": ("project", "entity", "name", "tags", "mode"),
            "mlflow": ("tracking_uri", "experiment", "name", "tags"),
            "trackio": ("project", "name", "group", "space", "private"),
        }.items()
        for leaf in leaves_
    },
    "model.name": "test_training.py: the adapter is trained on another model than the embedded one",
    "transform dedupe: by": "test_transforms.py: by prompt, one answer is kept for each question",
    "transform dedupe: ignore_case": "test_transforms.py: case does not count",
    "transform dedupe: threshold": "test_transforms.py: near duplicates are left out",
    "transform dedupe: shingle": "test_transforms.py: longer runs of words find less",
    "transform dedupe: permutations": "test_transforms.py: a longer MinHash finds more",
    "transform dedupe: splits": "test_transforms.py: other splits stay as they are",
    "transform filter: min_chars": "test_transforms.py: a rule of its own",
    "transform filter: max_chars": "test_transforms.py: a rule of its own",
    "transform filter: min_tokens": "test_transforms.py: a rule of its own",
    "transform filter: max_tokens": "test_transforms.py: a rule of its own",
    "transform filter: min_turns": "test_transforms.py: a rule of its own",
    "transform filter: max_turns": "test_transforms.py: a rule of its own",
    "transform filter: match": "test_transforms.py: a rule of its own",
    "transform filter: reject": "test_transforms.py: a rule of its own",
    "transform filter: languages": "test_transforms.py: other languages are left out",
    "transform filter: language_confidence": "test_transforms.py: how sure that must be",
    "transform filter: roles": "test_transforms.py: whose texts the rules are about",
    "transform filter: splits": "test_transforms.py: other splits stay as they are",
    "transform sample: rows": "test_transforms.py: so many are kept",
    "transform sample: share": "test_transforms.py: such a share is kept",
    "transform sample: splits": "test_transforms.py: other splits stay as they are",
    "transform shuffle: splits": "test_transforms.py: other splits stay as they are",
    "transform decontaminate: against": "test_transforms.py: with no split, an overlap stays",
    "transform decontaminate: files": "test_transforms.py: rows of a benchmark are left out",
    "transform decontaminate: ngram": "test_transforms.py: shorter runs find more",
    "transform decontaminate: max_overlap": "test_transforms.py: some overlap is allowed",
    "transform redact: kinds": "test_transforms.py: addresses of the internet are found on request",
    "transform redact: regions": "test_transforms.py: national phone numbers are found",
    "transform redact: patterns": "test_transforms.py: patterns of one's own",
    "transform redact: replacement": "test_transforms.py: what stands in its place",
    "transform redact: splits": "test_transforms.py: other splits stay as they are",
    "transform augment: file": "test_transforms.py: other words come from it",
    "transform augment: copies": "test_transforms.py: so many are made",
    "transform augment: splits": "test_transforms.py: other splits stay as they are",
    **{
        f"masker {name}: {leaf}": "test_maskers.py: each part of an answer can be left out"
        for name in ("assistant", "last-reply", "completion", "flagged", "spans")
        for leaf in ("reasoning", "tool_calls", "end_of_turn")
    },
    "masker flagged: otherwise": "test_maskers.py: answers without a flag are trained or not",
    "masker roles: roles": "test_maskers.py: all text of these roles is trained",
    **{
        f"masker spans: {leaf}": "test_maskers.py: what a pattern or marks point out is trained"
        for leaf in ("pattern", "start", "end")
    },
    "backend bnb: bits": "test_bnb.py: qlora may have eight bits",
    **{
        f"backend bnb: {leaf}": "test_bnb.py: it changes how the base is held"
        for leaf in ("type", "double_quant", "compute_dtype", "storage_dtype")
    },
    "exporter merged: max_difference": "test_training.py: a bound too small refuses the merge",
    **{
        f"source {name}: {leaf}": "test_sources.py: it changes the rows and the fingerprint"
        for name, leaves_ in {
            "csv": ("columns", "delimiter", "quoted", "encoding"),
            "tsv": ("columns", "delimiter", "quoted", "encoding"),
            "json": ("field",),
            "parquet": (),
            "text": ("unit", "encoding"),
        }.items()
        for leaf in ("path", "val_share", *leaves_)
    },
    "source parquet: columns": "test_sources_formats.py: others are not read",
    "source huggingface: data_dir": "test_sources_huggingface.py: one folder of a dataset can be named",
    "source huggingface: streaming": "test_sources_huggingface.py: rows come without loading all",
    **{
        f"source mix: {leaf}": "test_sources_mix.py: it changes the rows and the fingerprint"
        for leaf in ("sources", "weights", "stopping", "seed")
    },
    "formatter chat: arguments": "test_formatters.py: arguments of calls are objects or text",
    "formatter chat: template_kwargs": "test_formatters.py: the template is given them",
    **{
        f"formatter alpaca: fields.{name}": "test_formatters_by_column.py: columns may have other names"
        for name in ("instruction", "input", "output", "system", "history")
    },
    "formatter alpaca: prompt": "test_formatters_by_column.py: how the input is joined",
    "formatter prompt-completion: fields.prompt": "test_formatters_by_column.py: columns may have other names",
    "formatter prompt-completion: fields.completion": "test_formatters_by_column.py: columns may have other names",
    "formatter text: field": "test_formatters_by_column.py: a text is learned as it is",
    "formatter columns: system": "test_formatters_by_column.py: a system prompt may be left out",
    "formatter columns: user": "test_formatters_by_column.py: columns are told by templates",
    "formatter columns: assistant": "test_formatters_by_column.py: columns are told by templates",
    "formatter columns: messages": "test_formatters_by_column.py: columns may be several turns",
}
HUB = {"model.revision": "v2"}
DATASETS = {f"source huggingface: {leaf}": leaf for leaf in ("name", "config", "revision", "train", "val", "test")}
ANSWERED = {
    f"evaluator {name}: {leaf}": value
    for name in ("generation", "judge")
    for leaf, value in {"split": "val", "limit": 1, "max_new_tokens": 2, "batch_size": 1}.items()
} | {
    "evaluator generation: metrics": ["bleu"],
    "evaluator judge: judge": {"use": "keyword", "with": {"required": ["x"]}},
    "evaluator loss: splits": ["train"],
}
ALL = [TRAINER, ADAPTER, PREPARED, ELSEWHERE, HUB, DATASETS, ANSWERED]


@pytest.mark.parametrize("leaf", [*CORE, *OPTIONS])
def test_every_option_has_a_case(leaf):
    assert sum(leaf in cases for cases in ALL) == 1, f"no test shows what {leaf} does; add one here"


def built(sets: dict[str, Any]) -> Recipe:
    """A recipe with dotted keys set."""
    data: dict[str, Any] = {"model": {"name": "sftrun/tiny"}, "source": {"use": "jsonl", "with": {"path": "data"}}}
    for dotted, value in sets.items():
        *folders, last = dotted.split(".")
        node = data
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return typed_recipe(data)


@pytest.mark.parametrize("leaf", TRAINER)
def test_a_training_option_reaches_the_trainer(leaf, tmp_path):
    from sftrun.training.train import arguments

    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/val.arrow").touch()
    needed = {"train.eval_steps": "train.eval_strategy", "train.save_steps": "train.save_strategy"}
    base = {needed[leaf]: "steps", leaf: 9} if leaf in needed else {"train.dataloader_workers": 2}
    seen = [
        arguments(built(sets), RunDir(tmp_path), rows=100).to_dict() for sets in (base, {**base, leaf: TRAINER[leaf]})
    ]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("leaf", ADAPTER)
def test_an_adapter_option_reaches_peft(leaf):
    from sftrun.training.model.adapter import lora_config

    seen = [lora_config(built(sets)) for sets in ({}, {leaf: ADAPTER[leaf]})]
    assert seen[1] is None or seen[0].to_dict() != seen[1].to_dict()


ROWS = [
    talk("hi", "hello"),
    {**talk("what is up?", "word " * 30), "q": "a question", "a": "an answer", "s": "terse"},
    {"user": "hi", "assistant": "ho", "system": "", "q": "?", "a": "!", "s": "terse"},
]
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prepared(tmp_path: Path, name: str, sets: dict[str, Any], rows: list[Any]) -> Any:
    """What comes of preparing: the ids and labels, or the message of the error."""
    from sftrun.errors import UserError
    from sftrun.flow import prepare

    for folder, items in (("data", rows), ("other", rows[:1])):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    (tmp_path / "marked.jinja").write_text(MARKED)
    (tmp_path / "open.jinja").write_text(MARKED.replace("<|im_end|>", ""))
    recipe = {"model": {"name": "sftrun/tiny"}, "source": {"use": "jsonl", "with": {"path": "data", "val_share": 0}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    overrides = [f"{key}={json.dumps(value)}" for key, value in {"data.max_lost": 1, **sets}.items()]
    try:
        run = prepare(tmp_path / "recipe.yaml", overrides, tmp_path / name)
    except UserError as error:
        return str(error)
    return run.read_json("prepared/proof.json")["hash"], run.read_json("prepared/stats.json")


STYLE = {"use": "style", "with": {"prompt": "Be kind.", "where": "replace"}}
COLUMNS = [{"user": "hi", "assistant": "ho", "system": "old", "q": "?", "a": "!", "s": "terse"}]
UNLIKE = [{"user": "hi", "assistant": "ho", "system": "old"}, talk("hi", "hello", system="old"), {"x": 1}]


@pytest.mark.parametrize("leaf", PREPARED)
def test_a_data_option_changes_what_is_prepared(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths in overrides are relative to here
    key, rows, base = leaf, [talk("hi", "hello"), talk("what is up?", "word " * 30)], {}
    if ": " in leaf:
        component, option = leaf.split(": ")
        key = {"source jsonl": "source.with.", "formatter chat": "formatter.with."}.get(component, "") + option
        base = {"formatter": {"use": "chat", "with": {}}} if component == "formatter chat" else {}
        rows = COLUMNS if component == "formatter chat" else rows
    if leaf in ("data.on_bad_row", "data.max_lost"):
        rows, base = UNLIKE, {"data.on_bad_row": "skip" if leaf == "data.max_lost" else "error"}
    if leaf == "formatter":
        rows = COLUMNS
    if leaf in ("data.on_too_long",):
        base = {"model.max_seq_len": 40}
    if leaf == "model.eot_token":
        base = {"model.chat_template": "open.jinja"}
    changed = {**base, key: PREPARED[leaf]}
    if leaf.startswith("transform style"):
        option = leaf.split(": ")[1]
        rows = [talk("hi", "hello", system="old")]
        base = {"transforms": [STYLE]}
        changed = {"transforms": [{"use": "style", "with": {**STYLE["with"], option: PREPARED[leaf]}}]}
    seen = [prepared(tmp_path, "before", base, rows), prepared(tmp_path, "after", changed, rows)]
    assert seen[0] != seen[1]
    assert not isinstance(seen[1], str) or leaf in ("data.max_lost", "expect_mask"), seen[1]


def test_a_revision_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    """A cache of the Hub, laid out as huggingface_hub lays it out, with two revisions of one model."""
    from huggingface_hub import constants

    from sftrun import tiny
    from sftrun.data.tokens.tokenizer import load_tokenizer
    from sftrun.recipe.model import ModelOptions

    root = tmp_path / "models--me--model"
    for name, commit in {"main": "a" * 40, "v2": "b" * 40}.items():
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / name).write_text(commit)
        shutil.copytree(
            tiny.folder(), root / "snapshots" / commit, ignore=shutil.ignore_patterns("*.py", "__pycache__")
        )
    template = root / "snapshots" / ("b" * 40) / "chat_template.jinja"
    template.write_text("{# the second #}" + template.read_text())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    seen = [
        load_tokenizer(parse({"name": "me/model", "revision": revision}, ModelOptions)).template.source
        for revision in (None, HUB["model.revision"])
    ]
    assert seen[0] != seen[1]
    assert seen[1].startswith("{# the second #}")


CARD = """---
configs:
- config_name: one
  data_files: [{split: train, path: one.jsonl}, {split: test, path: two.jsonl}]
- config_name: two
  data_files: [{split: train, path: two.jsonl}]
---
"""


@pytest.mark.parametrize("leaf", [leaf for leaf in DATASETS.values() if leaf != "revision"])
def test_an_option_of_the_source_huggingface_changes_its_rows(leaf, tmp_path):
    """A dataset folder in the Hub's layout; only a revision needs the Hub itself."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text(CARD)
        for name in ("one", "two"):
            rows = [{"user": f"{folder} {name} {number}", "assistant": "x"} for number in range(3)]
            (tmp_path / folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {"name": str(tmp_path / "first"), "config": "one", "val": "test", "test": "test"}
    values = {
        "name": str(tmp_path / "second"),
        "config": "two",
        "train": "train[:1]",
        "val": "test[:1]",
        "test": "train",
    }
    if leaf == "config":
        base = {"name": base["name"], "config": "one"}
    sources = [
        current().create("source", Use(use="huggingface", with_=each)) for each in (base, {**base, leaf: values[leaf]})
    ]
    seen = [{split: list(source.rows(split)) for split in source.splits()} for source in sources]
    assert seen[0] != seen[1]
    assert seen[0]["train"][0].data["user"] == "first one 0"


class Parrot:
    """A model that repeats the question; it notes how it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def generate(self, prompts, decoding):
        self.asked.append((prompts, decoding))
        return [list(prompt[: decoding.max_new_tokens]) for prompt in prompts]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def losses(self, split):
        from sftrun.types import LossSums

        return LossSums(tokens=10, loss=len(split), correct=5)


@pytest.mark.parametrize("leaf", [leaf for leaf in ANSWERED if leaf != "evaluator judge: judge"])
def test_an_option_of_an_evaluator_changes_what_is_asked_or_scored(leaf):
    from sftrun import Prompt

    component, option = leaf.split(": ")
    prompts = {
        split: [Prompt(f"{split}:{n}", [{"role": "user", "content": "?"}], [n, 1, 2, 3], f"{n} 1") for n in range(3)]
        for split in ("val", "test")
    }
    seen = []
    for with_ in ({}, {option: ANSWERED[leaf]}):
        model = Parrot()
        evaluator = current().create("evaluator", Use(use=component.split()[1], with_=with_))
        seen.append((evaluator.score(examples.scoring(model, prompts)), model.asked))
    assert seen[0] != seen[1]


def test_the_judge_of_an_evaluator_grades():
    from sftrun import Grade, Prompt
    from sftrun.registry import Registered

    class Strict:
        def grade(self, work):
            return Grade(0.25, "strict")

    item = Registered("judge", "strict", Strict, None, "", __name__, "tests", "0")
    current().components["judge"]["strict"] = item
    try:
        prompts = {"test": [Prompt("test:1", [], [1, 2], "1 2")]}
        evaluators = [
            current().create("evaluator", Use(use="judge", with_={"judge": judge})) for judge in ("reference", "strict")
        ]
        scores = [each.score(examples.scoring(Parrot(), prompts)) for each in evaluators]
        assert [each.metrics["score"].value for each in scores] == [1.0, 0.25]
    finally:
        del current().components["judge"]["strict"]
