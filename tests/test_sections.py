"""Sections that stand alike in many rows are encoded once, and the ids are those of each row encoded whole."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftrun import tiny
from sftrun.data.tokens.sections import Sections, _find_disjoint
from sftrun.data.tokens.tokenizer import Tokenizer
from sftrun.recipe.model import ModelOptions

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers  # noqa: E402

TEXTS = [
    "system\nYou are a helpful assistant.",
    "user\nNäme a river, please",
    "assistant\n  The Danube.\n",
    "\n\n",
    "\n",
    " ",
    "",
    "im_end|>",
    "<|im_",
    "<think>\n\n</think>",
    "e\u0301",
    "Ωx",
    "<s",
    ">x",
]
TURNS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<s>x", "<think>", "<tool>", "STOP"]
KINDS = {
    "bytes": (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes with a space before": (models.BPE(), normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "words": (models.WordPiece(unk_token="<unk>"), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "pieces, at the start": (models.BPE(unk_token="<unk>"), None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "pieces, always": (models.Unigram(), normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="always")),
    "pieces, as of old": (
        models.BPE(unk_token="<unk>", byte_fallback=False),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
    ),
}  # fmt: skip
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
TRAINERS = {"BPE": trainers.BpeTrainer, "WordPiece": trainers.WordPieceTrainer, "Unigram": trainers.UnigramTrainer}


def special(*texts: str, **more: bool) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False, **more) for text in texts]


def common(text: str, **more: bool) -> list[AddedToken]:
    return [AddedToken(text, special=False, **more)]


CHATML = special("<|im_start|>", "<|im_end|>")
ADDED = {
    "usual": [*CHATML, *special("<s>", "</s>")],
    "newlines": [
        *CHATML,
        *special("<|spare|>"),
        *common("\n\n", normalized=False),
        *common("<think>", normalized=True),
    ],
    "one in another": [*CHATML, *special("<s>", "<s>x", "</s>")],
    "that take spaces": [
        *special("<|im_start|>", rstrip=True),
        *special("<|im_end|>", "</s>"),
        *special("<tool>", lstrip=True),
    ],
    "single words": [*CHATML, *special("STOP"), *common("Vltava", normalized=False, single_word=True)],
}


@cache
def reader(kind: str, added: str, folder) -> Tokenizer:
    model, normalizer, pre_tokenizer = KINDS[kind]
    engine = tokenizers.Tokenizer(type(model)(**({"unk_token": "<unk>"} if kind != "pieces, always" else {})))
    if normalizer is not None:
        engine.normalizer = normalizer
    if pre_tokenizer is not None:
        engine.pre_tokenizer = pre_tokenizer
    trainer = TRAINERS[type(model).__name__](
        vocab_size=300, special_tokens=["<unk>"], show_progress=False, initial_alphabet=ALPHABET
    )
    engine.train_from_iterator(TEXTS * 3, trainer)
    engine.add_tokens(ADDED[added])
    here = folder / f"{kind} {added}"
    here.mkdir()
    engine.save(str(here / "tokenizer.json"))
    (here / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    return Tokenizer(here, ModelOptions(name=str(here)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("tokenizers")


def whole(reader: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in reader.encode(texts)]


def in_sections(reader: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, starts = Sections(reader).tokenize(texts)
    return [part.tolist() for part in np.split(ids, starts[1:-1])]


frames = st.lists(st.sampled_from([*TEXTS, *TURNS]), max_size=8).map("".join)
contents = st.lists(st.sampled_from([*TEXTS, *TURNS]), max_size=4).map("".join)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=st.tuples(frames, frames, frames), rows=st.lists(st.tuples(contents, contents), min_size=8, max_size=12))
def test_the_ids_are_those_of_whole_rows(kind, added, folder, frame, rows):
    first, second, third = frame
    texts = [f"{first}{question}{second}{answer}{third}" for question, answer in rows]
    encoder = reader(kind, added, folder)
    assert in_sections(encoder, texts) == whole(encoder, texts)


def chatml(question: str, answer: str) -> str:
    start, end = "<|im_start|>", "<|im_end|>"
    prompt = f"{start}system\nYou are a helpful assistant.{end}\n{start}user\n{question}{end}\n"
    return f"{prompt}{start}assistant\n{answer}{end}\n"


def spied(monkeypatch: pytest.MonkeyPatch, encoder: Tokenizer) -> list[str]:
    read: list[str] = []
    ask = encoder.encode_ids
    monkeypatch.setattr(encoder, "encode_ids", lambda texts: read.extend(texts) or ask(texts))
    return read


def test_a_system_prompt_is_encoded_once(folder, monkeypatch):
    encoder = reader("bytes", "usual", folder)
    read = spied(monkeypatch, encoder)
    texts = [chatml(f"Name river {number}", "The Danube.") for number in range(20)]
    assert in_sections(encoder, texts) == whole(encoder, texts)
    assert sum("helpful" in text for text in read) == 2  # once, and in the row that is compared


def test_a_row_that_holds_every_added_token_is_encoded_as_it_is(folder, monkeypatch):
    encoder = reader("bytes", "usual", folder)
    read = spied(monkeypatch, encoder)
    texts = [chatml("<|im_start|><|im_end|><s></s><unk>", f"Bystrica {number}") for number in range(20)]
    assert in_sections(encoder, texts) == whole(encoder, texts)
    assert read == texts


def test_the_embedded_tokenizer_has_tokens_to_spare():
    encoder = Tokenizer(tiny.folder(), ModelOptions(name=tiny.NAME))
    texts = [chatml("Name a river", f"Bystrica {number}") for number in range(20)]
    assert in_sections(encoder, texts) == whole(encoder, texts)


def test_nothing_is_replaced_where_an_added_token_looks_at_the_character_before_it(folder):
    encoder = reader("bytes", "single words", folder)
    texts = [f"STOP\nuser, pleaseSTOPVltava {number}<|im_end|>" for number in range(20)]
    assert in_sections(encoder, texts) == whole(encoder, texts)


def test_a_wrong_row_in_the_sample_makes_the_batch_be_encoded_whole(folder, monkeypatch):
    encoder = reader("bytes", "usual", folder)
    sections = Sections(encoder)
    texts = [chatml(f"Name river {number}", "The Danube.") for number in range(20)]
    monkeypatch.setattr(sections, "_encode_run", lambda run: np.array([1], dtype=np.int32))
    ids, starts = sections.tokenize(texts)
    assert [ids[start:end].tolist() for start, end in pairwise(starts)] == whole(encoder, texts)


def test_a_thousand_added_tokens_take_no_time_to_compare():
    texts = [f"<|token_{number}|>" for number in range(1000)] + ["<|a|>", "<|a|>b", "aa"]
    assert _find_disjoint(texts) == {f"<|token_{number}|>" for number in range(1000)}
