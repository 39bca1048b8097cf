"""Plugins: found, checked, and harmless when they are broken. Each is a tiny distribution on the import path."""

import json
import os
import subprocess
import sys

import pytest

GOOD = """
\"\"\"A plugin with options.\"\"\"
from typing import Annotated
import sftrun

SFTRUN_API = 1

class ShoutOptions(sftrun.Options):
    \"\"\"How loud.\"\"\"
    volume: Annotated[int, sftrun.Meta(ge=1, description="How loud.")]
    key: Annotated[sftrun.SecretText, sftrun.Meta(description="A secret.")] = "${env:SHOUT_KEY}"

class Shout:
    \"\"\"Makes everything loud.\"\"\"
    def __init__(self, options): self.options = options
    def check_recipe(self, recipe):
        if self.options.volume > recipe.model.max_seq_len:
            yield sftrun.Problem("too loud for the model", path=("model", "max_seq_len"))
        if self.options.volume == 13:
            raise RuntimeError("unlucky")

@sftrun.hookimpl
def register_transforms(register):
    register("shout", Shout, options=ShoutOptions)
"""

HOOK = """
import sftrun
SFTRUN_API = 1
class Thing:
    \"\"\"A thing.\"\"\"
@sftrun.hookimpl
def register_maskers(register):
    register("thing", Thing)
"""

