"""Plugins that raise anything, print, or register nonsense: named, and no command falls over them."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import talk, wait_for

GOOD = """
import sftrun
SFTRUN_API = 1
class Thing:
    \"\"\"A thing.\"\"\"
    def choose(self, spans): return [span.generated for span in spans]
@sftrun.hookimpl
def register_maskers(register):
    register("thing", Thing)
"""
BASE = """
class Boom(BaseException):
    pass
class Mute(Exception):
    def __str__(self):
        raise BaseException("no words")
"""
CHECKED = GOOD + BASE + "Thing.check_recipe = lambda self, recipe: {body}\n" + BASE + "def fail(error): raise error\n"
BROKEN = {
    "base": (BASE + "raise Boom('bang')", "Boom: bang"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
    "mute": (BASE + "raise Mute", "Mute: its message cannot be read (BaseException)"),
    "hook": (BASE + GOOD.replace('register("thing", Thing)', "raise Boom('bang')"), "Boom: bang"),
    "number": (GOOD.replace('"thing"', "3"), "ValueError: register_maskers was given a name that is no text: int"),
    "nameless": (GOOD.replace('"thing"', '" "'), "ValueError: register_maskers was given a name that is no text: str"),
    "factory": (GOOD.replace("Thing)", "5)"), "ValueError: the masker 'thing' is neither a class nor text"),
    "escape": ("raise ValueError('\\x1b]0;owned\\x07')", "ValueError: \\x1b]0;owned\\x07"),
}
RECIPE = "model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: data}}\n"


@pytest.fixture
def plugin(tmp_path):
    """Installs one plugin, and returns a function that runs `sftrun` with it."""
    site = tmp_path / "site"
    (site / "plugin_bad-1.2.dist-info").mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def install(source):
        (site / "plugin_bad.py").write_text(source)
        info = site / "plugin_bad-1.2.dist-info"
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-bad\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[sftrun]\nbad = plugin_bad\n")

        def run(*args, start=subprocess.run, **more):
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
            command = [sys.executable, "-m", "sftrun", *args]
            return start(command, cwd=tmp_path, env=environment, text=True, **more)

        return run

    return install


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_a_plugin_raises_it_is_named_and_commands_go_on(plugin, name):
    source, reason = BROKEN[name]
    sftrun = plugin(source)
    listed = sftrun("plugins", capture_output=True)
    assert (listed.returncode, listed.stderr) == (0, "")
    (line,) = (line for line in listed.stdout.splitlines() if line.startswith("broken: "))
    assert line.startswith(f"broken: plugin_bad of plugin-bad 1.2: {reason}".rstrip())
    done = sftrun("validate", "recipe.yaml", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "1 recipe: 1 fine\n")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("fail(Boom('bang'))", "Boom: bang"),
        ("fail(SystemExit(0))", "SystemExit: 0"),
        ("fail(Mute())", "Mute: its message cannot be read"),
        ("None", "TypeError"),
        ("['too hot']", "TypeError: check_recipe must yield sftrun.Problem, not str"),
    ],
)
def test_a_check_that_raises_anything_is_one_message(plugin, tmp_path, body, reason):
    sftrun = plugin(CHECKED.replace("{body}", body))
    (tmp_path / "recipe.yaml").write_text(RECIPE + "masker: thing\n")
    done = sftrun("validate", "recipe.yaml", capture_output=True)
    assert done.returncode == 1
    assert f"the masker 'thing' failed while checking the recipe: {reason}" in done.stderr
    assert "this is a bug in plugin-bad 1.2, not in the recipe" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_plugin_prints_is_not_in_the_json(plugin, tmp_path):
    prints = 'print("at import")\n' + GOOD.replace(
        "def choose",
        'def __init__(self): print("made")\n    def check_recipe(self, r): print("checked"); return []\n    def choose',
    )
    sftrun = plugin(prints)
    (tmp_path / "recipe.yaml").write_text(RECIPE + "masker: thing\n")
    done = sftrun("validate", "recipe.yaml", "--format", "json", capture_output=True)
    assert json.loads(done.stdout)["errors"] == 0
    assert {"at import", "made", "checked"} <= set(done.stderr.splitlines())
    listed = json.loads(sftrun("plugins", "--json", capture_output=True).stdout)
    assert listed["broken"] == []


TALKS = """
import sftrun
SFTRUN_API = 1
class Talks:
    \"\"\"A transform that prints.\"\"\"
    def apply(self, conversations, context):
        print("talking")
        yield from conversations
@sftrun.hookimpl
def register_transforms(register):
    register("talks", Talks)
"""


@pytest.mark.parametrize("words", [["inspect", "recipe.yaml", "--json"], ["prepare", "recipe.yaml", "--json"]])
def test_what_a_plugin_prints_while_it_works_is_not_in_the_json(plugin, tmp_path, words):
    sftrun = plugin(TALKS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(talk("hi", "ho")) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE + "transforms: [talks]\n")
    done = sftrun(*words, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert "talking" in done.stderr


def test_ctrl_c_while_a_plugin_is_imported_ends_the_command(plugin, tmp_path, ctrl_c):
    sftrun = plugin("import pathlib, time\npathlib.Path('here').touch()\ntime.sleep(60)\n")
    process = sftrun("plugins", start=subprocess.Popen, stderr=subprocess.PIPE)
    wait_for((tmp_path / "here").exists)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said.strip()) == (130, "interrupted")
