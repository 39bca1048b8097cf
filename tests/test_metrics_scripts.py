"""Metrics of answers in any script, and the direction of metrics in what a run says of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sftrun
from sftrun.builtin.metrics import _words
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.report import advice, scores
from sftrun.runs import history

RECIPE = Recipe(model=ModelOptions(name="sftrun/tiny"), source=sftrun.Use(use="jsonl"))
ENGLISH = st.text("abcXYZ019 _.,-'\n", max_size=40)
PAIRS = {
    "Chinese": ("今天天气很好。", "昨天天气不好。"),
    "Japanese": ("今日はいい天気", "今日は悪い天気"),
    "Thai": ("วันนี้อากาศดี", "วันนี้ฝนตก"),
    "Russian": ("Погода сегодня хорошая", "Погода была хорошая"),
    "Hindi": ("आज मौसम अच्छा है", "कल मौसम अच्छा था"),
    "Arabic": ("الطقس جميل", "الطقس سيئ"),
}


def measured(name, answer, reference):
    work = sftrun.kinds.Measuring(answers=[answer], references=[reference])
    value = sftrun.create("metric", name).measure(work)
    return value if isinstance(value, float) else value[0]


@pytest.mark.parametrize("name", ["rouge_1", "rouge_l", "token_f1"])
@pytest.mark.parametrize("language", PAIRS)
def test_similar_texts_of_any_script_have_a_score_between_0_and_1(name, language):
    answer, reference = PAIRS[language]
    assert 0.2 < measured(name, answer, reference) < 0.9
    assert measured(name, reference, reference) == 1


def test_marks_belong_to_their_letters():
    assert _words.split_words(PAIRS["Hindi"][0]) == PAIRS["Hindi"][0].split()
    assert _words.split_words("caf\u0065\u0301 Caf\u00e9") == ["caf\u00e9", "caf\u00e9"]


@given(ENGLISH)
def test_english_words_are_those_of_rouge_score(text):
    from rouge_score.tokenize import tokenize

    assert _words.split_words(text) == tokenize(text, None)
    assert _words.split_words(text, punctuation=True) == re.findall(r"\w+|[^\w\s]", text.lower())
    assert _words.space_out(text) == text


@pytest.mark.parametrize("mixed", ["", "GPT-4 很好\uff0c3.5%。ok"])
def test_bleu_of_chinese_is_that_of_sacrebleus_chinese_tokenizer(mixed):
    import sacrebleu

    answer, reference = (text + mixed for text in PAIRS["Chinese"])
    expected = sacrebleu.corpus_bleu([answer], [[reference]], tokenize="zh").score / 100
    assert measured("bleu", answer, reference) == pytest.approx(expected)
    assert expected > 0


def advised(*metrics):
    return advice.advice(RECIPE, history.build_history([]), list(metrics))


def test_advice_goes_by_the_direction_of_a_metric_and_not_by_its_name():
    assert not advised(scores.Metric("generation", "glossary_f1", 0.3, 0.5))
    assert advised(scores.Metric("generation", "glossary_f1", 0.5, 0.3))
    assert not advised(scores.Metric("generation", "wer", 0.5, 0.3, higher_is_better=False, range=(0.0, None)))
    assert advised(scores.Metric("generation", "wer", 0.3, 0.5, higher_is_better=False, range=(0.0, None)))
    assert not advised(scores.Metric("generation", "wer", 0.0, 0.0, higher_is_better=False, range=(0.0, None)))
    assert not advised(scores.Metric("generation", "mystery", 0.5, 0.3, higher_is_better=None))
