"""`sftrun validate` and the entry points: exit codes, formats, folders, unknown words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sftrun.cli import main, show
from sftrun.errors import Place, Problem

SMALL = "model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: data}}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of recipes, one of them wrong, to stand in."""
    (tmp_path / "recipes" / "more").mkdir(parents=True)
    (tmp_path / "recipes" / ".hidden").mkdir()
    (tmp_path / "recipes" / "good.yaml").write_text(SMALL)
    (tmp_path / "recipes" / "more" / "bad.yml").write_text(SMALL + "train: {epohcs: 1}\n")
    (tmp_path / "recipes" / ".hidden" / "x.yaml").write_text("?")
    (tmp_path / "recipes" / "_part.yaml").write_text("train: {epochs: 1}\n")
    (tmp_path / "recipes" / "notes.txt").write_text("no recipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_and_all_problems_are_reported(folder, capsys):
    assert main.run(["validate", "recipes"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "recipes/more/bad.yml:3:9: error: unknown key 'epohcs' in train; did you mean 'epochs'?\n"
        "    3 | train: {epohcs: 1}\n"
        "      |         ^^^^^^\n"
        "2 recipes: 1 fine, 1 with 1 error\n"
    )


def test_a_fine_recipe_exits_with_0(folder, capsys):
    assert main.run(["validate", "recipes/good.yaml", "recipes/good.yaml"]) == 0
    assert capsys.readouterr().err == "1 recipe: 1 fine\n"


def test_an_override_applies_to_every_recipe_and_is_reported_once(folder, capsys):
    assert main.run(["validate", "recipes/good.yaml", "recipes/more/bad.yml", "--set", "seed=x"]) == 1
    err = capsys.readouterr().err
    assert err.count("seed must be a whole number") == 1
    assert err.endswith("2 recipes: 2 with 2 errors\n")


def test_a_part_is_checked_if_it_is_named(folder, capsys):
    assert main.run(["validate", "recipes/_part.yaml"]) == 1
    assert "missing key 'model'" in capsys.readouterr().err


def test_json_is_one_document_on_stdout(folder, capsys):
    assert main.run(["validate", "recipes", "--format", "json"]) == 1
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert err == ""
    assert (data["errors"], data["warnings"]) == (1, 0)
    assert [(recipe["file"], recipe["ok"]) for recipe in data["recipes"]] == [
        ("recipes/good.yaml", True),
        ("recipes/more/bad.yml", False),
    ]
    assert data["recipes"][1]["problems"] == [
        {
            "severity": "error",
            "message": "unknown key 'epohcs' in train",
            "hint": "did you mean 'epochs'?",
            "file": "recipes/more/bad.yml",
            "line": 3,
            "column": 9,
            "length": 6,
            "path": ["train", "epohcs"],
        }
    ]


def test_github_gets_workflow_commands(folder, capsys):
    assert main.run(["validate", "recipes", "--format", "github", "--set", "seed=50%"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert (
        "::error file=recipes/more/bad.yml,line=3,col=9,endColumn=15"
        "::unknown key 'epohcs' in train; did you mean 'epochs'?"
    ) in out
    assert any(
        line.startswith("::error file=recipes/good.yaml::--set seed=50%25: seed must be a whole number") for line in out
    )


def test_workflow_commands_are_escaped():
    problem = Problem("100%\nof a, b: c", Place("a,b:c%.yaml", 1, 2, 3))
    expected = "::error file=a%2Cb%3Ac%25.yaml,line=1,col=2,endColumn=5::100%25%0Aof a, b: c"
    assert show.as_annotation(problem, "x") == expected


def test_a_folder_without_recipes_is_an_error(folder, capsys):
    (folder / "empty").mkdir()
    assert main.run(["validate", "empty"]) == 1
    assert "no recipe in empty" in capsys.readouterr().err


def test_a_missing_file_is_an_error(folder, capsys):
    assert main.run(["validate", "nope.yaml"]) == 1
    assert "error: no such file: nope.yaml\n1 recipe: 1 with 1 error" in capsys.readouterr().err


def test_nothing_to_validate_is_wrong_usage(capsys):
    assert main.run(["validate"]) == 2
    assert main.run(["validate", "x.yaml", "--format", "xml"]) == 2


def test_an_unknown_word_is_wrong_usage_with_a_suggestion(capsys):
    assert main.run(["validat", "x"]) == 2
    assert "Did you mean 'validate'?" in capsys.readouterr().err


def test_a_recipe_without_a_subcommand_is_run(folder, monkeypatch):
    called = []

    @click.command()
    @click.argument("recipe")
    @click.option("--set", "sets", multiple=True)
    def command(recipe, sets):
        called.append((recipe, sets))

    monkeypatch.setitem(main.COMMANDS, "run", ("fake_run", "Run."))
    monkeypatch.setitem(sys.modules, "fake_run", type(sys)("fake_run"))
    sys.modules["fake_run"].command = command
    assert main.run(["recipes/good.yaml", "--set", "seed=1"]) == 0
    assert main.run(["nowhere.yaml"]) == 0
    assert main.run(["recipes/notes.txt"]) == 0
    assert called == [("recipes/good.yaml", ("seed=1",)), ("nowhere.yaml", ()), ("recipes/notes.txt", ())]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("broken"), 3, "This is a bug in sftrun. Please report it"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_an_outcome_becomes_an_exit_code(monkeypatch, capfd, raised, code, said):
    def command(*_, **__):
        raise raised

    monkeypatch.setattr(main.cli, "main", command)
    assert main.run(["validate", "a b.yaml"]) == code
    err = capfd.readouterr().err
    assert said in err
    assert ("Traceback" in err) == (code == 3)
    assert code != 3 or "command: sftrun validate 'a b.yaml'" in err


def test_a_closed_pipe_is_not_a_bug():
    process = subprocess.run(
        f"{sys.executable} -m sftrun schema | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert process.stdout == "{\n"
    assert process.stderr == ""


def test_an_ascii_terminal_is_enough():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    out = subprocess.run([sys.executable, "-m", "sftrun", "schema"], capture_output=True, env=environment, check=True)
    assert json.loads(out.stdout)["title"] == "sftrun recipe"


def test_help_lists_every_command(capsys):
    assert main.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in main.COMMANDS)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_of_the_table_exists(name, capsys):
    assert main.run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: sftrun {name}")


def test_text_is_plain_without_a_terminal(folder):
    process = subprocess.run(
        [sys.executable, "-m", "sftrun", "validate", "recipes"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "\x1b" not in process.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_text_is_coloured_on_a_terminal_unless_no_color_is_set(folder, no_color):
    controller, terminal = os.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    subprocess.run(
        [sys.executable, "-m", "sftrun", "validate", "recipes"], stderr=terminal, env=environment, check=False
    )
    os.close(terminal)
    said = os.read(controller, 100_000).decode()
    os.close(controller)
    assert ("\x1b[" in said) == (not no_color)
    assert "unknown key 'epohcs' in train" in said


def test_control_characters_in_messages_cannot_control_a_terminal():
    assert "\x1b" not in show.text(Problem("a \x1b[31m b", Place("f\x1b", 1, 1, 1, "\x1b[2J")))


def test_a_long_line_is_cut_around_the_caret():
    text = show.text(Problem("x", Place("f", 1, 1001, 3, "a" * 1000 + "bcd" + "e" * 1000)))
    source, caret = text.splitlines()[1:]
    assert len(source) < 200
    assert source[caret.index("^") : caret.index("^") + 3] == "bcd"


def test_paths_outside_the_current_directory_are_absolute(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder / "recipes" / "more")
    main.run(["validate", "bad.yml", str(Path("..", "_part.yaml"))])
    err = capsys.readouterr().err
    assert err.startswith("bad.yml:3:9: ")
    assert f"\n{folder}/recipes/_part.yaml:1:1: " in err
