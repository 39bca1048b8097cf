"""Formatters for rows of named columns: `alpaca`, `prompt-completion`, `text` and `columns`; and what all promise."""

import json
import re
import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sftrun
from sftrun import Conversation, RowError, UserError

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
ASK, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def formatted(use, row, **options):
    return sftrun.create("formatter", sftrun.Use(use=use, with_=options)).format(sftrun.Row(row, "a:1"))


def texts(use, row, **options):
    return [f"{message['role']}: {message['content']}" for message in formatted(use, row, **options).messages]


def refused(use, row, **options):
    with pytest.raises(RowError) as caught:
        formatted(use, row, **options)
    return str(caught.value)


ALPACA = {"instruction": "Add.", "input": "2, 2", "output": "4"}


def test_an_input_follows_its_instruction():
    assert texts("alpaca", ALPACA) == ["user: Add.\n\n2, 2", "assistant: 4"]


def test_an_instruction_without_an_input_stands_alone():
    for row in ({"input": ""}, {"input": None}, {"input": " "}):
        assert texts("alpaca", {**ALPACA, **row}) == ["user: Add.", "assistant: 4"]
    assert texts("alpaca", {"instruction": "Hi", "output": "Ho"}) == ["user: Hi", "assistant: Ho"]


def test_how_the_input_is_joined_is_an_option():
    asked = texts("alpaca", ALPACA, prompt="{input}\n{{{instruction}}}")[0]
    assert asked == "user: 2, 2\n{Add.}"


def test_a_row_may_have_a_system_prompt_and_earlier_turns():
    row = {**ALPACA, "system": "Be terse.", "history": [["1+1?", "2"], ["Sure?", "Yes."]]}
    said = ["system: Be terse.", "user: 1+1?", "assistant: 2", "user: Sure?", "assistant: Yes."]
    assert texts("alpaca", row)[:-2] == said
    assert texts("alpaca", {**row, "system": "", "history": []}) == texts("alpaca", ALPACA)


@pytest.mark.parametrize("field", ["instruction", "input", "output", "system", "history"])
def test_columns_of_alpaca_rows_may_have_other_names(field):
    row = {**ALPACA, "system": "s", "history": [["a", "b"]]}
    renamed = {"other" if name == field else name: value for name, value in row.items()}
    assert formatted("alpaca", renamed, fields={field: "other"}) == formatted("alpaca", row)


@pytest.mark.parametrize("field", ["input", "system", "history"])
def test_a_column_that_is_not_to_be_read_is_not(field):
    row = {**ALPACA, "system": "s", "history": [["a", "b"]]}
    rest = {name: value for name, value in row.items() if name != field}
    assert formatted("alpaca", row, fields={field: None}) == formatted("alpaca", rest)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": ""}, "output is empty"),
        ({"output": ["a", "b"]}, "output must be a string, not a list"),
        ({"instruction": None}, "instruction must be a string, not null"),
        ({"history": [["a"]]}, "history[0] must be a pair of texts"),
        ({"history": "a"}, "history must be a list of pairs, not a string"),
        ({"system": 1}, "system must be a string, not the number 1"),
    ],
)
def test_an_alpaca_row_that_does_not_fit_says_why(change, reason):
    assert reason in refused("alpaca", {**ALPACA, **change})


def test_a_missing_column_is_named_with_the_one_that_was_meant():
    said = refused("alpaca", {"instruction": "Add.", "outptu": "4"})
    assert said == "has no column 'output'; its columns: instruction, outptu; did you mean 'outptu'?"


def test_a_prompt_that_leaves_out_the_input_is_an_error_in_the_recipe(sftrun, write):
    for prompt in ("{instruction}", "{instruction} {input} {output}"):
        said = sftrun("validate", write([], formatter={"use": "alpaca", "with": {"prompt": prompt}}))
        assert "error: prompt must name {instruction} and {input}, and no other column" in said.out + said.err


@pytest.mark.skipif(not DATA.is_dir(), reason="the data lies beside the repository only")
@pytest.mark.parametrize(("name", "rows", "asked"), [("alpaca_en_demo", 999, 412), ("identity", 91, 0)])
def test_alpaca_files_are_read_from_end_to_end(name, rows, asked):
    data = json.loads((DATA / "demos" / f"{name}.json").read_text("utf-8"))
    conversations = [formatted("alpaca", row) for row in data]
    assert len(conversations) == rows
    joined = [
        row
        for row, conversation in zip(data, conversations, strict=True)
        if conversation.messages[0]["content"] != row["instruction"]
    ]
    assert len(joined) == asked
    assert all(row["input"] for row in joined)


def test_a_prompt_and_a_completion_are_one_plain_text():
    conversation = formatted("prompt-completion", {"prompt": "2+2=", "completion": "4"})
    said = [{"role": "prompt", "content": "2+2="}, {"role": "completion", "content": "4"}]
    assert conversation == Conversation(said, "a:1", plain=True)


