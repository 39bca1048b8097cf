"""The marked render. Trained parts stand in brackets, the end of a turn in brackets of its own."""

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
from conversations import assistant, call, result, system, user
from hypothesis import given, settings
from hypothesis import strategies as st

import sftrun.data
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.errors import RowError, UserError
from sftrun.types import Conversation, Message, Rendered

CHATML = (Path(sftrun.data.__file__).parent / "masks" / "templates" / "chatml.jinja").read_text("utf-8")

LLAMA = """{{- bos_token -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""

MISTRAL = """{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""

SYSTEM_LAST = """{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'user' -%}
{{- '[INST]' -}}
{%- if loop.last or loop.index0 == loop.length - 2 and messages[-1].role == 'assistant' -%}
{{- messages[0].content + '\\n\\n' -}}
{%- endif -%}
{{- m.content + '[/INST]' -}}
{%- else -%}{{- m.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""

THINKING = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if loop.last and m.reasoning_content -%}
{{- '<|assistant|><think>\\n' + m.reasoning_content + '</think>' + m.content.split('</think>')[-1] + '<|end|>' -}}
{%- else -%}{{- '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' -}}{%- endif -%}
{%- else -%}{{- '<|user|>' + m.content + '<|end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|><think>\\n' -}}{%- endif -%}"""

OPEN = """{%- for m in messages -%}{{- '<|' + m.role + '|>' + m.content -}}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""

ALWAYS_OPEN = """{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- m.content + '<|END|><|START|><|BOT|>' -}}
{%- else -%}{{- m.content + '<|END|><|START|><|USER|>' -}}{%- endif -%}
{%- endfor -%}"""

CALLS = """{%- for m in messages -%}
{{- '<|' + m.role + '|>' + (m.content or '') -}}
{%- for c in m.tool_calls or [] -%}{{- '<call>' + c.function.name + c.function.arguments | tojson + '</call>' -}}
{%- endfor -%}{{- '<|end|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""

SWITCH = """{%- set quiet = messages[-1].role == 'user' and '/no_think' in messages[-1].content -%}
{%- for m in messages -%}{{- '<|' + m.role + '|>' + m.content + '<|end|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' + ('<think></think>' if quiet else '') -}}{%- endif -%}"""


def renderer(source: str = CHATML, eot_token: str | None = None) -> Renderer:
    return Renderer(Template(source, {"bos_token": "<s>", "eos_token": "</s>"}), eot_token=eot_token)


def shown(rendered: Rendered) -> str:
    """The text with its generated spans in brackets."""
    text = ((rendered.text[span.start : span.end], span.generated) for span in rendered.spans)
    return "".join(f"[{part}]" if generated else part for part, generated in text)


def show(source: str, *messages: Message, eot_token: str | None = None) -> str:
    return shown(renderer(source, eot_token).render(Conversation(list(messages))))


def refusal(source: str, *messages: Message) -> str:
    with pytest.raises(RowError) as caught:
        renderer(source).render(Conversation(list(messages)))
    return str(caught.value)


def test_the_answer_and_its_end_are_generated_and_the_line_break_after_is_not():
    expected = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[4][<|im_end|>]\n"
    assert show(CHATML, user("2+2?"), assistant("4")) == expected


def test_every_answer_of_a_conversation_is_generated():
    assert show(MISTRAL, user("a"), assistant("b"), user("c"), assistant("d")) == (
        "<s>[INST] a [/INST][ b][</s>][INST] c [/INST][ d][</s>]"
    )


def test_spans_say_whose_text_it_is():
    conversation = [system("Be terse."), user("2+2?"), assistant("4"), user("ok")]
    rendered = renderer().render(Conversation(conversation))
    whose = [(rendered.text[s.start : s.end], s.message, s.role) for s in rendered.spans if s.role != "template"]
    assert whose == [
        ("Be terse.", 0, "system"),
        ("2+2?", 1, "user"),
        ("4", 2, "assistant"),
        ("<|im_end|>", 2, "assistant"),
        ("ok", 3, "user"),
    ]
    assert [s.message for s in rendered.spans if s.role == "template"] == [-1] * 5
    assert [rendered.text[s.start : s.end] for s in rendered.spans if s.end_of_turn] == ["<|im_end|>"]


def test_what_the_template_trims_is_not_in_the_text_and_so_not_generated():
    assert show(LLAMA, user(" \n2+2? "), assistant("\n\n4 \n")).endswith(
        "assistant<|end_header_id|>\n\n[4][<|eot_id|>]"
    )


def test_control_tokens_that_a_user_types_are_the_users():
    typed = "<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    assert show(CHATML, user(typed), assistant("no")) == (
        f"<|im_start|>user\n{typed}<|im_end|>\n<|im_start|>assistant\n[no][<|im_end|>]\n"
    )


def test_control_tokens_in_an_answer_are_part_of_it():
    assert "assistant\n[say <|im_end|> now][<|im_end|>]" in show(CHATML, user("a"), assistant("say <|im_end|> now"))


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "<|im_end|>", "\U000f0000", "\U0010fffd\ue000", "é🌊\u200d", '"\\', "user"]
)
def test_any_text_can_be_a_question_or_an_answer(text: str):
    expected = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n[{text}][<|im_end|>]\n"
    assert show(CHATML, user(text), assistant(text)) == expected.replace("[]", "")


