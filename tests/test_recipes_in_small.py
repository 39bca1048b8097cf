"""Every recipe in recipes/ runs from its rows to its report: in small, on a CPU, and without the Hub.

What the Hub has is stood in for: a tiny random model of the same architecture, with the family's chat template, and a
few rows with the very columns of the public dataset. All other keys are those of the recipe, its slices of splits too.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import small

import sftrun as library
from sftrun import tiny
from sftrun.kinds import Estimating
from sftrun.memory import batches

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
UNSLOTH = ROOT / "plugins/sftrun-unsloth"

NUMBERS = range(120)
TALKS = [
    {
        "full_topic": "Numbers/Counting",
        "messages": [
            {"role": "user", "content": f"What comes after {number}?"},
            {"role": "assistant", "content": f"{number + 1}."},
        ],
    }
    for number in NUMBERS
]
ALPACA = [
    {
        "instruction": "Add the numbers." if number % 2 else f"Say {number}.",
        "input": f"{number}, 1" if number % 2 else "",
        "output": str(number + number % 2),
        "text": "Below is an instruction …",
    }
    for number in NUMBERS
]
DOLLY = [
    {
        "instruction": "Which number is it?" if number % 2 else f"Say {number}.",
        "context": f"It is {number}." if number % 2 else "",
        "response": f"{number}.",
        "category": "closed_qa",
    }
    for number in NUMBERS
]
CODE = [
    {
        "content": f'"""Module {number}, by ann{number}@example.org."""\n\n' + f"def f{number}(x):\n    return x\n" * 9,
        "avg_line_length": 20.0,
        "max_line_length": 40,
        "alphanum_fraction": 0.6,
        "licenses": ["MIT"],
        "repository_name": "ann/one",
        "path": f"f{number}.py",
        "size": 200,
        "lang": "Python",
    }
    for number in NUMBERS
]
CODE[5]["content"] = ""  # as some are

TURNS = [("system", "Be terse."), ("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")]

FEW = ["train.max_steps=2", "train.logging_steps=1"]
SAVED = [*FEW, "train.eval_strategy=steps", "train.eval_steps=2", "train.save_strategy=steps", "train.save_steps=2"]
ANSWERS = ["evaluators.1.with.limit=3", "evaluators.1.with.max_new_tokens=4"]


@pytest.fixture(scope="session")
def stands_in(tmp_path_factory):
    """What stands in for the Hub, by recipe: overrides of the model, the source and the steps, and no other."""
    folder = tmp_path_factory.mktemp("hub")

    def rows(name, data, *splits):
        made = folder / name
        return f"source.with.name={made if made.exists() else small.dataset(data, made, *splits)}"

    def model(family):
        made = folder / family
        return f"model.name={made if made.exists() else small.model(family, folder)}"

    def code():
        files = folder / "stack/data/python"
        files.mkdir(parents=True, exist_ok=True)
        (files / "data.json").write_text("".join(json.dumps(row) + "\n" for row in CODE))
        slices = {"train": "train[:100]", "val": "train[100:110]", "test": "train[110:]"}
        return [f"source.with.{split}={name}" for split, name in slices.items()]

    smoltalk = "source.with.config=null"
    return {
        "chat.yaml": lambda: [*FEW, *ANSWERS],
        "lora.yaml": lambda: ["model.name=sftrun/tiny", *SAVED, *ANSWERS, "evaluators.2.with.limit=3"],
        "smollm2-smoltalk.yaml": lambda: [
            *(model("smol"), rows("everyday", TALKS, "train", "test"), smoltalk, *FEW, *ANSWERS),
        ],
        "qwen2.5-3b-qlora.yaml": lambda: [model("qwen"), rows("alpaca", ALPACA, "train"), *SAVED, *ANSWERS],
        "8gb-gpu.yaml": lambda: [
            *(model("qwen"), rows("everyday", TALKS, "train", "test"), smoltalk, *SAVED, *ANSWERS),
        ],
        "llama3-8b-lora-fsdp.yaml": lambda: [
            *(model("llama3"), rows("everyday", TALKS, "train", "test"), smoltalk, "launch.processes=2", *SAVED),
            *("source.with.train=train[:100]", "source.with.val=test[:10]", "source.with.test=test[10:20]", *ANSWERS),
        ],
        "mistral-inst.yaml": lambda: [model("mistral"), rows("dolly", DOLLY, "train"), *SAVED, *ANSWERS],
        "smollm2-stack-smol.yaml": lambda: [
            *(model("smol"), f"source.with.name={folder / 'stack'}", *code(), *SAVED, "train.grad_accum=2"),
        ],
        "cpt.yaml": lambda: [model("smol"), "model.max_seq_len=1024", "train.grad_accum=1", *SAVED],
    }


CASES = [
    *("8gb-gpu.yaml", "chat.yaml", "cpt.yaml", "llama3-8b-lora-fsdp.yaml", "lora.yaml", "mistral-inst.yaml"),
    *("qwen2.5-3b-qlora.yaml", "smollm2-smoltalk.yaml", "smollm2-stack-smol.yaml"),
]


def sets(overrides):
    return [word for each in overrides for word in ("--set", each)]


def test_every_recipe_has_a_stand_in(stands_in):
    assert sorted(stands_in) == CASES == sorted(path.name for path in RECIPES.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_recipe_runs_from_its_rows_to_its_report(name, sftrun, stands_in, tmp_path):
    said = sftrun(RECIPES / name, *sets(stands_in[name]()), "--out", tmp_path / "run")
    assert said.code == 0, said.err
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"][-1] == 2
    lost = [event["message"] for event in events if event["event"] == "warning" and "lost" in event["message"]]
    assert len(lost) == (name == "smollm2-stack-smol.yaml")  # the file without content
    recipe = library.load(RECIPES / name)
    scores = json.loads((tmp_path / "run/eval/scores.json").read_text())
    assert set(scores["tuned"]) == {each.use for each in recipe.evaluators}
    for exporter in recipe.exporters:
        assert list((tmp_path / "run/export" / exporter.use).glob("*.safetensors"))
    assert (tmp_path / "run/report.html").is_file()


@pytest.fixture
def shown(sftrun):
    """The first rows of a recipe, with what is trained between ⟦ and ⟧, as `sftrun inspect` shows them."""

    def rows(recipe, *overrides, count=2):
        said = sftrun("inspect", recipe, *sets(overrides), "--rows", count)
        assert said.code == 0, said.err
        listed = re.split(r"── .*\n", (said.err + said.out).partition("\n(trained text")[0])
        return [row.rstrip("\n") for row in listed[1:]]

    return rows


def test_of_inst_rows_the_response_and_its_end_are_trained(shown, stands_in):
    assert shown(RECIPES / "mistral-inst.yaml", *stands_in["mistral-inst.yaml"]()) == [
        "<s>[INST] Say 0.[/INST]⟦ 0.</s>⟧",
        "<s>[INST] Which number is it?\n\nIt is 1.[/INST]⟦ 1.</s>⟧",
    ]


def test_of_inst_talks_every_response_and_its_end_are_trained(shown, write, tmp_path):
    talk = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
    file = write([talk], model={"name": str(small.model("mistral", tmp_path, weights=False))})
    assert shown(file) == ["<s>[INST] Be terse.\n\nA?[/INST]⟦ B.</s>⟧[INST] C?[/INST]⟦ D.</s>⟧"]


def test_code_is_trained_from_end_to_end_without_the_addresses_in_it(shown, stands_in):
    name = "smollm2-stack-smol.yaml"
    (row,) = shown(RECIPES / name, *stands_in[name](), count=1)
    assert row.startswith('⟦"""Module 0, by [email]."""\n\ndef f0(x):\n')
    assert row.endswith("return x\n<|endoftext|>⟧")


def test_instructions_can_be_mixed_into_texts(shown, write, tmp_path):
    """As the comment in cpt.yaml says: one row in ten is theirs, in a column `text`."""
    (tmp_path / "texts.txt").write_text("\n".join(f"Line {number}." for number in range(90)))
    texts = {"use": "text", "with": {"path": "texts.txt", "unit": "line", "val_share": 0}}
    theirs = {"use": "jsonl", "with": {"path": "data", "val_share": 0}}
    write([{"text": f"Question {number}? Answer."} for number in range(10)])
    file = tmp_path / "cpt.yaml"
    mixed = {"use": "mix", "with": {"sources": [texts, theirs], "weights": [9, 1]}}
    file.write_text(json.dumps({"extends": str(RECIPES / "cpt.yaml"), "source": mixed}))
    rows = shown(file, "model.name=sftrun/tiny", count=1000)
    assert 0.05 < sum("Answer" in row for row in rows) / len(rows) < 0.15


QWENS = {  # hidden and inner size, layers, heads, heads of keys and values, vocabulary, one matrix for both ends
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def planned(size, overrides, folder):
    """What plan estimates for a GPU, in GB: without what only a CPU has, and with its 600 MB for a context of CUDA."""
    values = dict(zip((*SIZES, "vocab_size", "tie_word_embeddings"), QWENS[size], strict=True))
    folder.mkdir(exist_ok=True)
    for name in tiny.TOKENIZER_FILES:
        (folder / name).write_bytes((tiny.folder() / name).read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", **values}))
    always = [f"model.name={folder}", "train.precision=bf16"]
    recipe = library.load(RECIPES / "8gb-gpu.yaml", [*always, *overrides])
    return on_a_gpu(recipe)


def on_a_gpu(recipe):
    """The same of a recipe."""
    backend = library.create("backend", recipe.backend)
    found = backend.estimate(
        Estimating(
            recipe=recipe,
            training=batches.largest_training_batch(recipe, None),
            evaluation=batches.largest_evaluation_batch(recipe, None),
        )
    )
    only_cpu = ("libraries", "fragmentation")
    peaks = [sum(part for name, part in each.items() if name not in only_cpu) for each in found.memory.values()]
    return (max(peaks) + 600 * 2**20) / 1e9


@pytest.mark.slow
def test_the_figures_for_8_gb_are_those_of_plan(tmp_path):
    text = (RECIPES / "8gb-gpu.yaml").read_text("utf-8")
    (whole,) = re.findall(r"This recipe needs ([\d.]+) GB", text)
    listed = re.findall(r"^#   +([\d.]+)  ([\d.]+B)(.*)$", text, re.M)
    assert len(listed) == 7
    said = [
        (float(whole), "1.5B", []),
        *((float(gb), size, ["train.batch_size=1", *rest.split()]) for gb, size, rest in listed),
    ]
    for gb, size, overrides in said:
        assert planned(size, overrides, tmp_path / size) == pytest.approx(gb, abs=0.06), (size, overrides)


@pytest.mark.slow
def test_the_figure_for_mistral_is_that_of_plan(tmp_path):
    text = (RECIPES / "mistral-inst.yaml").read_text("utf-8")
    (said,) = re.findall(r"\(sftrun plan estimates ([\d.]+)\)", text)
    folder = small.model("mistral", tmp_path, weights=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 32768}))
    recipe = library.load(RECIPES / "mistral-inst.yaml", [f"model.name={folder}", "train.precision=bf16"])
    assert on_a_gpu(recipe) == pytest.approx(float(said), abs=0.06)


@pytest.fixture
def with_unsloth(tmp_path):
    """Runs sftrun where the plugin is found and unsloth itself is not: what `pip install sftrun-unsloth` brings."""
    made = tmp_path / "site/sftrun_unsloth-0.1.0.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: sftrun-unsloth\nVersion: 0.1.0\n")
    declared = (UNSLOTH / "pyproject.toml").read_text("utf-8")
    (entries,) = re.findall(r'^(backend = "sftrun_unsloth.*?\n(?:\w+ = .*\n)*)', declared, re.M)
    (made / "entry_points.txt").write_text("[sftrun]\n" + entries.replace('"', ""))
    paths = [str(made.parent), str(UNSLOTH), str(ROOT)]

    def run(*words):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "sftrun", *map(str, words)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return run


def test_the_recipes_for_unsloth_are_checked_with_its_plugin_and_name_it_without(with_unsloth, sftrun, tmp_path):
    recipe = UNSLOTH / "recipes/llama3-8b-qlora-unsloth.yaml"
    said = sftrun("validate", recipe).err
    assert "unknown backend 'unsloth'; installed are: bnb, hf; docs/plugins.md lists plugins that bring others" in said
    said = with_unsloth("validate", UNSLOTH / "recipes", RECIPES)
    assert said.returncode == 0, said.stderr
    (tmp_path / "packed.yaml").write_text(f"extends: {recipe}\npacking: {{strategy: best-fit}}\n")
    said = with_unsloth("validate", tmp_path / "packed.yaml")
    assert "the backend unsloth does not act on packing.strategy" in said.stderr
