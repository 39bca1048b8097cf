"""The formatter `chat`: rows in the shapes and spellings that people have them in become one conversation."""

import gzip
import json
import timeit
from itertools import islice
from pathlib import Path

import pytest

import sftrun
from sftrun import Conversation, RowError

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
ASK, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def formatter(use, **options):
    return sftrun.create("formatter", sftrun.Use(use=use, with_=options))


def chat(row, **options):
    return formatter("chat", **options).format(sftrun.Row(row, "train.jsonl:1"))


def messages(*given, **options):
    return chat({"messages": list(given)}, **options).messages


def refused(row, **options):
    with pytest.raises(RowError) as caught:
        chat(row, **options)
    return str(caught.value)


def refused_message(**message):
    return refused({"messages": [ASK, {"role": "assistant", "content": "4", **message}]})


def turn(who, text):
    return {"from": who, "value": text}


@pytest.mark.parametrize("user", ["user", "human"])
@pytest.mark.parametrize("assistant", ["assistant", "gpt", "bot", "model", "chatgpt"])
def test_roles_have_many_spellings(user, assistant):
    assert chat({"conversations": [turn(user, "2+2?"), turn(assistant, "4")]}).messages == [ASK, ANSWER]
    renamed = [{**ASK, "role": user}, {**ANSWER, "role": assistant}]
    assert chat({"messages": renamed}).messages == [ASK, ANSWER]


@pytest.mark.parametrize("spelled", ["tool", "function", "observation", "tool_response"])
def test_what_a_tool_says_has_many_spellings(spelled):
    conversation = chat({"conversations": [turn("human", "?"), turn(spelled, "7"), turn("gpt", "Seven.")]})
    assert conversation.messages[1] == {"role": "tool", "content": "7"}


def test_a_developer_writes_a_system_prompt():
    assert messages({"role": "developer", "content": "Be terse."}, ASK, ANSWER)[0]["role"] == "system"


def test_a_column_of_messages_may_be_json_text():
    assert messages(ASK, ANSWER) == chat({"messages": json.dumps([ASK, ANSWER])}).messages


def test_other_columns_of_a_row_are_let_be():
    assert chat({"id": 7, "source": "web", "messages": [ASK, ANSWER]}) == chat({"messages": [ASK, ANSWER]})


def test_a_row_that_another_formatter_reads_says_so():
    assert refused({"instruction": "Add.", "output": "4"}).endswith("such rows are read by formatter: alpaca")
    assert refused({"prompt": "a", "completion": "b"}).endswith("such rows are read by formatter: prompt-completion")


CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Oslo"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TEXT = '{"name": "find", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "assistant", "tool_calls": [CALL["function"]]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": None, "function_call": CALL["function"]},
        {"role": "function_call", "content": TEXT},
        {"role": "tool_call", "content": f"[{TEXT}]"},
        {"from": "function_call", "value": TEXT},
    ],
)
def test_a_call_of_a_tool_is_written_in_one_shape(message):
    assert messages(ASK, message) == [ASK, CALLS]


def test_calls_and_results_keep_their_ids_and_the_text_beside():
    call = {"id": "c1", **CALL}
    result = {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "find"}
    beside = {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}
    assert messages(ASK, beside, result, ANSWER) == [ASK, beside, result, ANSWER]


def test_arguments_are_an_object_or_text_as_the_template_wants_them_however_rows_have_them():
    for given in ({"city": "Øslo", "n": 1}, '{"city": "Øslo", "n": 1}'):
        row = {
            "messages": [ASK, {"role": "function_call", "content": json.dumps({"name": "find", "arguments": given})}]
        }
        found = [
            chat(row, arguments=wanted).messages[1]["tool_calls"][0]["function"]["arguments"]
            for wanted in ("object", "text")
        ]
        assert found == [{"city": "Øslo", "n": 1}, '{"city": "Øslo", "n": 1}']


