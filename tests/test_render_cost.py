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
