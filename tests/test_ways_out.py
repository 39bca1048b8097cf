"""Rows that are hard to place: escaped texts, lists of parts, templates for rows with tools; refusals with advice."""

import json

import pytest
from conftest import talk

from sftrun import tiny
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.data.tokens.tokenizer import load_tokenizer
from sftrun.errors import RowError
from sftrun.recipe.model import ModelOptions
from sftrun.types import Conversation

GENERATION = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + GENERATION
CALLS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }} {{ ARGUMENTS }}{% endfor %}<|end|>{% endfor %}" + GENERATION
)
TOOLS = [{"type": "function", "function": {"name": "find_weather", "parameters": {"type": "object"}}}]


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(**arguments):
    return assistant("", tool_calls=[{"type": "function", "function": {"name": "find", "arguments": arguments}}])


def mask(source, messages, tools=None):
    """Returns a render with the generated text between ⟦ and ⟧."""
    found = Renderer(Template(source, {})).render(Conversation(messages, tools=tools))
    shown = "".join(
        f"⟦{found.text[span.start : span.end]}⟧" if span.generated else found.text[span.start : span.end]
        for span in found.spans
    )
    return shown.replace("⟧⟦", "")


@pytest.mark.parametrize(
    "city", ["Oslo", "Tromsø", "São Paulo & Rio", "\U000f0000", 'a "b" c', "D'Orsay", "two\nlines"]
)
@pytest.mark.parametrize(
    "written", ["c.function.arguments | tojson(ensure_ascii=True)", "c.function.arguments", "[c.function.arguments]"]
)
def test_texts_that_a_template_escapes_are_located(written, city):
    source = CALLS.replace("ARGUMENTS", written)
    messages = [user("a"), call(city=city, more=["x", city]), {"role": "tool", "content": "r"}, assistant("b")]
    text = Template(source, {}).render(messages)
    shown = mask(source, messages)
    assert shown.replace("⟦", "").replace("⟧", "") == text
    begin, end = text.index("find"), text.index("<|end|><|tool|>") + len("<|end|>")
    assert shown == f"<|user|>a<|end|><|assistant|>⟦{text[begin:end]}⟧<|tool|>r<|end|><|assistant|>⟦b<|end|>⟧"


def test_a_content_that_is_escaped_for_ascii_is_located():
    source = PLAIN.replace("m.content", "m.content | tojson(ensure_ascii=True)")
    assert mask(source, [user("é"), assistant("ø")]) == ('<|user|>"\\u00e9"<|end|><|assistant|>⟦"\\u00f8"<|end|>⟧')


def test_a_list_of_texts_is_one_text_for_a_template_that_takes_only_texts():
    parts = [{"type": "text", "text": "O"}, {"type": "text", "text": "slo"}]
    assert mask(PLAIN, [user(parts), assistant(parts)]) == "<|user|>Oslo<|end|><|assistant|>⟦Oslo<|end|>⟧"


def test_a_template_that_reads_parts_gets_them():
    reads = PLAIN.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endif %}",
    )
    parts = [{"type": "text", "text": "O"}, {"type": "text", "text": "slo"}]
    assert mask(reads, [user(parts), assistant("x")]) == "<|user|>(O)(slo)<|end|><|assistant|>⟦x<|end|>⟧"


def test_a_part_that_is_no_text_is_refused_by_a_template_that_takes_only_texts():
    with pytest.raises(RowError, match=r"it takes only texts, and the content of a message \(user\) has a part image"):
        mask(PLAIN, [user([{"type": "image"}, {"type": "text", "text": "a"}]), assistant("b")])


def test_a_template_that_only_renders_rows_with_tools_is_for_these():
    source = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + PLAIN
    assert mask(source, [user("a"), assistant("b")], TOOLS) == ("find_weather<|user|>a<|end|><|assistant|>⟦b<|end|>⟧")
    with pytest.raises(
        RowError, match=r"only renders rows with tools: .*; add tools to the row, or set model.chat_temp"
    ):
        mask(source, [user("a"), assistant("b")])


def test_a_row_that_begins_with_an_answer_is_told_to_begin_with_a_question():
    source = (
        "{% if not messages %}{{ raise_exception('No messages.') }}{% endif %}"
        "{% for m in messages %}<|{{ m.role }} {{ loop.index }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant {{ messages | length + 1 }}|>{% endif %}"
    )
    with pytest.raises(RowError, match=r"No messages\.; begin the row with a message of the user"):
        mask(source, [assistant("hello"), user("a"), assistant("b")])


THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}" + GENERATION
)
INLINE = "<think>\nFour?\n</think>\n\n4"


def test_thoughts_in_a_content_are_refused_with_the_key_and_the_option_for_them():
    way_out = "put thoughts into reasoning_content, or set data.split_reasoning: true"
    with pytest.raises(RowError, match=f"reads </think> as the end of thoughts.*{way_out}"):
        mask(THINKS, [user("a"), assistant(INLINE), user("b"), assistant(INLINE)])
    changes = THINKS.replace("m.content.split('</think>')[-1]", "m.content | upper")
    with pytest.raises(RowError, match=f"the template changes its text.*{way_out}"):
        mask(changes, [user("a"), assistant(INLINE)])


def test_thoughts_in_a_content_are_split_on_request(sftrun, write, tmp_path):
    (tmp_path / "thinks.jinja").write_text(THINKS.replace("<|end|>", "<|im_end|>"))
    rows = [talk("a", INLINE, "b", INLINE), talk("a", "[THINK]x[/THINK]4"), talk("a", "no thoughts")]
    model = {"chat_template": str(tmp_path / "thinks.jinja")}
    assert sftrun("inspect", write(rows, model=model)).code == 1
    said = sftrun("inspect", write(rows, model=model, data={"split_reasoning": True}), "--rows", 9)
    assert said.code == 0
    assert "⟦4<|im_end|>⟧<|user|>b<|im_end|><|assistant|>⟦<think>Four?</think>4<|im_end|>⟧" in said.err
    assert "⟦<think>x</think>4<|im_end|>⟧" in said.err
    assert "⟦<think></think>no thoughts<|im_end|>⟧" in said.err


SHARED_TOKEN = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ m.content }}<|im_end|>{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}{% if m.tool_calls %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("stops", [True, False])
def test_a_call_may_end_with_a_token_that_opens_the_tools_answer_if_the_model_stops_at_it(stops, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((tiny.folder() / file).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(SHARED_TOKEN)
    model = ModelOptions(name=str(tmp_path))
    ids = [load_tokenizer(model).engine.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids if stops else ids[0]}))
    template = load_tokenizer(model).template
    row = Conversation([user("a"), call(city="Oslo"), {"role": "tool", "content": "warm"}, assistant("b")])
    if not stops:
        with pytest.raises(RowError, match=r"not clear who writes that token; if the model stops at it, add its id"):
            Renderer(template).render(row)
        return
    found = Renderer(template).render(row)
    assert [found.text[span.start : span.end] for span in found.spans if span.generated] == [
        'find {"city": "Oslo"}',
        "<|endoftext|>",
        "b",
        "<|im_end|>",
    ]


def test_a_mark_that_changes_the_prompt_is_seen_in_a_template_that_needs_tools():
    source = (
        "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' and '/no_think' in messages[loop.index0 - 1].content %}<no>{% endif %}"
        "{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>"
        "{% if '/no_think' in messages[-1].content %}<no>{% endif %}{% endif %}"
    )
    assert mask(source, [user("a /no_think"), assistant("b")], TOOLS) == (
        "find_weather<|user|>a /no_think<|end|><|assistant|><no>⟦b<|end|>⟧"
    )
