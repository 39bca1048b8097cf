"""The maskers, on one conversation with thoughts, a call and an answer. What is trained stands between ⟦ and ⟧."""

import json
import re

import pytest
from conversations import TOOL, assistant, call, result, system, user

from sftrun import Conversation, RunDir, Use, UserError, create, testing
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template

SOURCE = """{%- for m in messages -%}
{{- '<' + m.role + '>' -}}
{%- if m.reasoning_content -%}{{- '<think>' + m.reasoning_content + '</think>\\n' -}}{%- endif -%}
{{- m.content or '' -}}
{%- for c in m.tool_calls or [] -%}{{- '<call>' + c.function.name + c.function.arguments | tojson + '</call>' -}}
{%- endfor -%}{{- '<end>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}"""
RENDERER = Renderer(Template(SOURCE, {"bos_token": "<s>", "eos_token": "</s>"}), adds_bos=True)

TALK = Conversation(
    [
        system("Be terse."),
        user("Oslo?"),
        call({"city": "Oslo"}, "I look.", reasoning_content="A call."),
        result("7"),
        assistant("It is 7.", reasoning_content="Done."),
    ],
    tools=[TOOL],
)


def masker(use, **options):
    return create("masker", Use(use=use, with_=options))


def shown(masker, conversation=TALK):
    """The rendered conversation with trained text marked, stretches that touch joined."""
    rendered = RENDERER.render(conversation)
    text = ""
    for span, chosen in zip(rendered.spans, masker.choose(rendered.spans), strict=True):
        inner = rendered.text[span.start : span.end]
        narrow = None if span.end_of_turn else getattr(masker, "narrow", None)
        stretches = narrow(inner) if chosen and narrow else [(0, len(inner))] if chosen else []
        end = 0
        for start, stop in stretches:
            text += inner[end:start] + f"⟦{inner[start:stop]}⟧"
            end = stop
        text += inner[end:]
    return text.replace("⟧⟦", "")


def trained(masker, conversation=TALK):
    return re.findall("⟦(.*?)⟧", shown(masker, conversation), re.DOTALL)


def said(**options):
    """The trained text of the conversation, with the masker `assistant`."""
    return trained(masker("assistant", **options))


CALL = '<call>find_weather{"city": "Oslo"}</call>'


def test_assistant_trains_every_answer_and_nothing_else():
    assert shown(masker("assistant")) == (
        "<system>Be terse.<end><user>Oslo?<end><assistant>⟦<think>A call.</think>\n"
        f"I look.{CALL}<end>⟧<tool>7<end><assistant>⟦<think>Done.</think>\nIt is 7.<end>⟧"
    )


def test_a_turn_of_which_nothing_is_trained_has_no_trained_end():
    only_calls = Conversation([user("Oslo?"), call({"city": "Oslo"}), result("7"), assistant("It is 7.")], tools=[TOOL])
    assert trained(masker("assistant", tool_calls=False), only_calls) == ["It is 7.<end>"]
    assert trained(masker("assistant"), Conversation([user("Say nothing."), assistant("")])) == ["<end>"]


def test_each_part_of_an_answer_can_be_left_out():
    assert said(reasoning=False) == [f"I look.{CALL}<end>", "It is 7.<end>"]
    assert said(tool_calls=False) == [
        "<think>A call.</think>\nI look.",
        "<end>",
        "<think>Done.</think>\nIt is 7.<end>",
    ]
    assert said(end_of_turn=False) == [f"<think>A call.</think>\nI look.{CALL}", "<think>Done.</think>\nIt is 7."]
    assert said(reasoning=False, tool_calls=False, end_of_turn=False) == ["I look.", "It is 7."]


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", ["Yes.<end>"]),
        ("[THINK]Hm.[/THINK]Yes.", ["Yes.<end>"]),
        ("Hm.</think>Yes.", ["Yes.<end>"]),
        ("Yes.<think>Hm", ["Yes.", "<end>"]),
        ("Yes.", ["Yes.<end>"]),
    ],
)
def test_thoughts_in_the_content_are_thoughts_too(content, rest):
    conversation = Conversation([user("?"), assistant(content)])
    assert trained(masker("assistant", reasoning=False), conversation) == rest
    assert trained(masker("assistant"), conversation) == [f"{content}<end>"]


def test_last_reply_trains_the_last_answer_only():
    assert trained(masker("last-reply")) == ["<think>Done.</think>\nIt is 7.<end>"]
    assert trained(masker("last-reply", reasoning=False)) == ["It is 7.<end>"]
    assert trained(masker("last-reply", end_of_turn=False, tool_calls=False)) == ["<think>Done.</think>\nIt is 7."]
    asked_again = Conversation([user("a"), assistant("b"), user("c")])
    assert trained(masker("last-reply"), asked_again) == ["b<end>"]


def test_all_trains_the_template_too():
    assert shown(masker("all")) == f"⟦{RENDERER.render(TALK).text}⟧"


PLAIN = Conversation([{"role": "prompt", "content": "2+2="}, {"role": "completion", "content": "4"}], plain=True)


def test_completion_trains_what_follows_the_prompt():
    assert shown(masker("completion"), PLAIN) == "<s>2+2=⟦4</s>⟧"
    assert shown(masker("completion", end_of_turn=False), PLAIN) == "<s>2+2=⟦4⟧</s>"
    assert trained(masker("completion", reasoning=False)) == ["It is 7.<end>"]
    assert trained(masker("completion"), Conversation([user("a"), assistant("b"), user("c")])) == []