def test_a_system_message_may_be_moved():
    assert show(SYSTEM_LAST, system("S"), user("a"), assistant("b"), user("c"), assistant("d")) == (
        "[INST]a[/INST][b][</s>][INST]S\n\nc[/INST][d][</s>]"
    )


def test_a_conversation_may_begin_with_an_answer():
    assert show(CHATML, assistant("Hello!"), user("a")).startswith("<|im_start|>assistant\n[Hello!][<|im_end|>]\n")
    raising = "{%- if not messages -%}{{- raise_exception('no messages') -}}{%- endif -%}" + CHATML
    assert show(raising, assistant("Hello!"), user("a")).startswith("<|im_start|>assistant\n[Hello!][<|im_end|>]\n")


def test_two_answers_in_a_row_are_two_turns():
    assert show(CHATML, user("a"), assistant("b"), assistant("c")).endswith(
        "assistant\n[b][<|im_end|>]\n<|im_start|>assistant\n[c][<|im_end|>]\n"
    )


def test_what_the_generation_prompt_already_holds_is_not_generated():
    thoughts = {"reasoning_content": "Sum."}
    assert show(THINKING, user("2+2?"), assistant("4", **thoughts)) == (
        "<|user|>2+2?<|end|><|assistant|><think>\n[Sum.</think>][4][<|end|>]"
    )


def test_an_answer_without_the_thoughts_that_the_prompt_opens_is_generated_from_where_they_part():
    assert show(THINKING, user("2+2?"), assistant("4")) == "<|user|>2+2?<|end|><|assistant|>[4][<|end|>]"


def test_thoughts_written_in_the_content_do_not_repeat_the_prompt():
    plain = THINKING.replace(".split('</think>')[-1]", "")
    assert show(plain, user("2+2?"), assistant("<think>\nSum.</think>4")) == (
        "<|user|>2+2?<|end|><|assistant|><think>\n[Sum.</think>4][<|end|>]"
    )
    assert show(plain, user("2+2?"), assistant("<b>4</b>")) == "<|user|>2+2?<|end|><|assistant|>[<b>4</b>][<|end|>]"


def test_thoughts_of_older_turns_may_be_left_out_but_not_all_thoughts():
    thoughts = {"reasoning_content": "Sum."}
    assert show(THINKING, user("a"), assistant("b", **thoughts), user("c"), assistant("d", **thoughts)) == (
        "<|user|>a<|end|><|assistant|>[b][<|end|>]<|user|>c<|end|><|assistant|><think>\n[Sum.</think>][d][<|end|>]"
    )
    assert refusal(CHATML, user("a"), assistant("b", **thoughts)) == (
        "message 1 (assistant): the template never writes its reasoning_content; remove it from the rows, or use "
        "another template"
    )


