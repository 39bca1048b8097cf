"""The cost of a row: linear in its length on every way to its mask."""

import time

import pytest

from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.types import Conversation

ESCAPING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | replace('&', '&amp;') }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def measure(messages: list[dict[str, str]]) -> float:
    """Returns the seconds for one row; its mask is found word by word."""
    renderer = Renderer(Template(ESCAPING, {}))
    start = time.process_time()
    found = renderer.render(Conversation(messages))
    assert found.shape is None
    generated = "".join(found.text[span.start : span.end] for span in found.spans if span.generated)
    assert "&amp;" in generated
    return time.process_time() - start


@pytest.mark.parametrize("long", ["user", "assistant"])
def test_a_long_text_word_by_word_takes_seconds(long):
    messages = [{"role": role, "content": "a & b"} for role in ("user", "assistant")]
    for message in messages:
        if message["role"] == long:
            message["content"] = "one & two, 'three' <four> " * 4000  # 100 kB; with quadratic time, minutes
    assert measure(messages) < 20


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Counting(Template):
    """A template that counts the messages that it renders."""

    rendered = 0

    def render(self, messages, /, **options):
        self.rendered += len(messages)
        return super().render(messages, **options)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_long_talk_renders_each_message_a_limited_number_of_times(role):
    template = Counting(CHATML, {})
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    for number in range(500):
        messages += [{"role": "assistant", "content": f"a{number}"}, {"role": role, "content": f"b{number}"}]
    found = Renderer(template).render(Conversation(messages))
    assert [found.text[span.start : span.end] for span in found.spans if span.generated and not span.end_of_turn] == [
        f"a{number}" for number in range(500)
    ]
    assert template.rendered < 100 * len(messages)


def test_a_long_talk_has_the_mask_that_all_its_beginnings_give(monkeypatch):
    from sftrun.data.masks import survey

    messages = [{"role": role, "content": role[0]} for role in ("user", "assistant") * 40]
    shortened = Renderer(Template(CHATML, {})).render(Conversation(messages)).spans
    monkeypatch.setattr(survey, "LONG", len(messages))
    assert Renderer(Template(CHATML, {})).render(Conversation(messages)).spans == shortened