def test_a_completion_of_several_messages_is_told_by_their_flags():
    flags = [False, False, True, False, True]
    conversation = Conversation([{**m, "train": flag} for m, flag in zip(TALK.messages, flags, strict=True)])
    assert trained(masker("completion", reasoning=False, tool_calls=False)) == ["It is 7.<end>"]
    assert trained(masker("completion", reasoning=False, tool_calls=False), conversation) == [
        "I look.",
        "<end>",
        "It is 7.<end>",
    ]


def flagged(*flags):
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")]
    return Conversation(
        [turn if flag is None else {**turn, "train": flag} for turn, flag in zip(turns, flags, strict=True)]
    )


def test_flagged_trains_the_answers_that_say_so():
    conversation = flagged(None, True, None, False, None, None)
    assert trained(masker("flagged"), conversation) == ["b<end>", "f<end>"]
    assert trained(masker("flagged", otherwise="skip"), conversation) == ["b<end>"]
    assert trained(masker("flagged", end_of_turn=False), conversation) == ["b", "f"]
    assert masker("flagged").honours_flags


def test_flagged_never_trains_what_the_model_does_not_write():
    assert trained(masker("flagged", otherwise="skip"), flagged(True, None, True, None, None, None)) == []


def test_flagged_leaves_out_parts_as_well():
    assert trained(masker("flagged", reasoning=False, tool_calls=False)) == ["I look.", "<end>", "It is 7.<end>"]


def test_roles_trains_all_text_of_these_roles():
    assert trained(masker("roles", roles=["user", "tool"])) == ["Oslo?", "7"]
    assert trained(masker("roles", roles=["assistant"])) == trained(masker("assistant"))
    assert shown(masker("roles", roles=["user"]), Conversation([user("a"), assistant("b")])) == (
        "<user>⟦a⟧<end><assistant>b<end>"
    )


def test_roles_says_which_role_there_is_not(tmp_path):
    (tmp_path / "prepared").mkdir()
    roles = {"user": {"tokens": 1, "trained": 0}, "assistant": {"tokens": 1, "trained": 1}, "template": {}}
    (tmp_path / "prepared/proof.json").write_text(json.dumps({"splits": {"train": {"by_role": roles}}}))
    found = list(masker("roles", roles=["assistant", "asistant"]).check_prepared(None, RunDir(tmp_path)))
    assert [str(problem) for problem in found] == [
        "error: no message has the role asistant; the data has assistant, user"
    ]


SUM = Conversation([user("2+2?"), assistant("Two and two.\n#### 4\nSo <answer>four</answer>")])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pattern": r"#### \d+"}, ["#### 4", "<end>"]),
        ({"pattern": r"#### (\d+)"}, ["4", "<end>"]),
        ({"pattern": r"(#+) (?P<train>\d+)", "end_of_turn": False}, ["4"]),
        ({"pattern": r"[Tt]wo", "end_of_turn": False}, ["Two", "two"]),
        ({"pattern": "five"}, ["<end>"]),
        ({"start": "<answer>", "end": "</answer>", "end_of_turn": False}, ["four"]),
        ({"start": "#### "}, ["4\nSo <answer>four</answer><end>"]),
        ({"start": "#### ", "end": "\n", "end_of_turn": False}, ["4"]),
        ({"start": "So ", "end": "never"}, ["<answer>four</answer><end>"]),
    ],
)
def test_spans_trains_what_a_pattern_or_marks_point_out(options, expected):
    assert trained(masker("spans", **options), SUM) == expected


def test_spans_looks_in_the_content_unless_told_otherwise():
    word = {"pattern": r"\b(?:call|look|city)\b", "end_of_turn": False}
    assert trained(masker("spans", **word)) == ["look"]
    assert trained(masker("spans", **word, reasoning=True)) == ["call", "look"]
    assert trained(masker("spans", **word, tool_calls=True)) == ["look", "call", "city", "call"]
    inline = Conversation([user("?"), assistant("<think>look</think>look")])
    assert trained(masker("spans", **word), inline) == ["look"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set either pattern or start"),
        ({"pattern": "a", "start": "b"}, "set either pattern or start"),
        ({"pattern": "a", "end": "b"}, "end has no effect with a pattern"),
        ({"pattern": "(a"}, "not a regular expression: missing ), unterminated subpattern"),
    ],
)
def test_spans_refuses_options_that_say_nothing(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        masker("spans", **options)


def test_validating_says_that_a_pattern_is_none(sftrun, write):
    said = sftrun("validate", write([], masker={"use": "spans", "with": {"pattern": "(a"}}))
    assert said.code == 1
    assert "error: not a regular expression: missing )" in said.err


def test_what_is_trained_does_not_depend_on_where_it_stands():
    short, long = (Conversation([user(text), *SUM.messages[1:]]) for text in ("a", "a" * 500))
    for use, options in [("assistant", {}), ("spans", {"pattern": "four"}), ("last-reply", {"reasoning": False})]:
        assert trained(masker(use, **options), short) == trained(masker(use, **options), long)


def test_masks_hold_on_tokens_too():
    assert testing.shown(
        masker("last-reply"), Conversation([user("a"), assistant("b"), user("c"), assistant("d")])
    ) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n"
    )