def test_a_word_of_the_user_that_changes_the_generation_prompt_changes_what_is_generated():
    assert show(SWITCH, user("a"), assistant("<think></think>b")).endswith("<|assistant|>[<think></think>b][<|end|>]")
    assert show(SWITCH, user("a /no_think"), assistant("<think></think>b")).endswith(
        "<|assistant|><think></think>[b][<|end|>]"
    )


def test_a_tool_call_is_generated_and_the_tools_answer_is_not():
    conversation = [user("Oslo?"), call({"city": 'O"s\nlo', "n": [1, "x"]}), result("7 °C"), assistant("Mild.")]
    assert show(CALLS, *conversation) == (
        "<|user|>Oslo?<|end|><|assistant|>"
        '[<call>find_weather{"city": "O\\"s\\nlo", "n": [1, "x"]}</call>][<|end|>]'
        "<|tool|>7 °C<|end|><|assistant|>[Mild.][<|end|>]"
    )


def test_a_template_without_end_of_turn_needs_one():
    assert refusal(OPEN, user("a"), assistant("b")) == (
        "message 1 (assistant): the template writes no end-of-turn token after it; set model.eot_token to the stop "
        "token of the model, often its eos_token"
    )
    conversation = [user("a"), assistant("b"), user("c"), assistant("d")]
    ended = "<|user|>a<|assistant|>[b][</s>]<|user|>c"
    assert show(OPEN, *conversation, eot_token="</s>") == ended + "<|assistant|>[d][</s>]"
    assert show(OPEN, *conversation[:3], eot_token="</s>") == ended
    assert show(OPEN, user("a"), assistant(""), eot_token="</s>") == "<|user|>a<|assistant|>[</s>]"


def test_a_template_that_opens_the_next_turn_is_refused():
    assert refusal(ALWAYS_OPEN, user("a"), assistant("b")) == (
        "the chat template ends an answer with the beginning of the next turn: '<|START|><|USER|>'"
    )


def test_a_template_that_changes_an_answer_is_refused_with_the_first_difference():
    loud = CHATML.replace("message['content']", "message['content'] | upper")
    expected = (
        "message 1 (assistant): the template changes its text: 'sistant\\nriver<|im_end|>\\n' became 'sistant\\nRIVER"
    )
    assert refusal(loud, user("2"), assistant("river")).startswith(expected)


def test_a_template_that_changes_a_question_is_refused():
    loud = CHATML.replace("message['content']", "(message.content | upper if loop.first else message.content)")
    assert "message 0 (user): the template changes its text: " in refusal(loud, user("Name one"), assistant("b"))


def test_a_template_that_leaves_out_text_of_an_answer_is_refused():
    assert refusal(THINKING, user("a"), assistant("Sum.</think>4")) == (
        "message 1 (assistant): the template leaves out text of its content (it reads </think> as the end of thoughts)"
    )
    assert refusal(LLAMA, user("a"), call({"city": "Oslo"}, "b")) == (
        "message 1 (assistant): the template leaves out text of its tool_calls"
    )


def test_a_template_that_repeats_an_answer_elsewhere_is_refused():
    quoting = "(messages[1].content if loop.index0 == 4 else '') + message['content']"
    conversation = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    assert refusal(CHATML.replace("message['content']", quoting), *conversation).startswith(
        "message 1 (assistant): its end "
    )


def test_a_template_that_puts_another_text_into_the_answer_is_refused():
    echo = "(messages[0].content if message.role == 'assistant' and messages[0].role == 'system' else '')"
    between = CHATML.replace("message['content']", f"message['content'] + {echo} + message['content']")
    assert refusal(between, system("S"), user("a"), assistant("b")) == (
        "message 2 (assistant): the template puts the text of message 0 (system) into it"
    )
    before = CHATML.replace("message['content']", f"{echo} + message['content']")
    assert refusal(before, system("S"), user("a"), assistant("b")).startswith("message 2 (assistant): the ")


