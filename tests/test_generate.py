"""`sftrun generate` writes answers as they are made, and evaluation reports its progress."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import talk, wait_for

from sftrun.flow import run

ROWS = {"train": [talk("hi", "ho")] * 4, "val": [talk(f"What comes after {number}?", "1") for number in range(5)]}
KEYS = {
    "model": {"name": "sftrun/tiny", "max_seq_len": 128},
    "source": {"use": "jsonl", "with": {"path": "."}},
    "train": {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"},
    "evaluators": [{"use": "generation", "with": {"metrics": ["exact_match"], "max_new_tokens": 2, "batch_size": 2}}],
}
MANY = 400


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    for split, rows in ROWS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(json.dumps(KEYS))
    return run(folder / "recipe.yaml", out=folder / "out")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"What comes after {number}?\n" for number in range(MANY)))
    return file


def test_evaluation_reports_each_evaluator_and_the_answers_so_far(trained):
    seen = [event for event in trained.events() if event["event"] in ("evaluating", "answered")]
    named = [(event["which"], event.get("evaluator")) for event in seen if event["event"] == "evaluating"]
    assert named == [("base", None), ("base", "generation"), ("tuned", None), ("tuned", "generation")]
    last = {event["which"]: (event["done"], event["total"]) for event in seen if event["event"] == "answered"}
    assert last == {"base": (5, 5), "tuned": (5, 5)}


def test_ctrl_c_keeps_the_answers_that_are_made_and_says_how_many(trained, prompts, tmp_path, ctrl_c):
    out = tmp_path / "answers.jsonl"
    words = ["generate", trained.path, prompts, "--out", out, "--batch-size", "2", "--max-new-tokens", "200"]
    command = [sys.executable, "-m", "sftrun", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: out.is_file() and out.read_text())
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < len(rows) < MANY
    assert said.endswith(f"interrupted; {len(rows)} of {MANY} answers are written: {out}\n")
    assert [row["prompt"] for row in rows] == prompts.read_text().splitlines()[: len(rows)]


def test_the_answers_do_not_replace_the_prompts(trained, prompts, sftrun):
    before = prompts.read_text()
    said = sftrun("generate", trained.path, prompts, "--out", prompts)
    assert said.code == 1
    assert "is the file of prompts, which it would replace; name another file" in said.err
    assert prompts.read_text() == before


JSON_LINES = '\ufeff{"prompt": "one\u2028still one", "id": 7}\r\n\n{"messages": [{"role": "user", "content": "two"}]}'
ODD_LINES = {
    "prompts.txt": ("one\u2028still one\r\n\ufefftwo\n\n  \n3\n", ["one\u2028still one", "\ufefftwo", "3"]),
    "bom.txt": ("\ufeffone\ntwo", ["one", "two"]),
    "prompts.jsonl": (JSON_LINES, ["one\u2028still one", "two"]),
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_a_line_of_prompts_ends_where_an_editor_ends_it(tmp_path, name):
    from sftrun.tools.prompts import read_prompts

    text, expected = ODD_LINES[name]
    (tmp_path / name).write_bytes(text.encode())
    found = read_prompts(tmp_path / name)
    assert [prompt.messages[-1]["content"] for prompt in found] == expected
    assert all(prompt.place.file == str(tmp_path / name) for prompt in found)


WRONG_LINES = {
    b'{"messages": [3]}': 'message 0 must be an object with "role" and "content"',
    b'{"messages": [{"content": "hi"}]}': 'message 0 must be an object with "role" and "content"',
    b'{"messages": [{"role": "user", "content": 3}]}': "message 0 has a content that is a int, not a text",
    b'{"messages": []}': 'a line needs "messages" (a list) or "prompt" (a string)',
    b"[1]": 'a line needs "messages" (a list) or "prompt" (a string)',
    b'{"prompt": "\\ud800"}': "half of a surrogate pair",
    b'{"prompt": "a", "prompt": "b"}': "an object has the key 'prompt' twice, at column 17",
    b'{"prompt": "' + b"[" * 10 + b'", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}": "nested more than 200 deep",
    b'{"prompt": "\xff"}': "not UTF-8 text: it has the byte 0xff",
    b'{"prompt": NaN}': "NaN is not JSON",
}


def test_every_line_that_is_no_prompt_is_named_before_a_model_is_loaded(trained, sftrun, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "fine"}\n' + b"\n".join(WRONG_LINES) + b"\n")
    said = sftrun("generate", trained.path, file)
    assert said.code == 1
    for number, expected in enumerate(WRONG_LINES.values(), 2):
        (line,) = [line for line in said.err.splitlines() if f"prompts.jsonl:{number}: error: " in line]
        assert expected in line
    assert said.out == ""


def test_messages_that_the_template_refuses_are_named_with_their_line(trained, sftrun, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n')
    said = sftrun("generate", trained.path, file)
    assert said.code == 1, said
    assert "prompts.jsonl:2: error: these messages cannot be answered" in said.err


def test_bytes_that_are_no_text_do_not_end_a_chat(trained):
    words = [sys.executable, "-m", "sftrun", "chat", str(trained.path), "--max-new-tokens", "4"]
    env = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(words, input=b"hi\n\xff\xfe\nhi\n", capture_output=True, check=False, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert b"this line is not text in the terminal's encoding, and was not sent" in done.stderr
    assert len(done.stdout.splitlines()) >= 2
