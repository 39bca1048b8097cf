"""The system prompt of the training: kept with the run, sent by chat and generate, shown, and switched off."""

import json

import pytest
from conftest import talk

import sftrun as package
from sftrun.recipe.validate import load
from sftrun.runs.persona import add_persona, find_persona

ROWS = [talk(f"{number}?", f"{number}!") for number in range(4)]
STYLE = [{"use": "style", "with": {"prompt": "Answer like a pirate."}}]
USER = {"role": "user", "content": "Who are you?"}


def persona_of(sftrun, recipe, folder):
    said = sftrun("prepare", recipe, "--out", folder)
    assert said.code == 0, said.err
    return find_persona(load(recipe), json.loads((folder / "prepared/stats.json").read_text()))


def with_system(*prompts):
    return [talk(f"{number}?", "yes", system=prompt) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("rows", "transforms", "persona"),
    [
        (ROWS, STYLE, "Answer like a pirate."),
        (with_system("Be kind.", "Be kind.", "Be terse."), [], "Be kind."),
        (with_system("Be kind.", "Be kind.", None), [], None),
        (with_system("a", "b", "c"), [], None),
        (ROWS, [], None),
    ],
    ids=["style", "common", "not-all", "different", "none"],
)
def test_the_persona_is_what_the_rows_begin_with(sftrun, write, tmp_path, rows, transforms, persona):
    assert persona_of(sftrun, write(rows, transforms=transforms), tmp_path / "out") == persona


def test_a_system_prompt_that_is_given_comes_before_the_persona():
    own = [{"role": "system", "content": "Be terse."}, USER]
    assert add_persona(own, "Be kind.") == own
    assert add_persona([USER], "Be kind.") == [{"role": "system", "content": "Be kind."}, USER]
    assert add_persona([USER], None) == [USER]


def test_chat_and_generate_send_the_persona_and_show_it(sftrun, write, tmp_path, monkeypatch):
    sent = []

    class Recorder:
        def __call__(self, messages):
            sent.append([message["role"] for message in messages])
            return [1]

    out = tmp_path / "out"
    assert sftrun(write(ROWS, transforms=STYLE, train={"max_steps": 1}), "--out", out).code == 0
    monkeypatch.setattr("sftrun.data.asking.prompt_encoder", lambda model: Recorder())
    (tmp_path / "prompts.txt").write_text("Who are you?\n")
    short = ("--max-new-tokens", 1)
    said = sftrun("generate", out, tmp_path / "prompts.txt", *short)
    assert "system prompt of the training: 'Answer like a pirate.' (--no-system leaves it out)" in said.err
    sftrun("generate", out, tmp_path / "prompts.txt", "--no-system", *short)
    package.generate(out, [[USER]], package.types.Decoding(max_new_tokens=1))
    package.generate(out, [[USER]], package.types.Decoding(max_new_tokens=1), persona=False)
    assert sent == [["system", "user"], ["user"], ["system", "user"], ["user"]]
    assert '{"role": "system", "content": "Answer like a pirate."}' in (out / "README.md").read_text()
    assert "Answer like a pirate." in (out / "report.html").read_text()
