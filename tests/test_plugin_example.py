"""The plugin in plugins/sftrun-example, as its users meet it: installed beside sftrun in an environment of its own.

The environments are made without an index and without waiting for torch: each distribution that is declared as
needed, and no other, is linked from the environment of the tests. The plugin alone is built and installed by pip,
which checks what it declares. So a dependency that is not declared is missing here.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from packaging.requirements import Requirement

import sftrun

PLUGIN = Path(__file__).parent.parent / "plugins" / "sftrun-example"
RECIPE = PLUGIN / "recipes" / "support.yaml"
NAMES = [("formatter", "ticket"), ("masker", "final-answer"), ("judge", "keyword")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Environment:
    """A virtual environment that holds what it is given, and nothing else."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        venv.create(folder)
        self.python = folder / "bin" / "python"
        self.site = next((folder / "lib").glob("python3*")) / "site-packages"
        for requirement in requirements:
            for name in needed(requirement, set()):
                self._link(metadata.distribution(name))

    def _link(self, found: metadata.Distribution) -> None:
        top = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        for name in top:
            if not (self.site / name).exists():
                (self.site / name).symlink_to(Path(str(found.locate_file(name))).resolve())

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs Python in it, outside the repository."""
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [self.python, *map(str, words)]
        return subprocess.run(
            command,
            cwd=self.site,
            env={**clean, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def sftrun(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.run("-m", "sftrun", *words)
        assert done.returncode == code, done.stderr
        return done


def needed(text: str, seen: set[str]) -> Iterator[str]:
    """The names of a requirement and of all that it needs in turn, as their metadata say."""
    wanted = Requirement(text)
    if f"{wanted.name}{wanted.extras}" in seen:
        return
    seen.add(f"{wanted.name}{wanted.extras}")
    yield wanted.name
    for line in metadata.distribution(wanted.name).requires or ():
        inner = Requirement(line)
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in wanted.extras or {""}):
            yield from needed(line, seen)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The plugin, built from a copy: a build leaves files behind."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("wheel")
    copytree(PLUGIN, folder / "source", ignore=ignore_patterns("build", "*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder, folder / "source"], check=True)
    return next(folder.glob("sftrun_example-*.whl"))


def installed(wheel: Path, folder: Path, *requirements: str) -> Environment:
    environment = Environment(folder, *requirements)
    # no index, but dependencies: pip fails where one that the plugin declares is not there
    pip = [sys.executable, "-m", "pip", "--python", environment.python, "install", "-q", "--no-index", wheel]
    subprocess.run(pip, check=True)
    return environment


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What `pip install sftrun` brings."""
    return Environment(tmp_path_factory.mktemp("bare") / "venv", "sftrun")


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    """What `pip install sftrun sftrun-example` brings."""
    return installed(wheel, tmp_path_factory.mktemp("light") / "venv", "sftrun")


@pytest.fixture(scope="module")
def full(wheel, tmp_path_factory):
    """What `pip install 'sftrun-example[test]'` brings."""
    return installed(wheel, tmp_path_factory.mktemp("full") / "venv", "sftrun[train]", "pytest")


def test_without_it_the_recipe_says_what_to_install(bare):
    said = bare.sftrun("validate", RECIPE, code=1).stderr
    for kind, name in NAMES[:2]:
        assert f"error: unknown {kind} '{name}'; it comes with sftrun-example: pip install sftrun-example" in said


def test_its_recipe_is_valid_without_torch(light):
    assert light.run("-c", "import torch").returncode == 1
    assert light.sftrun("validate", RECIPE.parent).stderr == "1 recipe: 1 fine\n"


def test_its_components_are_listed_with_distribution_and_version(light):
    listed = json.loads(light.sftrun("plugins", "--json").stdout)
    own = [item for item in listed["components"] if item["distribution"] == "sftrun-example"]
    assert [(item["kind"], item["name"], item["version"]) for item in own] == [(*each, "0.1.0") for each in NAMES]
    assert all(item["description"] for item in own)
    assert listed["broken"] == []


def test_its_options_are_in_the_schema(light):
    schema = json.loads(light.sftrun("schema").stdout)
    options = {"ticket": "product_in_system", "final-answer": "skip_turns", "keyword": "penalty"}
    for kind, name in NAMES:
        long_form = schema["$defs"][kind]["anyOf"][-1]
        (own,) = (each for each in long_form["allOf"] if each["if"]["properties"]["use"]["const"] == name)
        assert own["then"]["properties"]["with"]["properties"][options[name]]["description"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("formatter.with.product_in_sytem=no", "did you mean 'formatter.with.product_in_system'?"),
        ("masker.with.skip_turns=-1", "masker.with.skip_turns must be at least 0, not -1"),
        ("evaluators.1.with.judge.with.requird=[a]", "did you mean 'evaluators.1.with.judge.with.required'?"),
        ("evaluators.1.with.judge.with.forbidden=[dear]", "the keyword 'dear' is both required and forbidden"),
    ],
)
def test_a_mistake_in_its_options_is_explained(light, override, said):
    assert said in light.sftrun("validate", RECIPE, "--set", override, code=1).stderr


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
    tokenizer = sftrun.load_tokenizer(recipe.model)
    rows = [json.loads(line) for line in full.sftrun("inspect", RECIPE, "--json").stdout.splitlines()]
    trained = {
        row["origin"]: [token for token, flag in zip(row["ids"], row["trained"], strict=True) if flag] for row in rows
    }
    texts = {origin: tokenizer.decode(ids, skip_special_tokens=False) for origin, ids in trained.items()}
    assert texts == {origin: f"{answer}<|im_end|>" for origin, answer in last_answers().items() if answer}


def test_its_recipe_runs_from_rows_to_the_report(full, tmp_path):
    run = tmp_path / "run"
    full.sftrun(RECIPE, "--set", "train.max_steps=20", "--out", run)
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
