"""Tokenizers with several named templates, and tools that a template does not write."""

import json
import shutil

import pytest
from conftest import talk
from conversations import TOOL

from sftrun import tiny
from sftrun.data.tokens.tokenizer import load_tokenizer
from sftrun.recipe.model import ModelOptions

DEFAULT = (tiny.folder() / "chat_template.jinja").read_text("utf-8")
TOOL_USE = "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}" + DEFAULT
NAMED = {"default": DEFAULT, "tool_use": TOOL_USE, "rag": "rag" + DEFAULT}
ROW = {**talk("How warm is it?", "Mild."), "tools": [TOOL]}


@pytest.fixture(params=["config", "files"])
def folder(request, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.folder(), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if request.param == "config":
        (folder / "chat_template.jinja").unlink()
        config["chat_template"] = [{"name": name, "template": source} for name, source in NAMED.items()]
    else:
        (folder / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_rows_with_tools_have_the_template_that_transformers_chooses(sftrun, write, folder):
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [ROW, talk("2+2?", "4")]
    said = sftrun("inspect", write(rows, model={"name": str(folder), "max_seq_len": 1024}), "--json")
    assert said.code == 0, said.err
    assert [json.loads(line)["text"] for line in said.out.splitlines()] == [
        reference.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False) for row in rows
    ]


def test_held_out_prompts_with_tools_have_it_too(sftrun, write, folder, tmp_path):
    recipe = write({"train": [ROW], "val": [ROW]}, model={"name": str(folder), "max_seq_len": 1024})
    assert sftrun("prepare", recipe, "--out", tmp_path / "out").code == 0
    prompt = json.loads((tmp_path / "out/prepared/prompts-val.jsonl").read_text())
    text = load_tokenizer(ModelOptions(name=str(folder))).decode(prompt["ids"], skip_special_tokens=False)
    assert text.startswith("<tool>")


def test_all_named_templates_are_saved(folder, tmp_path):
    import transformers

    (tmp_path / "saved").mkdir()
    load_tokenizer(ModelOptions(name=str(folder))).save(tmp_path / "saved")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == NAMED


def test_a_recipe_may_name_one_of_them(folder, tmp_path):
    (tmp_path / "saved").mkdir()
    tokenizer = load_tokenizer(ModelOptions(name=str(folder), chat_template="rag"))
    tokenizer.save(tmp_path / "saved")
    assert tokenizer.template.source == tokenizer.tool_template.source == NAMED["rag"]
    assert not (tmp_path / "saved" / "additional_chat_templates").exists()


def test_tools_that_the_template_does_not_write_are_refused(sftrun, write, tmp_path):
    said = sftrun("prepare", write([talk("2+2?", "4"), ROW]), "--out", tmp_path / "out")
    assert said.code == 1
    assert "data/train.jsonl:2: error: the chat template of sftrun/tiny does not write the row's tools" in said.err
    assert "set model.chat_template to one that writes tools, or remove the tools from the rows" in said.err


def test_a_tool_that_is_left_out_is_named_even_if_a_message_has_its_name(sftrun, write, tmp_path):
    (tmp_path / "first.jinja").write_text("{{ tools[0] | tojson if tools }}" + DEFAULT)
    other = {"type": "function", "function": {"name": "sing", "parameters": {"type": "object", "properties": {}}}}
    model = {"chat_template": str(tmp_path / "first.jinja")}
    said = sftrun("inspect", write([{**ROW, "tools": [TOOL, other]}], model=model), "--json")
    assert "does not write the row's tools sing;" in said.err
    row = {**talk("find_weather, how warm is it?", "Mild."), "tools": [TOOL]}
    assert "does not write the row's tools;" in sftrun("inspect", write([row]), "--json").err


def test_alpaca_rows_may_have_tools_too(sftrun, write, folder):
    row = {"instruction": "How warm is it?", "output": "Mild.", "tools": json.dumps([TOOL])}
    recipe = write([row], formatter="alpaca", model={"name": str(folder), "max_seq_len": 1024})
    said = sftrun("inspect", recipe, "--json")
    assert json.loads(said.out)["text"].startswith("<tool>")
    assert "does not write the row's tools" in sftrun("inspect", write([row], formatter="alpaca"), "--json").err


def test_a_variable_that_the_template_does_not_read_is_named(sftrun, write, tmp_path):
    row = {**talk("2+2?", "4"), "chat_template_kwargs": {"enable_thinking": False, "tone": "dry"}}
    (tmp_path / "dry.jinja").write_text("{{ tone }}" + DEFAULT)
    recipe = write([talk("a", "b"), row], model={"chat_template": str(tmp_path / "dry.jinja")})
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert said.code == 0
    assert "the chat template does not read the variable enable_thinking, which has no effect; first: " in said.err
    assert "data/train.jsonl:2" in said.err
    assert "the variable tone" not in said.err
