"""`sftrun new-plugin`: what it writes installs, passes its own tests, and is clean, for every kind of component."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from environments import Environment

from sftrun.hookspecs import KINDS
from sftrun.tools.new_plugin import LIGHT, LONGEST, new_plugin

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "pyproject.toml"
FENCE = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """A project of each kind."""
    folder = tmp_path_factory.mktemp("projects")
    return {kind: new_plugin(f"my-{kind}", kind, folder / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def environments(projects, tmp_path_factory):
    """Has each project installed: with sftrun alone where that is enough for its tests, or else with sftrun[train]."""
    folder = tmp_path_factory.mktemp("environments")
    light = Environment(folder / "light", "sftrun", "pytest", "setuptools")
    full = Environment(folder / "full", "sftrun[train]", "pytest", "setuptools")
    found = {kind: light if kind in LIGHT else full for kind in KINDS}
    for kind, environment in found.items():
        environment.install("--no-build-isolation", "-e", projects[kind])
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_project_installs_and_passes_as_it_is(environments, projects, kind):
    environment, project = environments[kind], projects[kind]
    done = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = json.loads(environment.run("-m", "sftrun", "plugins", "--json").stdout)
    (own,) = (item for item in listed["components"] if item["name"] == f"my-{kind}")
    assert (own["kind"], own["distribution"], own["version"]) == (kind, f"sftrun-my-{kind}", "0.1.0")
    assert own["description"]
    assert listed["broken"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_in_the_readme_is_valid(environments, projects, kind, tmp_path):
    (recipe,) = FENCE.findall((projects[kind] / "README.md").read_text("utf-8"))
    assert f"my-{kind}" in recipe
    (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    done = environments[kind].run("-m", "sftrun", "validate", "recipe.yaml", cwd=tmp_path)
    assert done.stderr == "1 recipe: 1 fine\n"


@pytest.mark.parametrize("name", ["x", "a-name-of-many-letters-x"])
def test_projects_are_formatted_and_pass_the_linter(tmp_path, name):
    assert len(name) in (1, LONGEST)
    for kind in KINDS:
        project = new_plugin(name, kind, tmp_path / kind)
        for command in (["check"], ["format", "--diff"]):
            words = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", CONFIG, "."]
            done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_projects_pass_the_type_checker(projects, tmp_path):
    """Their own settings are strict, and those of the backend name what has no types; so do ours.

    sftrun itself is followed in silence, as it is where pip has installed it.
    """
    for config in (CONFIG, projects["backend"] / "pyproject.toml"):
        files = [file for project in projects.values() for file in project.rglob("*.py")]
        words = [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", tmp_path / "cache"]
        done = subprocess.run(
            [*words, "--follow-imports", "silent", *files], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_next_commands_are_said(sftrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sftrun("new-plugin", "river", "--kind", "judge")
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        "written: sftrun-river\n"
        "  .github/workflows/ci.yml  README.md  pyproject.toml  sftrun_river.py  tests/test_river.py\n"
        "next:\n"
        "  cd sftrun-river\n"
        "  pip install -e '.[test]'\n"
        "  pytest\n"
    )


def test_a_folder_that_exists_is_left_alone(sftrun, tmp_path):
    (tmp_path / "mine").mkdir()
    done = sftrun("new-plugin", "river", "--kind", "judge", "--out", tmp_path / "mine")
    assert done.code == 1
    assert f"error: {tmp_path / 'mine'} exists already; name another folder: --out DIR" in done.err
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("river", "transfrom", "unknown kind of component 'transfrom'; did you mean 'transform'?"),
        ("river", "dataset", "unknown kind of component 'dataset'; there are: source, transform, formatter"),
        ("My River", "judge", "'My River' is no name: use lower-case letters and digits, with hyphens between words; "),
        ("My River", "judge", "did you mean 'my-river'?"),
        ("my_river", "judge", "did you mean 'my-river'?"),
        ("1", "judge", "'1' is no name: use lower-case letters and digits, with hyphens between words; such as "),
        ("../x", "judge", "did you mean 'x'?"),
        ("sftrun-river", "judge", "recipes use the name of the component, without sftrun-; did you mean 'river'?"),
        ("a" * 25, "judge", "is longer than 24 characters"),
        ("chat", "formatter", "there is a formatter 'chat' already: it is in sftrun 0.1.0; choose another name"),
    ],
)
def test_what_cannot_be_written_is_explained(sftrun, tmp_path, monkeypatch, name, kind, message):
    monkeypatch.chdir(tmp_path)
    done = sftrun("new-plugin", name, "--kind", kind)
    assert done.code == 1
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_another_kind_has_is_free(tmp_path):
    assert (new_plugin("chat", "judge", tmp_path / "new") / "sftrun_chat.py").is_file()


def test_the_name_of_an_installed_distribution_is_taken(sftrun, tmp_path, monkeypatch):
    info = tmp_path / "sftrun_river-3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sftrun-river\nVersion: 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = sftrun("new-plugin", "river", "--kind", "judge", "--out", tmp_path / "new")
    assert "error: sftrun-river 3 is installed already; choose another name" in done.err


def test_the_kind_is_not_said_twice_in_a_class(tmp_path):
    project = new_plugin("strict-judge", "judge", tmp_path / "new")
    assert "class StrictJudge:" in (project / "sftrun_strict_judge.py").read_text("utf-8")


def test_a_metric_may_have_underscores_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_plugin("last_number", "metric") == Path("sftrun-last-number")
    text = Path("sftrun-last-number/sftrun_last_number.py").read_text("utf-8")
    assert 'register("last_number", LastNumberMetric, options=LastNumberOptions)' in text
