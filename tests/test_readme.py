"""Runs every block of the README about recipes, output or Python."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import talk

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+[ \w]*)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)


def blocks(kind):
    found = [text for name, text in BLOCKS if name == kind]
    assert found
    return found


@pytest.fixture
def folder(write, tmp_path, monkeypatch):
    """Makes a folder with the recipe that the README inspects and the broken one."""
    write([talk("2+2?", "4")])
    (tmp_path / "chat.yaml").write_text(blocks("yaml invalid")[0], "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_recipe_of_the_readme_is_valid(text, sftrun, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text, "utf-8")
    assert sftrun("validate", tmp_path / "recipe.yaml").code == 0


@pytest.mark.parametrize("text", blocks("console"))
def test_the_output_in_the_readme_is_real(text, sftrun, folder):
    command, _, expected = text.partition("\n")
    result = sftrun(*shlex.split(command.removeprefix("$ sftrun ")))
    assert result.err.strip() == expected.strip()


@pytest.mark.parametrize("text", blocks("python"))
def test_the_python_of_the_readme_runs(text, folder):
    exec(compile(text, "README.md", "exec"), {})


def test_every_command_of_the_readme_exists_and_every_command_is_in_the_readme():
    from sftrun.cli.main import COMMANDS

    named = set(re.findall(r"^\| `sftrun ([\w-]+)", (ROOT / "README.md").read_text("utf-8"), re.M))
    assert named == (set(COMMANDS) - {"run"}) | {"RECIPE"}


def test_every_file_that_the_documentation_links_to_exists():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_recipe_is_in_the_table_of_the_documentation():
    rows = re.findall(r"^\| \[`(.+?\.yaml)`\]", (ROOT / "docs/recipes.md").read_text("utf-8"), re.M)
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} <= set(rows)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_valid(recipe, sftrun):
    assert sftrun("validate", recipe).code == 0
