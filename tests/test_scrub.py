"""Secrets reach no output, and texts from outside do not command the terminal."""

import json
import os
import pty
import subprocess
import sys

import pytest
from conftest import talk

from sftrun import flow, hookimpl, scrub
from sftrun.options import Options, SecretText
from sftrun.registry import current

SFTRUN_API = 1
SECRET = 'sk-"live"<1>'
ESCAPE = "\x1b]0;owned\x07\x1b[2Jred \u202etxt"


class LeakyOptions(Options):
    """What it needs to know."""

    api_key: SecretText = ""
    volume: int = 1


class Leaky:
    """A transform whose error holds its secret."""

    def __init__(self, options):
        self.options = options

    def apply(self, conversations, context):
        raise RuntimeError(f"401 for {self.options.api_key}")
        yield


@hookimpl
def register_transforms(register):
    register("leaky", Leaky, options=LeakyOptions)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(scrub, "_used", set())
    monkeypatch.setattr(scrub, "_literal", set())


@pytest.fixture
def leaky():
    current().load(__name__, "leaky", "1", lambda: sys.modules[__name__])
    yield
    del current().components["transform"]["leaky"]


LEAKS = {
    "an error on the same line": "transforms: [{use: leaky, with: {api_key: sk-live-1, volume: x}}]",
    "a typo in the key": "transforms: [{use: leaky, with: {api_kye: sk-live-1}}]",
    "a key beside with": "transforms: [{use: leaky, api_key: sk-live-1}]",
    "an unknown component": "transforms: [{use: leeky, with: {api_key: sk-live-1}}]",
    "a key written twice": "transforms: [{use: leaky, with: {api_key: sk-live-1, api_key: sk-live-2}}]",
    "an unclosed quote": 'transforms: [{use: leaky, with: {api_key: "sk-live-1}}]',
    "a tab": "transforms: [{use: leaky, with: {api_key: sk-live-1}}]\n\tseed: 1",
    "a misplaced list": "transforms: [{use: leaky, with: {api_key: [sk-live-1], volume: sk-live}}]",
}


@pytest.mark.parametrize("line", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_a_secret_in_a_wrong_recipe_is_not_printed(sftrun, leaky, tmp_path, line, form):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: {{name: sftrun/tiny}}\nsource: {{use: jsonl, with: {{path: x}}}}\n{line}\n")
    said = sftrun("validate", "--format", form, file)
    assert said.code == 1
    assert "sk-live-" not in said.out + said.err


@pytest.mark.parametrize("key", ["api_key", "api_kye"])
def test_a_secret_in_an_override_is_not_printed(sftrun, leaky, write, key):
    file = write([talk("2+2?", "4")], transforms=[{"use": "leaky"}])
    said = sftrun("validate", file, "--set", f"transforms.0.with.{key}=sk-live-1")
    assert said.code == 1
    assert "sk-live-" not in said.out + said.err


@pytest.mark.parametrize("secret", [SECRET, "hunter2"])
def test_a_secret_in_an_exception_reaches_no_output(sftrun, leaky, write, tmp_path, monkeypatch, secret):
    monkeypatch.setenv("LEAKY_VALUE", secret)
    transforms = [{"use": "leaky", "with": {"api_key": "${env:LEAKY_VALUE}"}}]
    said = sftrun(write([talk("2+2?", "4")] * 4, transforms=transforms), "--out", tmp_path / "run")
    written = "".join(file.read_text() for file in (tmp_path / "run").iterdir() if file.is_file())
    assert said.code == 3
    assert "401 for ${env:LEAKY_VALUE}" in said.err
    assert "401 for ${env:LEAKY_VALUE}" in written
    for form in (secret, json.dumps(secret)[1:-1]):
        assert form not in said.out + said.err + written


def test_a_secret_in_an_exception_of_a_worker_reaches_no_output(write, tmp_path, monkeypatch):
    """The token of the Hub is in the environment of every run; here it stands in the name of the model's folder."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklm")
    run = flow.prepare(write([talk("2+2?", "4")] * 4, tuning={"mode": "full"}), out=tmp_path / "run")
    code = "import sys; print('hf_abcdefghijklm', file=sys.stderr); raise RuntimeError('401: hf_abcdefghijklm')"
    (tmp_path / "leaks.py").write_text(f"def job(recipe, run, emit):\n    {code}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    from sftrun.launch import workers

    with pytest.raises(Exception, match="HF_TOKEN"):
        workers.run_in_worker("leaks:job", run, print)
    assert run.log.read_text().startswith("${env:HF_TOKEN}")


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("MY_API_KEY", "abcdefgh", True),
        ("WANDB_API_KEY", "abcdefgh", True),
        ("GITHUB_TOKEN", "abcdefgh", True),
        ("AWS_SECRET_ACCESS_KEY", "abcdefgh", True),
        ("MY_TOKEN", "test", False),
        ("MAX_TOKENS", "abcdefgh", False),
        ("SFTRUN_SET__MODEL__EOT_TOKEN", "abcdefgh", False),
    ],
)
def test_a_variable_is_a_secret_by_its_name(monkeypatch, name, value, hidden):
    monkeypatch.setenv(name, value)
    assert scrub.hide(f"<{value}>") == (f"<${{env:{name}}}>" if hidden else f"<{value}>")


def test_a_path_in_a_variable_stays_readable(monkeypatch):
    monkeypatch.setenv("DATA", "/data/rows")
    scrub.use_variable("DATA")
    assert scrub.hide("no such file: /data/rows/x") == "no such file: /data/rows/x"


# Terminal commands


def in_terminal(*words, **environment):
    """Runs a command line in a terminal, and returns all that it writes to it."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", **environment}
    command = [sys.executable, "-m", "sftrun", *map(str, words)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        written += part
    process.wait()
    os.close(ours)
    return written.decode()


def test_rows_do_not_command_the_terminal(sftrun, write):
    file = write([talk(f"say {ESCAPE}", "4")])
    for written in (sftrun("inspect", file).err, in_terminal("inspect", file)):
        assert "\\u001b]0;owned\\u0007" in written
        assert "\x1b]" not in written
        assert "\x1b[2J" not in written
        assert "\u202e" not in written


def test_data_for_programs_keep_every_character(sftrun, write):
    row = talk("say \x9b31m", "4")
    assert "\x9b31m" in json.loads(sftrun("inspect", write([row]), "--json").out)["text"]


def test_a_broken_plugin_does_not_command_the_terminal(sftrun, monkeypatch):
    from sftrun.registry import Broken

    monkeypatch.setattr(current(), "broken", [Broken("m", "d", "1", f"ImportError: {ESCAPE}")])
    said = sftrun("plugins")
    assert "\x1b" not in said.out
    assert "\\u001b]0;owned\\u0007" in said.out


@pytest.mark.parametrize("command", ["validate", "inspect", "chat", "prepare", "no-such-command\x1b[2J"])
def test_names_of_files_do_not_command_the_terminal(sftrun, tmp_path, command):
    said = sftrun(command, tmp_path / "\x1b[2Jx.yaml")
    assert said.code in (1, 2)
    assert "\x1b" not in said.out + said.err
