"""Plugins: found, checked, and harmless when they are broken. Each is a tiny distribution on the import path."""

import json
import os
import subprocess
import sys
import types

import pytest

from sftrun import api_changes, hookspecs
from sftrun.api_changes import Change
from sftrun.errors import UserError
from sftrun.kinds import OPTIONAL, PROTOCOLS
from sftrun.options import Use
from sftrun.recipe.checks import of_component
from sftrun.recipe.validate import load
from sftrun.registry import Registry, current
from sftrun.testing import check_plugin

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
    def apply(self, conversations, context): yield from conversations
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
    def choose(self, spans): return [span.generated for span in spans]
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
        "needs API version 99, and this sftrun has 1: upgrade sftrun",
    ),
    "no-api": (HOOK.replace("SFTRUN_API = 1", ""), "declares no API version; add SFTRUN_API = 1"),
    "no-hook": ("SFTRUN_API = 1\n", "registers nothing"),
    "bad-options": (HOOK.replace("Thing)", "Thing, options=object)"), "TypeError"),
    "raises-in-hook": (
        HOOK.replace('register("thing", Thing)', 'register("thing", Thing); 1 / 0'),
        "ZeroDivisionError",
    ),
    "lacks-a-method": (HOOK.replace("def choose", "def _choose"), "the masker 'thing' lacks the method choose()"),
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
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path]), **environment},
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
        "warnings": [],
    }
    assert [(broken["module"], broken["distribution"]) for broken in data["broken"]] == [
        ("plugin_broken", "plugin-broken")
    ]


METHODS = {kind: [name for name in vars(PROTOCOLS[kind]) if not name.startswith("_")] for kind in hookspecs.KINDS}


def module(factory, kind="masker", api=1):
    """Returns a plugin module that registers a component."""
    found = types.ModuleType("thing_plugin")
    found.SFTRUN_API = api

    def register(register):
        register("thing", factory, description="A thing.")

    setattr(found, f"register_{kind}s", hookspecs.hookimpl(register, specname=f"register_{kind}s"))
    return found


def thing(kind="masker", **own):
    """Returns a class with the methods of a kind, and more of its own."""
    methods = {name: lambda self, *given: [] for name in METHODS[kind]}
    return type("Thing", (), {**methods, **own})


def loaded(factory, kind="masker", api=1):
    """Returns a registry that has loaded one more plugin, and the reason if the plugin is broken."""
    registry = Registry()
    registry.load("thing_plugin", "sftrun-thing", "1.2", lambda: module(factory, kind, api))
    reasons = [broken.reason for broken in registry.broken if broken.module == "thing_plugin"]
    return registry, reasons[0] if reasons else None


@pytest.mark.parametrize("kind", hookspecs.KINDS)
def test_a_component_with_its_methods_and_private_helpers_is_taken(kind):
    helpers = {f"_{name}": None for name in ("check", "chek_recipe", "ready", *OPTIONAL[kind])}
    registry, reason = loaded(thing(kind, **helpers), kind)
    assert reason is None
    assert "thing" in registry.components[kind]


@pytest.mark.parametrize("kind", hookspecs.KINDS)
def test_each_missing_method_of_a_component_is_named(kind):
    for name in METHODS[kind]:
        _, reason = loaded(thing(kind, **{name: None}), kind)
        assert reason == f"ValueError: the {kind} 'thing' lacks the method {name}()"


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        ("masker", "prepare", "check_prepared"),
        ("masker", "check_prepare", "check_prepared"),
        ("source", "check_machin", "check_machine"),
        ("tracker", "machine", "check_machine"),
        ("formatter", "chek_recipe", "check_recipe"),
        ("backend", "honour", "honours"),
        ("backend", "honors", "honours"),
        ("backend", "estimates", "estimate"),
        ("backend", "distribute", "distributed"),
        ("masker", "narow", "narrow"),
        ("masker", "honour_flags", "honours_flags"),
        ("transform", "finger_print", "fingerprint"),
        ("metric", "higher_is_beter", "higher_is_better"),
        ("metric", "per_rows", "per_row"),
    ],
)
def test_a_name_that_is_nearly_an_optional_one_is_an_error_with_a_suggestion(kind, wrong, meant):
    registry, reason = loaded(thing(kind, **{wrong: None}), kind)
    assert "thing" not in registry.components[kind]
    assert reason == (
        f"ValueError: the {kind} 'thing' has '{wrong}', which nothing calls; did you mean '{meant}'? "
        f"(if it is your own name, begin it with an underscore)"
    )


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("masker", "check", "check_recipe"),
        ("source", "ready", "check_machine"),
        ("evaluator", "prepared", "check_prepared"),
        ("backend", "launches", "distributed"),
        ("masker", "reads_train", "honours_flags"),
    ],
)
def test_a_name_that_drafts_of_the_api_had_is_an_error_with_the_new_one(kind, old, new):
    _, reason = loaded(thing(kind, **{old: None}), kind)
    assert reason == (
        f"ValueError: the {kind} 'thing' has '{old}', which API version 1 has removed; use '{new}' instead"
    )


@pytest.fixture
def second_version(monkeypatch):
    """Makes this sftrun one with API version 2, which deprecates, adds and removes a method of maskers."""
    current()  # the registry of other tests is of version 1
    monkeypatch.setattr(hookspecs, "API_VERSION", 2)
    changes = (
        Change(2, "deprecated", "masker.narrow", "cut"),
        Change(2, "added", "masker.cut"),
        Change(2, "removed", "masker.trim", "cut"),
    )
    monkeypatch.setattr(api_changes, "CHANGES", (*api_changes.CHANGES, *changes))
    monkeypatch.setitem(OPTIONAL, "masker", (*OPTIONAL["masker"], "cut"))


