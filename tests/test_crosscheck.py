"""The cross-check derives masks again without the renderer; a difference is recorded, and stops a run on demand."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from conftest import talk
from conversations import KINDS, assistant, system, user

import sftrun.data
from sftrun.data.masks.crosscheck import EVERY, PER_SHAPE, SHAPES, CrossCheck, cross_check, mark_tags
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.types import Conversation, Rendered

CHATML = (Path(sftrun.data.__file__).parent / "masks" / "templates" / "chatml.jinja").read_text("utf-8")

# What transformers calls a training template: tags around what is generated, some of the header and the rest.
TAGGED = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '<|assistant|>' -}}{% generation %}{{ m.content + '<|end|>\\n' }}{% endgeneration %}
{%- else -%}{{- '<|' + m.role + '|>' + m.content + '<|end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""

LAST_ONLY = re.sub("{% (end)?generation %}", "", TAGGED).replace(
    "m.content + '<|end|>", "m.content + ('<|stop|>' if loop.last and not add_generation_prompt else '<|end|>') + '", 1
)
OPEN = "{%- for m in messages -%}{{- '<|' + m.role + '|>' + m.content -}}{%- endfor -%}" + (
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

CONVERSATION = Conversation([system("S"), user("a"), assistant("b"), user("c"), assistant("d")], origin="train.jsonl:7")


def renderer(source, **more):
    return Renderer(Template(source, {"bos_token": "<s>", "eos_token": "</s>"}), **more)


def compared(source, conversation=CONVERSATION, **more):
    one = renderer(source, **more)
    return cross_check(one, conversation, one.render(conversation), mark_tags(one.template))


def way(source, conversation=CONVERSATION, **more):
    """Returns the way in which the mask of a conversation was derived again, without a difference."""
    kind, disagreement = compared(source, conversation, **more)
    assert disagreement is None
    return kind


def test_tags_of_the_template_give_the_mask_again():
    assert way(TAGGED) == "generation"
    assert (
        way(TAGGED.replace("{{- '<|assistant|>' -}}{% generation %}", "{% generation %}<|assistant|>")) == "generation"
    )


def test_without_tags_the_renders_up_to_each_answer_do():
    assert way(CHATML) == "prefix"
    assert way(CHATML, Conversation([user("a"), assistant("b"), user("c")])) == "prefix"


def test_the_end_of_turn_that_the_recipe_adds_is_known():
    assert way(OPEN, eot_token="<|end|>") == "prefix"
    assert way(OPEN, Conversation([user("a"), assistant("b\n")]), eot_token="<|end|>") == "prefix"


def test_where_neither_way_goes_nothing_is_compared():
    assert way(LAST_ONLY) is None
    assert way(LAST_ONLY, Conversation([user("a"), assistant("b")])) == "prefix"


def test_flags_of_messages_are_no_hindrance():
    flagged = Conversation([user("a"), {**assistant("b"), "train": False}, user("c"), assistant("d")])
    assert (way(TAGGED, flagged), way(CHATML, flagged)) == ("generation", "prefix")


WITHOUT_END = TAGGED.replace(
    "{{ m.content + '<|end|>\\n' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|end|>"
)


def test_tags_that_leave_the_end_of_turn_out_differ():
    kind, disagreement = compared(WITHOUT_END, Conversation([user("a"), assistant("b")], origin="train.jsonl:7"))
    assert (kind, disagreement.origin, disagreement.kind) == ("generation", "train.jsonl:7", "generation")
    assert disagreement.reason == (
        "the mask differs from the template's {% generation %} tags, first at '<|end|>' (character 31)\n"
        "  sftrun: '<|user|>a<|end|>\\n<|assistant|>⟦b<|end|>⟧'\n"
        "  theirs: '<|user|>a<|end|>\\n<|assistant|>⟦b⟧<|end|>'"
    )


def test_tags_around_other_text_than_answers_differ():
    everything = CHATML.replace("{{- '<|im_start|>'", "{% generation %}{{ '<|im_start|>'").replace(
        "'\\n' -}}\n{%- endfor", "'\\n' }}{% endgeneration %}\n{%- endfor"
    )
    assert re.search(r"first at .*system", compared(everything).disagreement.reason)


WRONG = {
    "an answer that is not trained": (False, {"generated": False}),
    "one character too few": (False, {"start": 1}),
    "one character too many": (False, {"start": -1}),
    "no end of turn": (True, {"generated": False}),
    "a part of the next turn": (True, {"end": 2}),
}


@pytest.mark.parametrize("source", [TAGGED, CHATML], ids=["tags", "beginnings"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_mask_is_seen(source, wrong):
    one, conversation = renderer(source), Conversation([user("aa"), assistant("assistant"), user("cc")])
    is_end, changes = WRONG[wrong]

    def mistaken(span):
        if not span.generated or span.end_of_turn != is_end:
            return span
        moved = {name: getattr(span, name) + by if by else by for name, by in changes.items()}
        return msgspec.structs.replace(span, **moved)

    right = one.render(conversation)
    spans = [mistaken(span) for span in right.spans]
    assert cross_check(
        one, conversation, Rendered(right.text, spans, right.shape), mark_tags(one.template)
    ).disagreement


def seen(conversations, source=CHATML):
    one = renderer(source)
    crosscheck = CrossCheck(one)
    for conversation in conversations:
        crosscheck.compare(conversation, one.render(conversation))
    return crosscheck.to_json()


def counts(**more):
    return {"generation": 0, "prefix": 0, "none": 0, "differ": 0, "disagreements": [], **more}


def test_the_first_rows_of_each_shape_are_compared():
    same = [Conversation([user(str(number)), assistant("b")]) for number in range(9)]
    other = [Conversation([system("S"), *conversation.messages]) for conversation in same]
    assert seen(same) == counts(prefix=PER_SHAPE)
    assert seen([*same, *other], TAGGED) == counts(generation=2 * PER_SHAPE)


def test_of_many_rows_one_in_a_thousand_is_compared():
    one = renderer(CHATML)
    crosscheck = CrossCheck(one)
    conversation = Conversation([user("a"), assistant("b")])
    rendered = one.render(conversation)
    for _ in range(3 * EVERY):
        crosscheck.compare(conversation, rendered)
    assert crosscheck.counts["prefix"] == PER_SHAPE + 3


def test_of_very_many_shapes_the_first_are_compared():
    turns = [user("a"), assistant("b")]
    conversations = [Conversation(turns * count) for count in range(1, 30)] * 3
    assert seen(conversations)["prefix"] == 29 * PER_SHAPE < SHAPES


def test_what_could_not_be_compared_is_counted():
    assert seen([CONVERSATION], LAST_ONLY) == counts(none=1)
    assert seen([Conversation([{"role": "text", "content": "a"}], plain=True)]) == counts()


def test_differences_are_counted_and_the_first_are_recorded():
    conversations = [Conversation([user("a"), assistant("b")] * count, f"train.jsonl:{count}") for count in range(1, 9)]
    found = seen(conversations, WITHOUT_END)
    assert (found["generation"], found["differ"]) == (8, 8)
    assert [each["origin"] for each in found["disagreements"]] == [f"train.jsonl:{count}" for count in range(1, 6)]


def tagged_rows(write, tmp_path, **keys):
    (tmp_path / "tagged.jinja").write_text(WITHOUT_END)
    keys = {"model": {"chat_template": str(tmp_path / "tagged.jinja")}, **keys}
    return write([talk("a", "b"), talk("c", "d"), talk("e", "f")], **keys)


def test_a_difference_is_a_warning_of_preparing_and_in_the_proof(sftrun, write, tmp_path):
    recipe = tagged_rows(write, tmp_path)
    for out in ("made", "cached"):
        said = sftrun("prepare", recipe, "--out", tmp_path / out)
        assert said.code == 0, said.err
        assert "warning: cross-check: 2 of 2 compared rows have another mask; first: " in said.err
        assert "train.jsonl:1" in said.err
        proof = json.loads((tmp_path / out / "prepared" / "proof.json").read_text())["crosscheck"]
        assert (proof["differ"], proof["generation"]) == (2, 2)
        assert [each["origin"] for each in proof["disagreements"]] == ["train.jsonl:1", "train.jsonl:2"]
        assert "first at '<|end|>'" in proof["disagreements"][0]["reason"]


def test_a_difference_stops_the_run_if_the_recipe_asks_for_it(sftrun, write, tmp_path):
    assert sftrun("prepare", tagged_rows(write, tmp_path), "--out", tmp_path / "warned").code == 0
    for out in ("cached", "again"):
        recipe = tagged_rows(write, tmp_path, data={"crosscheck": "error"})
        said = sftrun("prepare", recipe, "--out", tmp_path / out)
        assert said.code == 1
        assert "error: cross-check: 2 of 2 compared rows have another mask" in said.err
        assert "train.jsonl:1: error: the mask differs from the template's {% generation %} tags" in said.err
        assert "if the tags are wrong, remove them from the template: sftrun needs none" in said.err
    fine = write([talk("a", "b")], data={"crosscheck": "error"})
    assert sftrun("prepare", fine, "--out", tmp_path / "fine").code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_conversation_agrees_on_the_built_in_template(kind):
    conversation = KINDS[kind]
    if all(
        isinstance(message["content"], str) and set(message) <= {"role", "content"} for message in conversation.messages
    ):
        assert way(CHATML, conversation) == "prefix"
