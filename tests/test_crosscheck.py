"""The cross-check finds masks again without the renderer, and stops where they differ."""

import re
from pathlib import Path

import msgspec
import pytest
from conversations import KINDS, assistant, system, user

import sftrun.data
from sftrun.data.masks.crosscheck import EVERY, PER_SHAPE, SHAPES, CrossCheck, check, tagged
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.errors import UserError
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

TALK = Conversation([system("S"), user("a"), assistant("b"), user("c"), assistant("d")], origin="train.jsonl:7")


def renderer(source, **more):
    return Renderer(Template(source, {"bos_token": "<s>", "eos_token": "</s>"}), **more)


def way(source, talk=TALK, **more):
    """In which way the mask of a talk was found again."""
    one = renderer(source, **more)
    return check(one, talk, one.render(talk), tagged(one.template))


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


def test_tags_that_leave_the_end_of_turn_out_stop_the_run():
    source = TAGGED.replace(
        "{{ m.content + '<|end|>\\n' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|end|>"
    )
    with pytest.raises(UserError) as caught:
        way(source, Conversation([user("a"), assistant("b")], origin="train.jsonl:7"))
    assert str(caught.value) == (
        "error: train.jsonl:7: what is trained differs from what the template's {% generation %} tags say, first at "
        "'<|end|>' (character 31)\n"
        "  sftrun: '<|user|>a<|end|>\\n<|assistant|>⟦b<|end|>⟧'\n"
        "  theirs: '<|user|>a<|end|>\\n<|assistant|>⟦b⟧<|end|>'\n"
        " ; where the tags are wrong, take them out of the template: sftrun needs none"
    )


def test_tags_around_other_text_than_answers_stop_the_run():
    everything = CHATML.replace("{{- '<|im_start|>'", "{% generation %}{{ '<|im_start|>'").replace(
        "'\\n' -}}\n{%- endfor", "'\\n' }}{% endgeneration %}\n{%- endfor"
    )
    with pytest.raises(UserError, match=r"first at .*system"):
        way(everything)


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
    one, talk = renderer(source), Conversation([user("aa"), assistant("assistant"), user("cc")])
    is_end, changes = WRONG[wrong]

    def mistaken(span):
        if not span.generated or span.end_of_turn != is_end:
            return span
        moved = {name: getattr(span, name) + by if by else by for name, by in changes.items()}
        return msgspec.structs.replace(span, **moved)

    right = one.render(talk)
    spans = [mistaken(span) for span in right.spans]
    with pytest.raises(UserError):
        check(one, talk, Rendered(right.text, spans, right.shape), tagged(one.template))


def seen(talks, source=CHATML):
    one = renderer(source)
    crosscheck = CrossCheck(one)
    for talk in talks:
        crosscheck.see(talk, one.render(talk))
    return crosscheck.counts


def test_the_first_rows_of_each_shape_are_compared():
    same = [Conversation([user(str(number)), assistant("b")]) for number in range(9)]
    other = [Conversation([system("S"), *talk.messages]) for talk in same]
    assert seen(same) == {"generation": 0, "prefix": PER_SHAPE, "none": 0}
    assert seen([*same, *other], TAGGED) == {"generation": 2 * PER_SHAPE, "prefix": 0, "none": 0}


def test_of_many_rows_one_in_a_thousand_is_compared():
    one = renderer(CHATML)
    crosscheck = CrossCheck(one)
    talk = Conversation([user("a"), assistant("b")])
    rendered = one.render(talk)
    for _ in range(3 * EVERY):
        crosscheck.see(talk, rendered)
    assert crosscheck.counts["prefix"] == PER_SHAPE + 3


def test_of_very_many_shapes_the_first_are_compared():
    turns = [user("a"), assistant("b")]
    talks = [Conversation(turns * count) for count in range(1, 30)] * 3
    assert seen(talks)["prefix"] == 29 * PER_SHAPE < SHAPES


def test_what_could_not_be_compared_is_counted():
    assert seen([TALK], LAST_ONLY) == {"generation": 0, "prefix": 0, "none": 1}
    assert seen([Conversation([{"role": "text", "content": "a"}], plain=True)]) == {
        "generation": 0,
        "prefix": 0,
        "none": 0,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_talk_agrees_on_the_built_in_template(kind):
    talk = KINDS[kind]
    if all(isinstance(message["content"], str) and set(message) <= {"role", "content"} for message in talk.messages):
        assert way(CHATML, talk) == "prefix"
