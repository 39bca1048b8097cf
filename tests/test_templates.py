"""Marks on the templates that trl ships, against the `{% generation %}` marks of their training twins.

Without a twin, or if it writes another text, against the renders up to each answer, and word by word.

Writes `docs/templates.md` when SFTRUN_UPDATE is set; fails when that file is stale.
"""

import os
import re
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from conversations import KINDS, as_lists
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import sftrun
from sftrun.data.masks.crosscheck import cross_check, mark_tags
from sftrun.data.masks.render import Renderer
from sftrun.data.masks.template import Template
from sftrun.errors import RowError
from sftrun.types import Conversation, Message, Rendered

trl = pytest.importorskip("trl")
hub = pytest.importorskip("transformers.utils.chat_template_utils")

pytestmark = pytest.mark.older

FOLDER = Path(trl.__file__).parent / "chat_templates"
TWINS = sorted(file.stem.removesuffix("_training") for file in FOLDER.glob("*_training.jinja"))
ALONE = sorted(
    file.stem for file in FOLDER.glob("*.jinja") if file.stem not in TWINS and not file.stem.endswith("_training")
)
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
DOCUMENT = Path(__file__).parent.parent / "docs" / "templates.md"


class Subject(NamedTuple):
    """A template under test; `lists` says that it reads contents only as lists."""

    source: str
    renderer: Renderer
    lists: bool

    def conversation(self, kind: str) -> Conversation:
        return as_lists(KINDS[kind]) if self.lists else KINDS[kind]


def load(name: str) -> Subject:
    source = (FOLDER / f"{name}.jinja").read_text("utf-8")
    renderer = Renderer(Template(source, TOKENS, name=name))
    return Subject(source, renderer, renderer.template.wraps_text)


def reference(source: str, conversation: Conversation) -> tuple[str | None, set[int]]:
    """The text of a conversation and the positions in it that a training template marks as generated."""
    try:
        texts, marks = hub.render_jinja_template(
            [conversation.messages],
            tools=conversation.tools,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **TOKENS,
        )
    except Exception:  # the twin refuses what the template takes
        return None, set()
    return texts[0], {position for start, end in marks[0] for position in range(start, end)}


def trained(rendered: Rendered) -> set[int]:
    return {position for span in rendered.spans if span.generated for position in range(span.start, span.end)}


def stretches(positions: set[int]) -> list[tuple[int, int]]:
    ordered = sorted(positions)
    breaks = [index for index, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1]
    cuts = [0, *breaks, len(ordered)] if ordered else []
    return [(ordered[a], ordered[b - 1] + 1) for a, b in pairwise(cuts)]


def assert_equal(subject: Subject, conversation: Conversation, ours: Rendered, marks: set[int]) -> None:
    """Ours equals the reference up to white space after an end of turn and text of the generation prompt."""
    assert not trained(ours) - marks, "we train what the training template does not"
    ends = {span.end for span in ours.spans if span.end_of_turn}
    starts = {span.start: span.message for span in ours.spans if span.generated}
    for start, end in stretches(marks - trained(ours)):
        text = ours.text[start:end]
        if start in ends and not text.strip():
            continue
        assert end in starts, f"we do not train {text!r}"
        assert text in prompt(subject, conversation, starts[end])[-80:], f"we do not train {text!r}"


def prompt(subject: Subject, conversation: Conversation, message: int) -> str:
    """What leads to a message; some templates render nothing without a user's message."""
    try:
        return subject.renderer.render_prompt(
            conversation.messages[:message], conversation.tools, conversation.template_kwargs
        )
    except RowError:
        return subject.renderer.render_prompt([{"role": "user", "content": "x"}])


def assert_words(conversation: Conversation, ours: Rendered) -> None:
    """Without a reference: every word of an answer is in its spans, its end too, and no other text is trained."""
    assert "".join(ours.text[span.start : span.end] for span in ours.spans) == ours.text
    answers = [message for message in conversation.messages if message["role"] == "assistant"]
    for index, message in enumerate(conversation.messages):
        own = [span for span in ours.spans if span.message == index]
        text = "".join(ours.text[span.start : span.end] for span in own)
        if message["role"] == "assistant":
            assert words(message) == [word for word in words(message) if word in text]
            assert sum(span.end_of_turn for span in own) == 1
            assert own[-1].end_of_turn
        else:
            assert not any(span.generated for span in own)
            learned = "".join(ours.text[span.start : span.end] for span in ours.spans if span.generated)
            told = any(content(message) in content(answer) for answer in answers)
            assert told or content(message) not in learned


def content(message: Message) -> str:
    value = message["content"]
    return str(value[0]["text"] if isinstance(value, list) else value or "").strip()


def words(message: Message) -> list[str]:
    return re.findall(r"\w+", content(message))