def test_a_call_without_arguments_has_none():
    for arguments in ({}, None, "", "{}"):
        call = {"function": {"name": "now", "arguments": arguments}}
        assert messages(ASK, {**CALLS, "tool_calls": [call]})[1]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None}, "content must be a string, not null"),
        ({"tool_calls": [{"name": "f", "parameters": {}}]}, "messages[1].tool_calls[0] has 'parameters'"),
        ({"tool_calls": [{"name": "f", "arguments": "x=1"}]}, "messages[1].tool_calls[0].arguments is not valid JSON"),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, "arguments must be an object, not a list"),
        ({"tool_calls": [{"type": "search", "name": "f"}]}, "only functions are supported as tools, not 'search'"),
        ({"tool_calls": [{}]}, "messages[1].tool_calls[0] has no function name"),
        ({"tool_calls": [CALL], "function_call": CALL}, "has both tool_calls and function_call"),
        ({"role": "user", "tool_calls": [CALL]}, "only an assistant calls tools; its role is user"),
        ({"role": "function_call"}, "messages[1].function_call must be a list, not the number 4"),
        ({"role": "function_call", "content": "find(Oslo)"}, "messages[1].function_call is not valid JSON"),
        ({"role": "function_call", "content": ""}, "has the role function_call, so its content must be a call"),
        ({"role": "user", "thinking": "Hm."}, "only an assistant reasons; its role is user"),
        ({"thinking": "a", "reasoning": "b"}, "has thinking and reasoning with different texts"),
        ({"reasoning_content": 4}, "messages[1].reasoning_content must be a string, not the number 4"),
        ({"train": True, "weight": 0}, "messages[1]: train and weight contradict each other"),
        ({"weight": 0.5}, "messages[1].weight must be true or false, or 1 or 0, not the number 0.5"),
        ({"wieght": 0}, "messages[1] has 'wieght', which is not read; did you mean 'weight'?"),
        ({"from": "gpt"}, "messages[1] has both 'from' and 'role'"),
        ({"content": []}, "content must be a string, not an empty list"),
        ({"content": [{"type": "image", "image": "a.png"}]}, "messages[1], part 0 has the type 'image'; only text"),
        ({"content": [{"type": "text", "text": "a", "cache": 1}]}, "must be {'type': 'text', 'text': …} and nothing"),
        ({"role": "boss" * 99}, "has the role 'boss"),
    ],
)
def test_a_message_that_cannot_be_read_says_why(message, reason):
    said = refused_message(**message)
    assert reason in said
    assert len(said) < 400


def test_contents_given_in_parts_are_joined():
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?", "image_url": None}]
    assert messages({"role": "user", "content": parts}, ANSWER) == [ASK, ANSWER]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_keeps_its_name(name):
    assert messages(ASK, {**ANSWER, name: "Two and two."})[1] == {**ANSWER, name: "Two and two."}


@pytest.mark.parametrize(
    ("flags", "train"),
    [({"train": False}, False), ({"weight": 0}, False), ({"weight": 1.0}, True), ({"loss": True, "weight": 1}, True)],
)
def test_what_is_trained_has_several_spellings(flags, train):
    assert messages(ASK, {**ANSWER, **flags})[1] == {**ANSWER, "train": train}


TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "default": None}}}
BARE = TOOL["function"]


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": json.dumps([TOOL])},
        {"tools": json.dumps([BARE])},
        {"tools": [json.dumps(BARE)]},
        {"tools": json.dumps([{"type": "function", **BARE}])},
        {"functions": json.dumps([BARE])},
    ],
)
def test_tools_are_written_in_one_shape(columns):
    assert chat({"messages": [ASK, ANSWER], **columns}).tools == [TOOL]


@pytest.mark.parametrize("empty", [None, "", "[]", []])
def test_no_tools_are_none(empty):
    assert chat({"messages": [ASK, ANSWER], "tools": empty}).tools is None


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"tools": "find"}, "tools is not valid JSON"),
        ({"tools": {"name": "find"}}, "tools must be a list, not an object"),
        ({"tools": [{"description": "x"}]}, "tools[0] has no function name"),
        ({"tools": [TOOL], "functions": [BARE]}, "has both tools and functions"),
        ({"tools": [{"name": "f", "x": float("nan")}]}, "tools holds the number nan, which JSON does not have"),
        ({"tools": "[" * 100 + "]" * 100}, "tools is nested more than 64 deep"),
        ({"tools": "[" * 99999}, "tools is not valid JSON"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object, not a list"),
    ],
)
def test_columns_beside_the_messages_that_cannot_be_read_say_why(columns, reason):
    assert reason in refused({"messages": [ASK, ANSWER], **columns})