def test_the_templates_own_words_are_reported():
    strict = "{%- if messages[0].role == 'system' -%}{{- raise_exception('No system role') -}}{%- endif -%}" + CHATML
    assert refusal(strict, system("S"), user("a"), assistant("b")) == (
        f"message 0 (system): the chat template {renderer(strict).template.fingerprint[:12]} takes no system messages: "
        "No system role; put its text into the user's turn, remove the transform that wrote it, or set "
        "model.chat_template"
    )
    picky = CHATML + "{%- if messages[0].content == 'Never' -%}{{- raise_exception('Not that') -}}{%- endif -%}"
    assert refusal(picky, system("Never"), user("a"), assistant("b")) == "the chat template refuses: Not that"
    broken = "line one\n{{ messages[0].content + 1 }}"
    assert refusal(broken, user("a")).startswith("the chat template fails at line 2: TypeError: ")


def test_a_template_that_takes_no_tools_is_named():
    source = (
        "{%- for m in messages if m.role not in ('user', 'assistant') -%}{{- raise_exception('Two roles') -}}"
        "{%- endfor -%}" + CALLS
    )
    one = Renderer(Template(source, {}, name="mine.jinja"))
    with pytest.raises(RowError) as caught:
        one.render(Conversation([user("a"), call({"x": "y"}), result("b"), assistant("c")]))
    assert str(caught.value) == (
        "message 2 (tool): the chat template mine.jinja takes no tool messages: Two roles; "
        "set model.chat_template to one with tools"
    )


@pytest.mark.parametrize(
    ("written", "given", "form"),
    [
        ("c.function.arguments", {"x": "y"}, "as JSON text, not as objects"),
        ("c.function.arguments.items() | list | tojson", '{"x": "y"}', "as objects, not as JSON text"),
    ],
)
def test_a_template_that_takes_arguments_in_one_form_says_which(written: str, given: object, form: str):
    source = CALLS.replace("c.function.arguments | tojson", written)
    why = refusal(source, user("a"), call(given), result("b"), assistant("c"))
    assert why.startswith("message 1 (assistant): the chat template ")
    assert f" takes arguments of calls {form}: the chat template fails at line 3: " in why


def test_a_template_that_leaves_out_what_was_asked_is_refused():
    deaf = CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")
    assert refusal(deaf, system("Be terse."), user("a"), assistant("b")) == (
        "message 0 (system): the template leaves out its text; set model.chat_template to another"
    )


def parts(source: str, *messages: Message) -> list[tuple[str, str]]:
    """The generated spans but for the ends of turns, each with the part that it belongs to."""
    rendered = renderer(source).render(Conversation(list(messages)))
    spans = [span for span in rendered.spans if span.generated and not span.end_of_turn]
    return [(span.part, rendered.text[span.start : span.end]) for span in spans]


ALL_PARTS = CALLS.replace(
    "(m.content or '')",
    "('<think>' + m.thinking + '</think>\\n\\n' if m.thinking else '') + (m.content or '')",
)


def test_the_text_of_an_answer_is_told_by_parts():
    thoughts = {"thinking": "Hm."}
    assert parts(ALL_PARTS, user("a"), call({"city": "Oslo"}, "Look:", **thoughts)) == [
        ("reasoning", "<think>Hm.</think>\n\n"),
        ("content", "Look:"),
        ("tool_calls", '<call>find_weather{"city": "Oslo"}</call>'),
    ]
    assert parts(ALL_PARTS, user("a"), assistant("b", **thoughts)) == [
        ("reasoning", "<think>Hm.</think>\n\n"),
        ("content", "b"),
    ]
    assert parts(ALL_PARTS, user("a"), assistant("b")) == [("content", "b")]


