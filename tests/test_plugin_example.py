"""The plugin in plugins/sftrun-example, as its users meet it: installed beside sftrun in an environment of its own.

What sftrun declares as needed is linked into that environment, and nothing else is (see `environments`). The
plugin is built and installed by pip, which checks what it declares. So a dependency that is not declared is missing.
"""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from environments import Environment

import sftrun
import sftrun.data

PLUGIN = Path(__file__).parent.parent / "plugins" / "sftrun-example"
RECIPE = PLUGIN / "recipes" / "support.yaml"
NAMES = [("formatter", "ticket"), ("masker", "final-answer"), ("judge", "keyword")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The plugin, built from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copytree(PLUGIN, folder / "source", ignore=ignore_patterns("build", "*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder, folder / "source"], check=True)
    return next(folder.glob("sftrun_example-*.whl"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What `pip install sftrun` brings."""
    return Environment(tmp_path_factory.mktemp("bare") / "venv", "sftrun")


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    """What `pip install sftrun sftrun-example` brings."""
    environment = Environment(tmp_path_factory.mktemp("light") / "venv", "sftrun")
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def full(wheel, tmp_path_factory):
    """What `pip install 'sftrun-example[test]'` brings."""
    environment = Environment(tmp_path_factory.mktemp("full") / "venv", "sftrun[train]", "pytest")
    environment.install(wheel)
    return environment


def sftrun_in(environment: Environment, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = environment.run("-m", "sftrun", *words)
    assert done.returncode == code, done.stderr
    return done


def test_without_it_the_recipe_says_what_is_installed_and_where_others_are(bare):
    said = sftrun_in(bare, "validate", RECIPE, code=1).stderr
    for kind, name in NAMES[:2]:
        (line,) = (line for line in said.splitlines() if f"error: unknown {kind} '{name}'; installed are: " in line)
        assert line.endswith("; docs/plugins.md lists plugins that bring others")


@pytest.mark.parametrize("command", ["run", "prepare", "inspect"])
def test_without_the_extra_every_command_says_what_to_install(light, command, tmp_path):
    said = sftrun_in(light, command, RECIPE, *([] if command == "inspect" else ["--out", tmp_path / "out"]), code=1)
    assert "reading text as tokens needs jinja2, numpy, pyarrow, tokenizers: not installed" in said.stderr
    assert "pip install 'sftrun[train]'" in said.stderr
    assert ("the backend hf needs torch" in said.stderr) == (command == "run")
    assert not (tmp_path / "out").exists()


def test_its_recipe_is_valid_without_torch(light):
    assert light.run("-c", "import torch").returncode == 1
    assert sftrun_in(light, "validate", RECIPE.parent).stderr == "1 recipe: 1 fine\n"


def test_its_components_are_listed_with_distribution_and_version(light):
    listed = json.loads(sftrun_in(light, "plugins", "--json").stdout)
    own = [item for item in listed["components"] if item["distribution"] == "sftrun-example"]
    assert [(item["kind"], item["name"], item["version"]) for item in own] == [(*each, "0.1.0") for each in NAMES]
    assert all(item["description"] for item in own)
    assert listed["broken"] == []


def test_its_options_are_in_the_schema(light):
    schema = json.loads(sftrun_in(light, "schema").stdout)
    options = {"ticket": "product_in_system", "final-answer": "skip_turns", "keyword": "penalty"}
    for kind, name in NAMES:
        long_form = schema["$defs"][kind]["anyOf"][-1]
        (own,) = (each for each in long_form["allOf"] if each["if"]["properties"]["use"]["const"] == name)
        assert own["then"]["properties"]["with"]["properties"][options[name]]["description"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("formatter.with.product_in_sytem=no", "did you mean 'product_in_system'?"),
        ("masker.with.skip_turns=-1", "masker.with.skip_turns must be at least 0, not -1"),
        ("evaluators.1.with.judge.with.requird=[a]", "did you mean 'required'?"),
        ("evaluators.1.with.judge.with.forbidden=[dear]", "the keyword 'dear' is both required and forbidden"),
    ],
)
def test_a_mistake_in_its_options_is_explained(light, override, said):
    assert said in sftrun_in(light, "validate", RECIPE, "--set", override, code=1).stderr


def last_answers() -> dict[str, str]:
    """The answer that each ticket of the data ends with, by origin; read without the plugin."""
    lines = (RECIPE.parent / "data" / "tickets" / "train.jsonl").read_text("utf-8").splitlines()
    found = {}
    for number, line in enumerate(lines, 1):
        answers = [reply["text"] for reply in json.loads(line)["replies"] if reply["by"] == "agent"]
        found[f"train.jsonl:{number}"] = answers[-1] if len(answers) > 1 else ""
    return found


def test_what_is_trained_is_what_the_masker_says(full):
    recipe = sftrun.load(PLUGIN.parent.parent / "recipes" / "chat.yaml")
    tokenizer = sftrun.data.load_tokenizer(recipe.model)
    rows = [json.loads(line) for line in sftrun_in(full, "inspect", RECIPE, "--json").stdout.splitlines()]
    trained = {
        row["origin"]: [token for token, flag in zip(row["ids"], row["trained"], strict=True) if flag] for row in rows
    }
    texts = {origin: tokenizer.decode(ids, skip_special_tokens=False) for origin, ids in trained.items()}
    assert texts == {origin: f"{answer}<|im_end|>" for origin, answer in last_answers().items() if answer}


def test_its_recipe_runs_from_rows_to_the_report(full, tmp_path):
    run = tmp_path / "run"
    sftrun_in(full, RECIPE, "--set", "train.max_steps=20", "--out", run)
    stats = json.loads((run / "prepared" / "stats.json").read_text("utf-8"))
    assert stats["train"]["lost"] == {"dropped: nothing trained": 15}  # tickets with nothing but the canned reply
    scores = json.loads((run / "eval" / "scores.json").read_text("utf-8"))
    assert scores["tuned"]["loss"]["test_loss"] < scores["base"]["loss"]["test_loss"]
    assert 0 <= scores["base"]["judge"]["score"] <= 1
    samples = [json.loads(line) for line in (run / "eval" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert samples[0]["base"]["reason"] == "missing: dear, please, kind regards"
    assert "missing: dear" in (run / "report.html").read_text("utf-8")


def test_its_own_tests_pass_where_it_is_installed(full):
    done = full.run("-m", "pytest", "-q", "-p", "no:cacheprovider", PLUGIN)
    assert done.returncode == 0, done.stdout