def test_what_arrow_adds_to_a_row_is_not_there():
    """Arrow gives all objects of a column the keys of all; what a row did not have comes as null."""
    pa = pytest.importorskip("pyarrow")
    about = {"days": {"type": "integer"}}
    rows = [
        {"messages": [ASK, {**ANSWER, "thinking": "Hm.", "train": True}], "chat_template_kwargs": {"a": 1}},
        {"messages": [ASK, CALLS], "tools": [{"name": "find", "parameters": {"city": {"type": "string"}}}]},
        {
            "messages": [ASK, {**CALLS, "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": about}}]}],
            "tools": [{"name": "f", "parameters": about}],
            "chat_template_kwargs": {"b": [None, 2]},
        },
    ]
    arrow = pa.concat_tables([pa.Table.from_pylist([row]) for row in rows], promote_options="permissive")
    read = arrow.to_pylist()
    assert read[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo", "days": None}
    assert [chat(row) for row in read] == [chat(row) for row in rows]


def test_a_null_in_json_text_was_meant():
    call = {"name": "find", "arguments": '{"city": null}'}
    assert messages(ASK, {**CALLS, "tool_calls": [call]})[1]["tool_calls"][0]["function"]["arguments"] == {"city": None}


def test_the_template_is_given_the_variables_of_the_recipe_and_before_them_those_of_the_row():
    kwargs = {"enable_thinking": False, "date": "today"}
    conversation = {"messages": [ASK, ANSWER]}
    assert chat(conversation, template_kwargs=kwargs).template_kwargs == kwargs
    own = chat({**conversation, "chat_template_kwargs": {"date": "yesterday"}}, template_kwargs=kwargs)
    assert own.template_kwargs == {"enable_thinking": False, "date": "yesterday"}


def test_variables_that_come_from_the_row_cannot_be_set(sftrun, write):
    said = sftrun("validate", write([], formatter={"use": "chat", "with": {"template_kwargs": {"tools": []}}}))
    assert "error: template_kwargs must not set tools; it comes from the row" in said.out + said.err


def test_the_column_of_the_system_prompt_may_have_another_name_or_none():
    row = {"messages": [ASK, ANSWER], "persona": "Be terse.", "system": "Be long."}
    found = [chat(row, fields={"system": name}).messages[0]["content"] for name in ("system", "persona", None)]
    assert found == ["Be long.", "Be terse.", "2+2?"]


def test_an_assistant_that_calls_a_tool_is_trained_on_the_call():
    pytest.importorskip("trl")
    renderer = tool_renderer("qwen3")
    spans = renderer.render(chat({"messages": [ASK, {"role": "function_call", "content": TEXT}]}))
    trained = "".join(spans.text[span.start : span.end] for span in spans.spans if span.generated)
    assert '<tool_call>\n{"name": "find", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in trained


def tool_renderer(name):
    import trl

    from sftrun.data.masks.render import Renderer
    from sftrun.data.masks.template import Template

    source = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    return Renderer(Template(source, {"bos_token": "", "eos_token": "<|im_end|>"}))


@pytest.mark.skipif(not DATA.is_dir(), reason="the data lies beside the repository only")
@pytest.mark.parametrize("template", ["qwen3", "qwen2_5", "llama3_1"])
def test_every_row_of_a_sharegpt_file_with_tools_is_formatted_and_rendered(template):
    pytest.importorskip("trl")
    read, renderer = formatter("chat"), tool_renderer(template)
    rows = json.loads((DATA / "demos" / "glaive_toolcall_en_demo.json").read_text("utf-8"))
    conversations = [read.format(sftrun.Row(row, f"glaive:{index}")) for index, row in enumerate(rows)]
    called = [
        call
        for conversation in conversations
        for message in conversation.messages
        for call in message.get("tool_calls", ())
    ]
    assert (len(conversations), len(called)) == (300, 211)
    assert all(
        isinstance(tool["function"]["name"], str) for conversation in conversations for tool in conversation.tools or ()
    )
    for conversation in conversations[::10]:
        assert any(span.generated for span in renderer.render(conversation).spans)


@pytest.mark.skipif(not DATA.is_dir(), reason="the data lies beside the repository only")
def test_the_usual_row_costs_next_to_nothing():
    with gzip.open(DATA / "chat52k.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [sftrun.Row(json.loads(line), "a:1") for line in islice(lines, 10_000)]
    read = formatter("chat").format
    seconds = min(timeit.repeat(lambda: [read(row) for row in rows], number=1, repeat=5))
    assert seconds / len(rows) < 9e-6  # 1 µs on an idle core; a busy one is slower


def test_a_row_that_needs_no_reading_gives_the_conversation_that_reading_it_gives():
    conversation = [{"role": "system", "content": "s"}, ASK, ANSWER]
    assert chat({"messages": conversation}) == chat({"messages": [{**each, "name": None} for each in conversation]})
    assert chat({"messages": conversation}) == Conversation(conversation, "train.jsonl:1")


def test_arguments_with_a_key_twice_are_refused():
    call = {"function": {"name": "find", "arguments": '{"city": "Oslo", "city": "Rome"}'}}
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert "tool_calls[0].arguments is not valid JSON: an object has the key 'city' twice" in refused(row)