@pytest.mark.parametrize("arguments", [{}, {"days": 2}, {"days": [1, None]}])
def test_a_call_without_texts_is_a_call(arguments: object):
    for text, more in [("Look:", {}), ("", {"thinking": "Hm."}), ("Look:", {"thinking": "Hm."}), ("", {})]:
        *before, (part, last) = parts(ALL_PARTS, user("a"), call(arguments, text, **more))
        assert part == "tool_calls"
        assert last.startswith("<call>find_weather{")
        assert [each for each, _ in before] == ["reasoning"] * ("thinking" in more) + ["content"] * bool(text)


def test_reasoning_ends_with_the_mark_that_closes_it():
    harmony = ALL_PARTS.replace("'</think>\\n\\n'", "'<|stop_end|>\\n<|start|>answer:'")
    assert parts(harmony, user("a"), assistant("b", thinking="Hm.")) == [
        ("reasoning", "<think>Hm.<|stop_end|>\n"),
        ("content", "<|start|>answer:b"),
    ]
    unmarked = ALL_PARTS.replace("'</think>\\n\\n'", "' so: '")
    assert parts(unmarked, user("a"), assistant("b", thinking="Hm.")) == [
        ("reasoning", "<think>Hm. so: "),
        ("content", "b"),
    ]
    quoting = parts(ALL_PARTS, user("a"), assistant("b", thinking="<call> or </call>"))
    assert quoting == [("reasoning", "<think><call> or </call></think>\n\n"), ("content", "b")]


def test_thoughts_in_a_list_of_parts_are_reasoning():
    either = "(m.content if m.content is string else m.content[0].thinking + '</think>' + m.content[1].text)"
    lists = CALLS.replace("(m.content or '')", either)
    content = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "b"}]
    conversation = [user("a"), {"role": "assistant", "content": content}]
    assert parts(lists, *conversation) == [("reasoning", "Hm.</think>"), ("content", "b")]
    assert refusal(lists.replace("m.content[0].thinking + '</think>' + ", ""), *conversation) == (
        "message 1 (assistant): the template never writes its thinking; remove it from the rows, or use another "
        "template"
    )


def test_a_message_says_whether_it_is_trained_and_no_template_sees_it():
    nosy = CHATML + "{%- for m in messages if m.train is defined -%}{{- raise_exception('seen') -}}{%- endfor -%}"
    conversation = [user("a"), {**assistant("b"), "train": False}, user("c"), {**assistant("d"), "train": True}]
    rendered = renderer(nosy).render(Conversation(conversation))
    flags = {(span.message, span.train) for span in rendered.spans}
    assert flags == {(-1, None), (0, None), (1, False), (2, None), (3, True)}
    assert rendered.text == renderer().render(Conversation([user("a"), assistant("b"), user("c"), assistant("d")])).text
    assert renderer(nosy).render_prompt(conversation[:3]).endswith("<|im_start|>assistant\n")


def test_a_flag_must_be_true_or_false():
    assert refusal(CHATML, user("a"), {**assistant("b"), "train": 1}) == (
        "message 1 (assistant): train must be true or false"
    )
    assert show(CHATML, user("a"), {**assistant("b"), "train": None}) == show(CHATML, user("a"), assistant("b"))


def signature(rendered: Rendered) -> list[tuple[object, ...]]:
    return [(s.message, s.role, s.generated, s.end_of_turn, s.part, s.train) for s in rendered.spans]


def test_rows_of_one_shape_have_spans_that_differ_in_position_alone():
    one = renderer(ALL_PARTS)
    conversations = [
        [user("a"), assistant("b")],
        [user("a longer one"), assistant("b <call> c")],
        [user("a"), {**assistant("b"), "train": True}],
        [user("a"), {**assistant("b"), "train": False}],
        [user("a"), assistant("b", thinking="Hm.")],
        [user("a"), call({"city": "Oslo"})],
        [user("a"), call({"city": "Bergen"})],
    ]
    found = [one.render(Conversation(conversation)) for conversation in conversations * 2]
    for first in found:
        for second in found:
            assert first.shape is not None
            assert first.shape is not second.shape or signature(first) == signature(second)
    assert len({id(each.shape) for each in found}) == 5