BROKEN = {
    "no-import": ("import no_such_module\n" + HOOK, "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("def (:\n", "SyntaxError: invalid syntax"),
    "exits": ("import sys\nsys.exit(7)\n", "SystemExit: 7"),
    "raises": ("raise ValueError('first\\nsecond')\n", "ValueError: first"),
    "misspelled": (HOOK.replace("register_maskers", "register_masker"), "register_masker"),
    "wrong-api": (
        HOOK.replace("SFTRUN_API = 1", "SFTRUN_API = 99"),
        "was written for API version 99; this sftrun has 1",
    ),
    "no-api": (HOOK.replace("SFTRUN_API = 1", ""), "declares no API version; add SFTRUN_API = 1"),
    "no-hook": ("SFTRUN_API = 1\n", "registers nothing"),
    "bad-options": (HOOK.replace("Thing)", "Thing, options=object)"), "TypeError"),
    "raises-in-hook": (
        HOOK.replace('register("thing", Thing)', 'register("thing", Thing); 1 / 0'),
        "ZeroDivisionError",
    ),
}

RECIPE = "model: {name: sftrun/tiny}\nsource: {use: jsonl, with: {path: data}}\n"


@pytest.fixture
def plugins(tmp_path):
    """Installs plugins (name to source), and runs `sftrun` with them."""
    site = tmp_path / "site"
    site.mkdir()

    def install(**sources):
        for name, source in sources.items():
            module = f"plugin_{name}"
            (site / f"{module}.py").write_text(source)
            info = site / f"{module}-1.2.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.2\n")
            (info / "entry_points.txt").write_text(f"[sftrun]\n{name} = {module}\n")

    def run(*args, **environment):
        process = subprocess.run(
            [sys.executable, "-m", "sftrun", *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in process.stderr
        return process

    install.run = run
    install.write = lambda text, name="recipe.yaml": (tmp_path / name).write_text(text)
    return install


def test_a_plugin_is_listed_with_its_distribution(plugins):
    plugins(good=GOOD)
    listed = plugins.run("plugins").stdout
    assert "transform  shout" in listed
    assert "plugin-good 1.2  Makes everything loud." in listed


def test_a_plugins_options_are_in_the_schema_and_not_in_that_of_the_builtins(plugins):
    plugins(good=GOOD)
    assert '"volume"' in plugins.run("schema").stdout
    assert '"volume"' not in plugins.run("schema", "--builtin").stdout
    assert json.loads(plugins.run("schema").stdout)["title"] == "sftrun recipe"


def test_a_plugins_options_are_validated(plugins):
    plugins(good=GOOD)
    plugins.write(RECIPE + "transforms: [shout, {use: shout, with: {volume: 0, volum: 1}}]\n")
    said = plugins.run("validate", "recipe.yaml").stderr
    assert "missing key 'volume' in transforms.0.with; write {use: shout, with: {volume: …}}" in said
    assert "transforms.1.with.volume must be at least 1, not 0" in said
    assert "unknown key 'volum' in transforms.1.with; did you mean 'volume'?" in said


def test_a_secret_is_never_written_down_nor_shown(plugins):
    plugins(good=GOOD)
    plugins.write(RECIPE + "transforms: [{use: shout, with: {volume: 1, key: hunter2}}]\n")
    for args in ([], ["--set", "transforms.0.with.key=hunter2"]):
        done = plugins.run("validate", "recipe.yaml", *args)
        assert done.returncode == 1
        assert "transforms.0.with.key is a secret and must not be written out; write ${env:NAME}" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout
    plugins.write(RECIPE + "transforms: [{use: shout, with: {volume: 1, key: '${env:A}${env:B}'}}]\n")
    assert "is a secret and must not be written out" in plugins.run("validate", "recipe.yaml").stderr
    plugins.write(RECIPE + "transforms: [{use: shout, with: {volume: 1, key: '${env:NOT_SET_HERE}'}}]\n")
    assert plugins.run("validate", "recipe.yaml").returncode == 0


def test_a_component_has_its_say_about_the_recipe(plugins):
    plugins(good=GOOD)
    plugins.write(RECIPE + "transforms: [{use: shout, with: {volume: 9999}}]\n")
    said = plugins.run("validate", "recipe.yaml", SHOUT_KEY="x").stderr
    assert "recipe.yaml:1:1: error: too loud for the model" in said
    plugins.write(RECIPE + "transforms: [{use: shout, with: {volume: 13}}]\n")
    said = plugins.run("validate", "recipe.yaml", SHOUT_KEY="x").stderr
    assert "the transform 'shout' failed while checking the recipe: RuntimeError: unlucky" in said
    assert "this is a bug in plugin-good 1.2, not in the recipe" in said


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_said_and_harms_no_other(plugins, name):
    source, reason = BROKEN[name]
    plugins(broken=source, good=GOOD)
    listed = plugins.run("plugins")
    assert listed.returncode == 0
    (line,) = (line for line in listed.stdout.splitlines() if line.startswith("broken: "))
    assert line.startswith("broken: plugin_broken of plugin-broken 1.2: ")
    assert reason in line
    assert "shout" in listed.stdout
    assert "A thing." not in listed.stdout
    plugins.write(RECIPE)
    assert plugins.run("validate", "recipe.yaml").stderr == "1 recipe: 1 fine\n"


def test_a_broken_plugin_is_said_where_its_component_is_missing(plugins):
    plugins(broken=BROKEN["no-import"][0])
    plugins.write(RECIPE + "masker: thing\n")
    said = plugins.run("validate", "recipe.yaml").stderr
    assert "recipe.yaml:3:9: error: unknown masker 'thing'" in said
    assert "the plugin plugin_broken of plugin-broken is broken: ModuleNotFoundError" in said


def test_two_plugins_with_one_name_are_an_error_only_for_who_uses_it(plugins):
    plugins(one=HOOK, two=HOOK)
    both = "plugin_one of plugin-one 1.2 and plugin_two of plugin-two 1.2"
    assert f"clash: two plugins register the masker 'thing': {both}" in plugins.run("plugins").stdout
    plugins.write(RECIPE + "masker: thing\n")
    said = plugins.run("validate", "recipe.yaml")
    assert said.returncode == 1
    assert f"two plugins register the masker 'thing': {both}; uninstall one of the two" in said.stderr
    plugins.write(RECIPE)
    assert plugins.run("validate", "recipe.yaml").returncode == 0


def test_a_builtins_name_cannot_be_taken(plugins):
    plugins(mine=HOOK.replace('"thing"', '"assistant"'))
    plugins.write(RECIPE)
    assert "two plugins register the masker 'assistant'" in plugins.run("plugins").stdout


def test_a_factory_that_cannot_be_imported_here_is_a_warning(plugins):
    late = HOOK.replace('register("thing", Thing)', 'register("thing", "no_such_module:Thing", description="Late.")')
    plugins(late=late)
    plugins.write(RECIPE + "masker: thing\n")
    done = plugins.run("validate", "recipe.yaml")
    assert done.returncode == 0
    assert "warning: the masker 'thing' cannot be checked here: No module named 'no_such_module'" in done.stderr


def test_the_list_is_json_when_asked(plugins):
    plugins(good=GOOD, broken=BROKEN["syntax"][0])
    data = json.loads(plugins.run("plugins", "--json").stdout)
    (shout,) = (item for item in data["components"] if item["name"] == "shout")
    assert shout == {
        "kind": "transform",
        "name": "shout",
        "distribution": "plugin-good",
        "version": "1.2",
        "description": "Makes everything loud.",
        "clash": None,
    }
    assert [(broken["module"], broken["distribution"]) for broken in data["broken"]] == [
        ("plugin_broken", "plugin-broken")
    ]