DEPRECATED = "has 'narrow', which is deprecated since API version 2; use 'cut' instead"


@pytest.mark.usefixtures("second_version")
@pytest.mark.parametrize("api", [1, 2])
def test_a_plugin_that_uses_what_is_deprecated_is_taken_with_a_warning(api):
    registry, reason = loaded(thing(narrow=lambda self, text: []), api=api)
    assert reason is None
    item = registry.components["masker"]["thing"]
    assert (item.api, item.warnings) == (api, (DEPRECATED,))
    (warned,) = registry.warnings("masker", "thing")
    assert str(warned) == (
        f"warning: the masker 'thing' of sftrun-thing 1.2 {DEPRECATED}; upgrade sftrun-thing, or tell its authors"
    )


@pytest.mark.usefixtures("second_version")
def test_a_plugin_of_an_older_version_that_uses_nothing_deprecated_is_taken_without_a_word():
    registry, reason = loaded(thing(check_recipe=lambda self, recipe: []))
    assert reason is None
    assert registry.warnings("masker", "thing") == []


@pytest.mark.usefixtures("second_version")
def test_a_plugins_own_method_that_a_later_version_calls_is_a_warning():
    registry, reason = loaded(thing(cut=lambda self: None))
    assert reason is None
    assert registry.components["masker"]["thing"].warnings == (
        "has 'cut', which sftrun calls since API version 2; declare SFTRUN_API = 2 if it is meant, or rename it",
    )
    registry, _ = loaded(thing(cut=lambda self: None), api=2)
    assert registry.components["masker"]["thing"].warnings == ()


@pytest.mark.usefixtures("second_version")
def test_a_name_that_is_nearly_one_of_a_later_version_breaks_no_older_plugin():
    assert loaded(thing(cuts=lambda self: None))[1] is None
    assert "did you mean 'cut'?" in loaded(thing(cuts=lambda self: None), api=2)[1]


@pytest.mark.usefixtures("second_version")
def test_what_a_later_version_has_removed_breaks_the_plugin():
    _, reason = loaded(thing(trim=lambda self: None))
    assert reason == ("ValueError: the masker 'thing' has 'trim', which API version 2 has removed; use 'cut' instead")


def test_a_version_that_is_no_longer_supported_is_refused(monkeypatch):
    monkeypatch.setattr(hookspecs, "API_VERSION", 3)
    monkeypatch.setattr(hookspecs, "OLDEST_API_VERSION", 2)
    assert loaded(thing())[1] == "ValueError: thing_plugin needs API version 1; this sftrun supports 2 and newer"
    assert loaded(thing(), api=2)[1] is None


@pytest.mark.usefixtures("second_version")
def test_validate_warns_of_a_deprecated_component_that_a_recipe_uses(write):
    recipe = load(write([{"user": "a", "assistant": "b"}]))
    registry, _ = loaded(thing(narrow=lambda self, text: []))
    (warned,) = of_component("masker", Use(use="thing"), recipe, registry)
    assert warned.severity == "warning"
    assert DEPRECATED in warned.message


@pytest.mark.usefixtures("second_version")
def test_a_component_that_is_imported_late_is_checked_when_it_is_made(write, monkeypatch):
    recipe = load(write([{"user": "a", "assistant": "b"}]))
    late = types.ModuleType("thing_work")
    monkeypatch.setitem(sys.modules, "thing_work", late)
    late.Thing = thing(narrow=lambda self, text: [])
    registry, _ = loaded("thing_work:Thing")
    assert DEPRECATED in of_component("masker", Use(use="thing"), recipe, registry)[0].message
    late.Thing = thing(chek_recipe=None)
    (problem,) = of_component("masker", Use(use="thing"), recipe, registry)
    assert problem.severity == "error"
    assert "did you mean 'check_recipe'?" in problem.message
    assert "sftrun-thing 1.2" in problem.hint


def test_the_list_shows_warnings(sftrun, monkeypatch, second_version):
    registry, _ = loaded(thing(narrow=lambda self, text: []))
    monkeypatch.setattr("sftrun.cli.plugins.current", lambda: registry)
    assert f"\nwarning: the masker 'thing' of sftrun-thing 1.2 {DEPRECATED}\n" in sftrun("plugins").out
    listed = json.loads(sftrun("plugins", "--json").out)
    assert [item["warnings"] for item in listed["components"] if item["name"] == "thing"] == [[DEPRECATED]]


def test_an_unknown_name_lists_what_is_installed_and_says_where_others_are():
    with pytest.raises(UserError, match=r"unknown masker 'final-answer'; installed are: all, assistant, .*; docs/plu"):
        Registry().get("masker", "final-answer")
    with pytest.raises(UserError, match=r"unknown masker 'asistant'; did you mean 'assistant'\?$"):
        Registry().get("masker", "asistant")


@pytest.mark.usefixtures("second_version")
def test_the_kit_warns_of_what_is_deprecated(monkeypatch):
    plugin = module(thing(narrow=lambda self, text: []))
    monkeypatch.setattr("sftrun.testing.plugin._heavy_imports", lambda name: [])
    with pytest.warns(DeprecationWarning, match="is deprecated since API version 2; use 'cut' instead"):
        check_plugin(plugin)