def test_rows_whose_spans_vary_have_no_shape():
    open_thoughts = renderer(THINKING.replace(".split('</think>')[-1]", ""))
    assert open_thoughts.render(Conversation([user("a"), assistant("b")])).shape is None


def test_rows_with_ends_of_the_recipe_share_a_shape():
    one = renderer(OPEN, "</s>")
    first, second = (one.render(Conversation([user(text), assistant(text)] * 2)) for text in ("a", "a longer one"))
    assert first.shape is second.shape is not None
    assert signature(first) == signature(second)
    assert shown(second) == "<|user|>a longer one<|assistant|>[a longer one][</s>]" * 2


def plain(*contents: tuple[str, str], source: str = CHATML, **more: object) -> str:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    one = Renderer(Template(source, tokens), **{"adds_bos": True, **more})
    messages = [{"role": role, "content": content} for role, content in contents]
    return shown(one.render(Conversation(messages, plain=True)))


def test_plain_text_is_joined_without_the_template():
    assert plain(("text", "Once upon a time.")) == "<s>[Once upon a time.][</s>]"
    assert plain(("prompt", "2+2="), ("completion", "4")) == "<s>2+2=[4][</s>]"
    assert plain(("text", "a"), ("text", "b")) == "<s>[a][b][</s>]"
    assert plain(("prompt", "a"), ("completion", "")) == "<s>a[</s>]"
    assert plain(("prompt", ""), ("completion", "a")) == "<s>[a][</s>]"


def test_plain_text_begins_with_bos_only_where_the_tokenizer_adds_it():
    assert plain(("text", "a"), adds_bos=False) == "[a][</s>]"
    assert plain(("text", "a"), eot_token="<|end|>") == "<s>[a][<|end|>]"


def test_plain_text_of_one_shape_has_the_same_spans():
    one = Renderer(Template(CHATML, {"eos_token": "</s>"}))
    rows = [
        one.render(Conversation([{"role": "text", "content": text}], plain=True)) for text in ("a", "\U000f0000", "")
    ]
    assert rows[0].shape is rows[1].shape is not rows[2].shape
    assert (
        signature(rows[0])
        == signature(rows[1])
        == [
            (0, "text", True, False, "content", None),
            (0, "text", True, True, "content", None),
        ]
    )


@pytest.mark.parametrize(
    ("message", "more", "reason"),
    [
        (
            {"content": "a"},
            {"tools": [{}]},
            "plain text is rendered without a template, so it must not have tools or template_kwargs",
        ),
        ({"content": ["a"]}, {}, "message 0 (text): in plain text, its content must be a string"),
        ({"content": "a", "name": "b"}, {}, "message 0 (text): in plain text, its name cannot be rendered; remove it"),
    ],
)
def test_plain_text_has_no_place_for_more_than_text(message: Message, more: dict[str, object], reason: str):
    with pytest.raises(RowError) as caught:
        renderer().render(Conversation([{"role": "text", **message}], plain=True, **more))
    assert str(caught.value) == reason


def test_plain_text_needs_a_token_that_ends_it():
    conversation = Conversation([{"role": "text", "content": "a"}], plain=True)
    with pytest.raises(RowError, match="plain text ends with the tokenizer's eos_token, but it has none"):
        Renderer(Template(CHATML, {})).render(conversation)
    assert shown(Renderer(Template(CHATML, {}), eot_token="<e>").render(conversation)) == "[a][<e>]"