def test_of_messages_the_completion_is_trained_and_the_prompt_is_not():
    tool = {"role": "tool", "content": "7"}
    row = {"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER, tool, {**ANSWER, "weight": 0}, ANSWER]}
    conversation = formatted("prompt-completion", row)
    assert [message["train"] for message in conversation.messages] == [False, False, False, True, False, False, True]
    assert not conversation.plain


def test_messages_of_a_prompt_bring_tools_and_variables():
    row = {"prompt": [ASK], "completion": [ANSWER], "tools": '[{"name": "find"}]', "chat_template_kwargs": {"a": 1}}
    conversation = formatted("prompt-completion", row)
    assert conversation.tools == [{"type": "function", "function": {"name": "find"}}]
    assert conversation.template_kwargs == {"a": 1}


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_prompt_and_completion_may_have_other_names(field):
    row = {"prompt": "2+2=", "completion": "4"}
    renamed = {"other" if name == field else name: value for name, value in row.items()}
    found = formatted("prompt-completion", renamed, fields={field: "other"})
    assert found == formatted("prompt-completion", row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "response": "b"}, "has no column 'completion'; its columns: prompt, response"),
        (
            {"prompt": "a", "completion": [ANSWER]},
            "prompt is a string and completion is a list; both must be texts, or",
        ),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": [], "completion": [ANSWER]}, "prompt is empty"),
        ({"prompt": [ASK], "completion": [ASK]}, "ends on a user turn"),
        (
            {"prompt": [{**ASK, "train": True}], "completion": [ANSWER]},
            "prompt: a message has train: true, but prompts are never trained",
        ),
        ({"prompt": "a", "completion": "b", "tools": [{"name": "f"}]}, "texts are rendered without a chat template"),
    ],
)
def test_a_prompt_and_completion_that_do_not_fit_say_why(row, reason):
    assert reason in refused("prompt-completion", row)


def test_a_text_is_learned_as_it_is():
    assert formatted("text", {"text": " a\n"}) == Conversation([{"role": "text", "content": " a\n"}], "a:1", plain=True)
    assert formatted("text", {"body": "a"}, field="body").messages[0]["content"] == "a"
    assert refused("text", {"text": " "}) == "text is empty; write a text, or remove the row"


@pytest.mark.parametrize("masker", ["assistant", "last-reply"])
def test_a_text_needs_a_masker_that_trains_more_than_the_assistant(sftrun, write, masker):
    said = sftrun("validate", write([], formatter="text", masker=masker))
    assert said.code == 1
    why = f"error: the formatter text writes no assistant turns, and the masker {masker} trains nothing else"
    assert f"{why}; set masker: all" in said.out + said.err


@pytest.mark.parametrize(
    ("row", "keys", "trained"),
    [
        ({"text": "2+2=4"}, {"formatter": "text", "masker": "all"}, "2+2=4<|im_end|>"),
        (
            {"prompt": "2+2=", "completion": "4"},
            {"formatter": "prompt-completion", "masker": "completion"},
            "4<|im_end|>",
        ),
        (
            {"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]},
            {"formatter": "prompt-completion", "masker": "completion"},
            "4<|im_end|>",
        ),
        (ALPACA, {"formatter": "alpaca"}, "4<|im_end|>"),
        (
            ALPACA,
            {"formatter": {"use": "columns", "with": {"user": "{input}", "assistant": "{output}"}}},
            "4<|im_end|>",
        ),
    ],
)
def test_what_is_trained_is_what_each_shape_means(sftrun, write, row, keys, trained):
    said = sftrun("inspect", write([row], **keys))
    assert said.code == 0, said.err
    assert "".join(re.findall("⟦(.*?)⟧", said.out + said.err.rpartition("\n(")[0], re.DOTALL)) == trained


ROW = {"title": "Sums", "question": "2+2?", "answer": 4, "hint": "", "share": 0.5, "sure": True, "other": None}


def test_columns_are_told_by_templates():
    told = texts("columns", ROW, user="{title}: {question}", assistant="{{{answer}, {share}, {sure}}}")
    assert told == ["user: Sums: 2+2?", "assistant: {4, 0.5, true}"]


def test_a_system_prompt_whose_columns_are_empty_is_left_out():
    options = {"user": "{question}", "assistant": "{answer}"}
    found = {
        system: len(texts("columns", ROW, system=system, **options)) for system in ("{hint}{other}", "{title}", "s")
    }
    assert found == {"{hint}{other}": 2, "{title}": 3, "s": 3}
    assert refused("columns", ROW, system="{title}: {hint}", **options) == "hint is empty"


def test_columns_may_be_several_turns():
    turns = [("system", "Be terse."), ("user", "{question}"), ("assistant", "{hint}{answer}")]
    turns = [*turns[:2], ("assistant", "{answer}"), ("user", "Sure?"), ("assistant", "{sure}")]
    said = [{"role": role, "content": content} for role, content in turns]
    expected = ["system: Be terse.", "user: 2+2?", "assistant: 4", "user: Sure?", "assistant: true"]
    assert texts("columns", ROW, messages=said) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{anwser}", "has no column 'anwser'; its columns: title, question,"),
        ("{hint}", "hint is empty"),
        ("{other}", "other is empty"),
        ("{list}", "list must be a string, not a list"),
        ("{nan}", "nan holds no number: nan"),
    ],
)
def test_a_column_that_cannot_be_told_says_why(template, reason):
    row = {**ROW, "list": [1], "nan": float("nan")}
    assert reason in refused("columns", row, user="{question}", assistant=template)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "columns needs user and assistant, or messages"),
        ({"user": "{q}"}, "columns needs assistant, or messages"),
        ({"user": "{q", "assistant": "a"}, "not a template of columns: expected '}' before end of string"),
        ({"user": "{q.x}", "assistant": "a"}, "{q.x}: braces must contain the name of a column and nothing else"),
        ({"user": "{q!r}", "assistant": "a"}, "braces must contain the name of a column and nothing else"),
        ({"user": "{}", "assistant": "a"}, "braces must contain the name of a column and nothing else"),
        ({"user": " ", "assistant": "a"}, "the template is empty"),
        ({"user": "q", "messages": [{"role": "assistant", "content": "a"}]}, "columns has both messages and user"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last message is user's"),
        ({"messages": [{"role": role, "content": "a"} for role in ("user", "system", "assistant")]}, "must come first"),
    ],
)
def test_templates_that_tell_nothing_are_errors_in_the_recipe(sftrun, write, options, reason):
    said = sftrun("validate", write([], formatter={"use": "columns", "with": options}))
    assert said.code == 1
    assert reason in said.out + said.err
    assert "recipe.yaml:" in said.out + said.err