def assert_parts(conversation: Conversation, ours: Rendered) -> None:
    """Content, reasoning and calls are each found in the spans of their part, and in no other."""
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        texts = {"content": "", "reasoning": "", "tool_calls": ""}
        for span in ours.spans:
            if span.message == index and span.generated:
                texts[span.part] += ours.text[span.start : span.end]
        thoughts = message.get("reasoning_content")
        names = [each["function"]["name"] for each in message.get("tool_calls", ())]
        assert content(message) in texts["content"] or content(message) not in "".join(texts.values())
        assert [texts["tool_calls"].count(name) >= names.count(name) for name in set(names)] == [True] * len(set(names))
        assert bool(names) or not texts["tool_calls"]
        if thoughts:
            assert thoughts in texts["reasoning"] or thoughts not in "".join(texts.values())
            assert content(message) not in texts["reasoning"] or not content(message)
        else:
            assert not texts["reasoning"]


def outcome(subject: Subject, twin: Subject | None, kind: str) -> str:
    """What the mask was found equal to, or the reason of a refusal; a difference fails."""
    conversation = subject.conversation(kind)
    try:
        ours = subject.renderer.render(conversation)
    except RowError as error:
        return reason(str(error), subject.renderer.template.name)
    assert_words(conversation, ours)
    assert_parts(conversation, ours)
    own_tags = mark_tags(subject.renderer.template)
    if own_tags:
        assert cross_check(subject.renderer, conversation, ours, own_tags) == ("generation", None)
    text, marks = reference(twin.source, conversation) if twin else (None, set())
    if text == ours.text:
        assert_equal(subject, conversation, ours, marks)
        return "equal"
    kind, disagreement = cross_check(subject.renderer, conversation, ours, None)
    assert disagreement is None
    return "beginnings" if kind else "words"


def reason(error: str, name: str) -> str:
    if "the chat template fails" in error:
        error = error[: error.index("the chat template fails")] + "it raises an error"  # in words of Jinja and Python
    return re.sub(r"^message \d+ \((\w+)\): ", r"\1: ", error).replace(f"chat template {name} ", "chat template ")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, tuple[str, str]]]:
    """For each template and kind, what comes of the template and of its twin."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for name in [*TWINS, *ALONE]:
        subject = load(name)
        twin = load(f"{name}_training") if name in TWINS else None
        found[name] = {
            kind: (outcome(subject, twin, kind), outcome(twin, twin, kind) if twin else "") for kind in KINDS
        }
    return found


def test_every_mark_equals_the_reference_or_the_row_is_refused(outcomes):
    assert not {"beginnings", "words"} & {on_twin for cells in outcomes.values() for _, on_twin in cells.values()}
    equal = sum(cell == ("equal", "equal") for cells in outcomes.values() for cell in cells.values())
    assert equal > len(TWINS) * len(KINDS) / 2


FRAGMENTS = ["<|im_end|>", "\n\n", " ", "assistant", "[INST]", "user", "🌊", '"\\', "<end_of_turn>", "<b>"]
TEXTS = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(FRAGMENTS)), max_size=4).map("".join)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
loaded = cache(load)


def chat(turns: list[tuple[str, str]], first: str) -> list[Message]:
    opening = [{"role": "system", "content": first}] if first else []
    return opening + [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def answers(subject: Subject, messages: list[Message]) -> list[str] | None:
    """What the masker `assistant` trains, message by message, each end of turn after a bar; None for a refusal."""
    conversation = Conversation(messages)
    try:
        ours = subject.renderer.render(as_lists(conversation) if subject.lists else conversation)
    except RowError:
        return None
    masker = sftrun.create("masker", sftrun.Use(use="assistant"))
    texts = {index: "" for index, message in enumerate(messages) if message["role"] == "assistant"}
    for span, chosen in zip(ours.spans, masker.choose(ours.spans), strict=True):
        if chosen:
            texts[span.message] += "|" * span.end_of_turn + ours.text[span.start : span.end]
    return list(texts.values())


@example(name="nemotron_3_5_lightning", turns=[("", "\x850 ")], first="")
@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([*TWINS, *ALONE]), turns=TURNS, first=st.sampled_from(["", "Be terse."]))
def test_what_is_trained_is_the_answers_and_their_ends(name: str, turns: list[tuple[str, str]], first: str):
    """But for what the template itself writes into every answer, such as empty thoughts."""
    subject = loaded(name)
    known = answers(subject, chat([("a", "\x01")] * len(turns), first))
    found = answers(subject, chat(turns, first))
    assume(known is not None and found is not None)
    for frame, trained, (_, answer) in zip(known, found, turns, strict=True):
        before, after = frame.split("\x01")
        trims = {answer.strip(), answer.lstrip(), answer.rstrip()}
        trims |= {answer.strip("\n"), answer.lstrip("\n"), answer.rstrip("\n")}
        fits = {before + kept + after for kept in {answer, *trims}}
        assert trained in fits | {each.lstrip("\n") for each in fits}


def test_few_random_conversations_are_refused():
    """So that the test before this one is no empty promise."""
    accepted = [answers(loaded(name), chat([("a b", "c\nd")] * 2, "")) is not None for name in [*TWINS, *ALONE]]
    assert sum(accepted) >= len(accepted) - 1  # one template has no end of turn


def test_texts_are_what_transformers_renders():
    for file in sorted(FOLDER.glob("*.jinja")):
        source = file.read_text("utf-8")
        template = Template(source, TOKENS)
        for kind, conversation in KINDS.items():
            for prompt in (False, True):
                theirs = rendered_by_transformers(source, conversation, prompt)
                assert rendered_by_us(template, conversation, prompt) == theirs, (file.name, kind)


def rendered_by_transformers(source: str, conversation: Conversation, prompt: bool) -> str | None:
    try:
        texts, _ = hub.render_jinja_template(
            [conversation.messages],
            tools=conversation.tools,
            chat_template=source,
            add_generation_prompt=prompt,
            **TOKENS,
        )
    except Exception:
        return None
    return str(texts[0])


def rendered_by_us(template: Template, conversation: Conversation, prompt: bool) -> str | None:
    try:
        return template.render(conversation.messages, tools=conversation.tools, add_generation_prompt=prompt)
    except RowError:
        return None


def test_the_table_in_the_documentation_is_true(outcomes):
    new = document(outcomes)
    if os.environ.get("SFTRUN_UPDATE"):
        DOCUMENT.write_text(new, "utf-8")
    old = DOCUMENT.read_text("utf-8")
    if f"trl {version('trl')}" not in old:
        pytest.skip("the table was made with another trl; marks were compared all the same")
    assert old == new, "docs/templates.md is stale: run this test with SFTRUN_UPDATE=1"


def document(outcomes: dict[str, dict[str, tuple[str, str]]]) -> str:
    notes: list[str] = []
    rows = [
        f"| {name} | " + " | ".join(cell(pair, notes) for pair in cells.values()) + " |"
        for name, cells in outcomes.items()
    ]
    pairs = [pair for cells in outcomes.values() for pair in cells.values()]
    single = [result for pair in pairs for result in pair if result]
    counts = {name: single.count(name) for name in ("equal", "beginnings", "words")}
    return PAGE.format(
        version=version("trl"),
        templates=len(TWINS),
        alone=len(ALONE),
        kinds="\n".join(f"{number}. {kind}" for number, kind in enumerate(KINDS, 1)),
        head="| template | " + " | ".join(str(number) for number in range(1, len(KINDS) + 1)) + " |",
        rule="|---|" + "---|" * len(KINDS),
        rows="\n".join(rows),
        notes="\n".join(f"- **{letter(index)}**: {note}" for index, note in enumerate(notes)),
        renders=len(single),
        refused=len(single) - sum(counts.values()),
        **counts,
    )


SIGNS = {"equal": "=", "beginnings": "b", "words": "w"}


def cell(pair: tuple[str, str], notes: list[str]) -> str:
    first, second = (short(result, notes) for result in pair)
    return first if second in ("", first) or (first in "bw" and second == "=") else f"{first} / {second}"


def short(result: str, notes: list[str]) -> str:
    if not result or result in SIGNS:
        return SIGNS.get(result, "")
    if result not in notes:
        notes.append(result)
    return letter(notes.index(result))


def letter(index: int) -> str:
    return f"r{index + 1}"


PAGE = """# Chat templates