def test_the_prompt_of_plain_text_is_its_texts():
    prompt = [{"role": "prompt", "content": "2+2="}]
    one = Renderer(Template(CHATML, {"bos_token": "<s>", "eos_token": "</s>"}), adds_bos=True)
    assert one.render_prompt(prompt, plain=True) == "<s>2+2="


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (Conversation([]), "the conversation has no messages"),
        (Conversation([{"content": "a"}]), "message 0 has no role"),
        (Conversation([user("a")], template_kwargs={"messages": 1}), "template_kwargs must not set messages"),
    ],
)
def test_what_is_no_conversation_is_refused(conversation: Conversation, message: str):
    with pytest.raises(RowError, match=message):
        renderer().render(conversation)


def test_the_prompt_is_what_the_answer_is_generated_after():
    conversation = [user("2+2?"), assistant("4")]
    rendered = renderer().render(Conversation(conversation))
    assert (
        renderer().render_prompt(conversation[:1])
        == rendered.text[: next(s.start for s in rendered.spans if s.generated)]
    )


@pytest.mark.parametrize(
    ("source", "eot_token", "messages"),
    [
        (CHATML, None, []),
        (OPEN, "</s>", []),
        (OPEN, None, ["the chat template writes no end-of-turn token after an answer"]),
        (CHATML, "</s>", ["model.eot_token has no effect: the chat template ends answers itself, with '<|im_end|>'"]),
        (
            ALWAYS_OPEN,
            None,
            ["the chat template ends an answer with the beginning of the next turn: '<|START|><|USER|>'"],
        ),
        (
            CHATML.replace("['content']", "['content'][0].text"),
            None,
            [],
        ),
        (
            "{{- raise_exception('Never') -}}",
            None,
            [
                "the chat template does not render a conversation of user and assistant: the chat template refuses: "
                "Never"
            ],
        ),
    ],
)
def test_the_check_finds_templates_that_do_not_end_turns(source: str, eot_token: str | None, messages: list[str]):
    assert [problem.message for problem in renderer(source, eot_token).check_template()] == messages


def test_a_template_that_reads_only_lists_is_given_texts_as_lists():
    one = renderer(CHATML.replace("['content']", "['content'][0].text"))
    assert (
        one.render(Conversation([user("a"), assistant("b")])).text
        == renderer(CHATML).render(Conversation([user("a"), assistant("b")])).text
    )


def test_a_template_that_wants_a_system_message_passes_the_check():
    strict = "{%- if messages[0].role != 'system' -%}{{- raise_exception('Needs one') -}}{%- endif -%}" + CHATML
    assert renderer(strict).check_template() == []


def test_a_usual_row_costs_one_render():
    one = renderer()
    one.render(Conversation([user("a"), assistant("b")]))
    counted: list[str] = []
    run = one.template._run
    one.template._run = lambda variables: counted.append("") or run(variables)
    one.render(Conversation([user(" another\n"), assistant('longer "text"')]))
    assert len(counted) == 1


def tool(name: str, about: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "description": about, "parameters": {}}}


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1", "gptoss", "gemma4_v2", "lfm2_2_5"])
def test_rows_with_tools_of_their_own_are_as_if_each_came_first(shipped, name: str):
    lists = [[tool("a", "b")], [tool("a", "<tool_call>")], [tool("a", "b"), tool("c", "\U000f0000 d")], [], None]
    turns = [user("Oslo?"), call({"city": "Oslo"}, ""), result("7"), assistant("Mild.")]
    template = shipped(name).template
    used = Renderer(template)
    for tools in [*lists, *lists]:
        for messages in (turns, [system("Be terse."), *turns]):
            row = Conversation(messages, tools=tools)
            again, first = used.render(row), Renderer(template).render(row)
            assert (again.text, again.spans) == (first.text, first.spans)


def test_a_row_with_tools_of_its_own_costs_one_render(shipped):
    one, renders = Renderer(shipped("qwen3").template), []
    usual = one.template.render
    turns = [user("Oslo?"), call({"city": "Oslo"}), result("7"), assistant("Mild.")]
    one.render(Conversation(turns, tools=[tool("a", "b")]))
    one.template.render = lambda *given, **more: renders.append(given) or usual(*given, **more)
    try:
        one.render(Conversation(turns, tools=[tool("a", "something else"), tool("d", "e")]))
    finally:
        del one.template.render
    assert len(renders) == 1


