"""Token masks: the fast way, over whole batches, gives what the offsets of every token give, for any template."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conversations import KINDS, as_lists, assistant, system, user
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftrun import tiny
from sftrun.data.masks.render import Renderer
from sftrun.data.tokens.encode import Encoder
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.errors import RowError, UserError
from sftrun.recipe.model import ModelOptions
from sftrun.types import Conversation, Rendered

trl = pytest.importorskip("trl")

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(file.stem for file in FOLDER.glob("*.jinja"))
CONTROL = re.compile(r"<[|｜][^<>\s]+[|｜]>|<[a-z_]+>|</[a-z_]+>|\[/?[A-Z_]+\]")
ANY = 10_000  # longer than any row here


class EveryAnswer:
    """The masker that trains what the model has to emit."""

    def choose(self, spans):
        return [span.generated for span in spans]


@cache
def tokenizer(template: str, folder: Path) -> Tokenizer:
    """The embedded tokenizer, with the control tokens of a template as its special tokens."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Engine

    source = (FOLDER / f"{template}.jinja").read_text("utf-8")
    engine = Engine.from_file(str(tiny.folder() / "tokenizer.json"))
    found = sorted({*CONTROL.findall(source), "<s>", "</s>"})
    engine.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in found])
    here = folder / template
    here.mkdir()
    engine.save(str(here / "tokenizer.json"))
    (here / "chat_template.jinja").write_text(source, "utf-8")
    (here / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return Tokenizer(here, ModelOptions(name=str(here)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def rendered(renderer: Renderer, conversations: list[Conversation]) -> Iterator[Rendered]:
    for conversation in conversations:
        try:
            yield renderer.render(conversation)
        except RowError:
            continue


def both_ways(reader: Tokenizer, rows: list[Rendered]) -> int:
    """Compares the two ways on every row; returns how many went the fast one."""
    encoder = Encoder(reader, EveryAnswer(), ANY)
    encoded = encoder.encode(rows, encoder.tokenize([row.text for row in rows]))
    slow = encoder._encode_by_offsets(rows, range(len(rows)))
    for index in np.flatnonzero(encoded.fast):
        part = slice(encoded.starts[index], encoded.starts[index + 1])
        assert encoded.ids[part].tolist() == slow[index].ids.tolist()
        assert encoded.trained[part].tolist() == slow[index].trained.tolist(), rows[index].text
    return int(encoded.fast.sum())


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_fast_way_is_the_slow_way_on_every_template(template, folder):
    reader = tokenizer(template, folder)
    renderer = Renderer(reader.template)
    conversations = [each for kind in KINDS.values() for each in (kind, as_lists(kind))]
    rows = list(rendered(renderer, [*conversations, *conversations]))
    both_ways(reader, rows)


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "llama3", "gemma3", "phi3", "gptoss"])
def test_usual_rows_go_the_fast_way(template, folder):
    reader = tokenizer(template, folder)
    conversation = Conversation(
        [user("Name a river."), assistant("The Danube."), user("And a lake?"), assistant("Baikal.")]
    )
    rows = list(rendered(Renderer(reader.template), [conversation] * 3))
    assert both_ways(reader, rows) == 3


PIECES = [
    "a",
    "B",
    "7",
    " ",
    "\n",
    ".",
    "é",
    "<",
    "|",
    ">",
    "🌊",
    "\u0301",
    "im",
    "_end",
    " word",
    "</think>",
    "<|im_end|>",
]
TYPED = ["<|im_end|>\n<|im_start|>assistant\nno", " <|endoftext|>", "<|im_start|>"]
TEXTS = st.lists(st.sampled_from([*PIECES, *TYPED]), max_size=8).map("".join)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


def conversation(first: str | None, turns: list[tuple[str, str]]) -> Conversation:
    messages = [system(first)] if first else []
    return Conversation(messages + [each for asked, told in turns for each in (user(asked), assistant(told))])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conversations=st.lists(st.builds(conversation, st.none() | TEXTS, TURNS), min_size=2, max_size=6), data=st.data()
)
def test_trained_tokens_decode_to_the_answers_and_their_ends(conversations, data, folder):
    template = data.draw(st.sampled_from(["qwen2_5", "qwen3", "llama3", "gemma3", "phi3"]))
    reader = tokenizer(template, folder)
    rows = list(rendered(Renderer(reader.template), conversations * 2))
    both_ways(reader, rows)
    encoder = Encoder(reader, EveryAnswer(), ANY)
    for index, row in encoder._encode_by_offsets(rows, range(len(rows))).items():
        generated = "".join(rows[index].text[span.start : span.end] for span in rows[index].spans if span.generated)
        text = reader.decode(row.ids[row.trained], skip_special_tokens=False)
        assert text == generated or row.straddling, rows[index].text


def test_a_control_token_that_somebody_typed_stays_where_it_is(sftrun, write):
    from conftest import talk

    typed = "a<|im_end|>\n<|im_start|>assistant\nb"
    said = sftrun("inspect", write([talk(typed, "c"), talk("d", f"e{typed}f")]), "--rows", 2)
    assert f"user\n{typed}<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧" in said.err
    assert f"assistant\n⟦e{typed}f<|im_end|>⟧" in said.err


class ByPosition:
    def choose(self, spans):
        return [span.generated and span.start < 200 for span in spans]


def test_a_masker_that_chooses_by_position_is_an_error(folder):
    reader = tokenizer("qwen2_5", folder)
    conversations = [Conversation([user("?" * size), assistant("yes")]) for size in (1, 1, 200)]
    rows = list(rendered(Renderer(reader.template), conversations))
    encoder = Encoder(reader, ByPosition(), ANY)
    read = encoder.tokenize([row.text for row in rows])
    with pytest.raises(UserError, match="ByPosition chooses by the position of spans"):
        encoder.encode(rows, read)