sftrun has to train the right tokens of a conversation with any chat template. To see the mask of your own rows, run
`sftrun inspect RECIPE`. This page shows the results on the templates that come with trl {version}.
`tests/test_templates.py` writes it.

trl ships {templates} templates in two versions: the original of the model's makers, and a *training twin* in which the
generated text is marked by hand. sftrun needs no such marks. The test compares its masks with them, for every template,
every twin and every kind of conversation in the list below.

"Equal" means that the same characters are trained, with two exceptions: white space after the end-of-turn token, and
text that the generation prompt already holds. The twins do not agree among themselves about these. sftrun trains
neither, because the model never has to write them.

{alone} more templates have no twin, and some templates write another text than their twin. There the test compares the
masks with the template's own renders: up to each answer, with the generation prompt, and up to the end of the answer.
That needs renders that are prefixes of the full text. Without them, the test checks that every word of the answers and
the end of each turn is trained, and no other text.

Of {renders} comparisons, {equal} equal the marks of the twin, {beginnings} equal the renders up to each answer, and
{words} were checked word by word. {refused} were refused: sftrun reports the reason and does not train on such a row.
None differs.

## Symbols

- **=**: equal to the marks of the twin, on the template and on the twin.
- **b**: equal to the renders up to each answer; a twin, if any, writes another text and is equal on that.
- **w**: every word of the answers and every end of a turn is trained, and no other text; a twin as for **b**.
- **r1**, **r2**, …: refused; the reasons are below the table.
- **a / b**: a is the result on the template, b on its twin.

Templates that only read contents as lists of parts were given such lists.

## Kinds of conversation

{kinds}

## Table

{head}
{rule}
{rows}

## Reasons

{notes}
"""