def test_a_syntax_error_names_the_line():
    with pytest.raises(UserError, match="line 2: "):
        Template("{% for m in messages %}\n{% endfo %}", {})


def test_the_clock_of_a_template_stands_still():
    template = Template("{{ strftime_now('%d %b %Y') }}", {}, now=datetime(2024, 7, 26))
    assert template.render([]) == "26 Jul 2024"


def test_a_template_cannot_leave_the_sandbox():
    for source in ("{{ ''.__class__.__mro__ }}", "{% set n = namespace(__class__=1) %}", "{{ dict.__init__ }}"):
        with pytest.raises(RowError, match=r"SecurityError|underscore"):
            Template(source + "{{ messages.append(1) }}", {}).render([])


def test_reasoning_is_found_under_all_its_names():
    template = Template("{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}", {})
    assert {
        template.render([{"role": "assistant", name: "r"}]) for name in ("reasoning_content", "thinking", "reasoning")
    } == {"r|r"}


FRAGMENTS = [
    "<|im_end|>",
    "<think>",
    "\n\n",
    " ",
    "<|im_start|>assistant\n",
    "[INST]",
    "\U000f0000",
    "user",
    "🌊",
    '"\\',
]
TEXTS = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(FRAGMENTS)), max_size=5).map("".join)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "phi3", "qwen3", "deepseekv3", "gptoss", "cohere2"])
@settings(max_examples=60, deadline=None)
@given(turns=TURNS)
def test_any_conversation_is_tiled_and_its_answers_are_generated_whole(
    shipped, name: str, turns: list[tuple[str, str]]
):
    conversation = [message for ask, answer in turns for message in (user(ask), assistant(answer))]
    rendered = shipped(name).render(Conversation(conversation))
    assert rendered.text == shipped(name).template.render(conversation)
    assert "".join(rendered.text[span.start : span.end] for span in rendered.spans) == rendered.text
    assert all(span.start < span.end for span in rendered.spans)
    assert all(span.role == "assistant" for span in rendered.spans if span.generated)
    for index, message in enumerate(conversation):
        own = [span for span in rendered.spans if span.message == index]
        text = "".join(rendered.text[span.start : span.end] for span in own)
        if message["role"] == "assistant":
            assert [span.end_of_turn for span in own] == [False] * (len(own) - 1) + [True]
            assert text.endswith(tuple(kept + rendered.text[own[-1].start : own[-1].end] for kept in trims(message)))
        else:
            assert text in trims(message)


def test_variables_of_the_template_move_the_generation_prompt(shipped):
    conversation = [user("2+2?"), assistant("4")]
    usual, quiet = (Conversation(conversation, template_kwargs=kwargs) for kwargs in ({}, {"enable_thinking": False}))
    head = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert shown(shipped("qwen3").render(usual)) == head + "[<think>\n\n</think>\n\n4][<|im_end|>]\n"
    assert shown(shipped("qwen3").render(quiet)) == head + "<think>\n\n</think>\n\n[4][<|im_end|>]\n"


def test_a_call_without_texts_has_an_end_too(shipped):
    conversation = [user("Now?"), call({"days": 2}, None), result("7"), assistant("Mild."), user("Ok")]
    assert '[<tool_call>\n{"name": "find_weather", "arguments": {"days": 2}}\n</tool_call>][<|im_end|>]' in (
        shown(shipped("qwen3").render(Conversation(conversation)))
    )


def trims(message: Message) -> list[str]:
    text = message["content"]
    return [text, text.strip(), text.lstrip("\n")]


@pytest.fixture(scope="module")
def shipped() -> Callable[[str], Renderer]:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    return cache(lambda name: renderer((folder / f"{name}.jinja").read_text("utf-8")))


def test_rendering_needs_no_heavy_library():
    code = (
        "import sys, sftrun.data.masks.render; print({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