def test_all_that_is_wrong_with_templates_is_said_at_once():
    with pytest.raises(UserError) as caught:
        formatted("columns", {}, user="{", assistant="}")
    assert [problem.path[-1] for problem in caught.value.problems] == ["user", "assistant"]


names = st.text(string.ascii_letters + "_ -é", min_size=1).filter(str.strip)


@given(st.dictionaries(names, st.text().filter(str.strip) | st.integers(-(2**60), 2**60) | st.booleans(), min_size=1))
def test_what_a_template_names_is_what_stands_in_the_text(row):
    told = texts("columns", row, user="".join(f"{{{{{{{name}}}}}}}" for name in row), assistant="a")[0]
    values = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
    assert told == "user: " + "".join(f"{{{value}}}" for value in values)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
words = ["role", "content", "from", "value", "user", "assistant", "human", "function_call", "name", "type", "text"]
words += ["train", "tool_calls", "arguments", "messages", "tools", "prompt", "completion", "instruction", "output"]
anything = st.recursive(
    leaves | st.sampled_from(words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(words), inner, max_size=4),
    max_leaves=12,
)
FORMATTERS = {
    "chat": {},
    "alpaca": {},
    "prompt-completion": {},
    "text": {},
    "columns": {"user": "{prompt}", "assistant": "{completion}"},
}


@pytest.mark.parametrize("use", FORMATTERS)
@given(row=st.dictionaries(st.sampled_from(words), anything, max_size=6))
def test_any_row_is_a_conversation_that_can_be_kept_or_says_why_not(use, row):
    try:
        conversation = formatted(use, row, **FORMATTERS[use])
    except RowError as error:
        assert str(error)  # noqa: PT017
    else:
        assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(conversation)), Conversation) == conversation


PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text("utf-8").partition("\n## Formatters\n")[2]
PARTS = re.findall(r"^### `(\S+)`\n(.*?)(?=^#{2,3} |\Z)", PAGE.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


def test_the_page_is_about_every_formatter():
    assert [use for use, _ in PARTS] == list(FORMATTERS)


@pytest.mark.parametrize(("use", "part"), PARTS, ids=[use for use, _ in PARTS])
def test_the_rows_and_recipes_of_the_page_fit(sftrun, write, use, part):
    from ruamel.yaml import YAML

    recipes = [YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)]
    for keys in recipes:
        said = sftrun("validate", write([], **keys))
        assert said.code == 0, said.err
    options = recipes[0]["formatter"]["with"] if use == "columns" else {}
    rows = [
        json.loads(line) for block in re.findall(r"```json\n(.*?)```", part, re.DOTALL) for line in block.splitlines()
    ]
    assert [bool(formatted(use, row, **options).messages) for row in rows] == [True] * len(rows)
    assert rows
    assert recipes


def test_tools_of_a_row_of_columns_reach_the_template():
    spec = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    made = sftrun.create("formatter", sftrun.Use(use="columns", with_={"user": "{q}", "assistant": "{a}"}))
    found = made.format(
        sftrun.Row({"q": "?", "a": "!", "tools": [spec], "chat_template_kwargs": {"think": False}}, "x:1")
    )
    assert (found.tools, found.template_kwargs) == ([spec], {"think": False})
    used = sftrun.create("formatter", sftrun.Use(use="columns", with_={"user": "{q} {tools}", "assistant": "{a}"}))
    assert used.format(sftrun.Row({"q": "?", "a": "!", "tools": "a hammer"}, "x:1")).tools is None
