"""Templates from the internet: what loops, writes or nests too much is an error of the template, with its line."""

import time

import pytest

from sftrun import tiny
from sftrun.data.masks import limits
from sftrun.data.masks.template import Template
from sftrun.data.tokens.tokenizer import load_tokenizer
from sftrun.errors import RowError, UserError
from sftrun.recipe.model import ModelOptions

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FOREVER = "{% for i in range(9999) %}{% for j in range(9999) %}BODY{% endfor %}{% endfor %}"
GROWS = "{% set ns = namespace(s=FIRST) %}{% for i in range(99) %}\n{% set ns.s = NEXT %}{% endfor %}"
HUGE = "99999999999"


def grows(first: str, following: str) -> str:
    return GROWS.replace("FIRST", first).replace("NEXT", following)


LIMITED = {
    "endless loop": (FOREVER.replace("BODY", ""), "steps"),
    "endless macro": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "s",
    ),
    "endless output": (FOREVER.replace("BODY", "\n{{ 'x' * 1000 }}"), "writes more than"),
    "endless output in a block": ("{% set x %}" + FOREVER.replace("BODY", "x" * 100) + "{% endset %}", "writes more"),
    "endless output in a filter": (
        "{% filter upper %}" + FOREVER.replace("BODY", "{{ 'x' * 99 }}") + "{% endfilter %}",
        "",
    ),
    "repeated text": ("{{ 'x' * HUGE }}", "repeats a text"),
    "repeated list": ("{% set x = HUGE * [1] %}", "repeats a text"),
    "growing text": (grows("'x'", "ns.s ~ ns.s"), "keeps more than"),
    "growing list": (grows("[1]", "ns.s + ns.s"), "keeps more than"),
    "growing number": (grows("9", "ns.s * ns.s"), "computes a number"),
    "growing replacement": (grows("'x'", "ns.s.replace('x', 'xxxxxxxxx')"), "replaces text"),
    "replacing filter": (grows("'x'", "ns.s | replace('x', 'xxxxxxxxx')"), "replaces text"),
    "join": ("{{ range(99999) | join('x' * 9999) }}", "joins texts"),
    "joining method": ("{{ ('x' * 99999).join(['a'] * 99999) }}", "joins texts"),
    "power": ("{{ 9 ** HUGE }}", "power"),
    "percent width": ("{{ '%HUGEd' % 1 }}", "width"),
    "format width": ("{{ '{:>HUGE}'.format(1) }}", "width"),
    "format filter": ("{{ '%HUGEd' | format(1) }}", "width"),
    "center": ("{{ 'x'.center(HUGE) }}", "number"),
    "center filter": ("{{ 'x' | center(HUGE) }}", "number"),
    "indent": ("{{ 'x' | indent(HUGE) }}", "number"),
    "tojson": ("{{ [1] | tojson(indent=HUGE) }}", "number"),
    "lipsum": ("{{ lipsum(n=HUGE) }}", "number"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_template_without_bounds_is_stopped_in_its_line(name, monkeypatch):
    monkeypatch.setattr(limits, "STEPS", 100_000)
    monkeypatch.setattr(limits, "CHARACTERS", 1_000_000)
    source, why = LIMITED[name]
    begun = time.process_time()
    with pytest.raises(RowError, match=rf"^the chat template bad\.jinja was stopped at line [234]: it .*{why}"):
        Template("a\n" + source.replace("HUGE", HUGE), {}, name="bad.jinja").render(TALK)
    assert time.process_time() - begun < 20


def test_a_render_has_a_limit_of_time(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    with pytest.raises(RowError, match=r"stopped at line 1: it takes more than 0 seconds"):
        Template(FOREVER.replace("BODY", "{% set x = range(9999) | list %}"), {}).render(TALK)


def test_each_render_has_the_whole_budget(monkeypatch):
    monkeypatch.setattr(limits, "STEPS", 100)
    template = Template("{% for i in range(60) %}{{ i }}{% endfor %}", {})
    assert template.render(TALK) == template.render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{% if true %}" * 2000 + "{% endif %}" * 2000,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "not " * 3000 + "1 }}",
        "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    ],
    ids=["ifs", "brackets", "nots", "loops"],
)
def test_a_template_that_nests_too_deeply_cannot_be_compiled(source):
    with pytest.raises(
        UserError, match=r"bad\.jinja: error: the chat template cannot be compiled: it nests too deeply"
    ):
        Template(source, {}, name="bad.jinja")


def test_half_a_surrogate_pair_is_an_error_of_the_template():
    with pytest.raises(UserError, match=r"bad\.jinja:2: .*half of a surrogate pair"):
        Template("a\n\ud800", {}, name="bad.jinja")
    with pytest.raises(RowError, match=r"bad\.jinja was stopped: it writes '\\ud800' at line 2, half of a surrogate"):
        Template("a\n{{ '\\uD800' }}", {}, name="bad.jinja").render(TALK)
    with pytest.raises(RowError, match="half of a surrogate pair"):
        Template("{{ '%c' % 55296 }}", {}).render(TALK)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% set x %}a{{ undefined }}b{% endset %}{{ x }}", "ab"),
        ("{% macro f(x, y='q') %}({{ x }}{{ y }}){% endmacro %}{{ f(1) }}{{ f('x', none) }}", "(1q)(xNone)"),
        ("{% set x, y = 'a', 'b' %}{{ x ~ y * 3 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ '%s-%d' % ('a', 3) }}", "abbb31024a-3"),
        (
            "{{ ['a', 'b'] | join(', ') }}{{ [{'k': 'c'}] | join(attribute='k') }}{{ 'aXa' | replace('a', 'b', 1) }}",
            "a, bcbXa",
        ),
        ("{{ '{} {x}'.format(1, x=2) }}{{ 'x\ny' | indent(2, true) }}{{ 'x' | center(3) }}", "1 2  x\n  y x "),
        ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}", "1a"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "b"),
    ],
)
def test_the_counts_change_no_text(source, text):
    assert Template(source, {}).render(TALK) == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff"),
        ("tokenizer.json", b'{"a":'),
        ("tokenizer_config.json", b'{"a":'),
        ("x.jinja", b"\xff"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_named(name, content, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((tiny.folder() / file).read_bytes())
    (tmp_path / name).write_bytes(content)
    template = str(tmp_path / name) if name == "x.jinja" else None
    with pytest.raises(UserError, match=f"{name} cannot be read: .*; fetch or save the file again"):
        load_tokenizer(ModelOptions(name=str(tmp_path), chat_template=template))
