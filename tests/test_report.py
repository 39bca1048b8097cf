"""The report and the model card: they say what the files say, and nothing in the files changes their shape."""

import ast
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from sftrun.options import Use
from sftrun.recipe.model import LoraOptions, ModelOptions, Recipe, TuningOptions
from sftrun.recipe.train_options import TrainOptions
from sftrun.report import advice, curves, describe, markdown, scores
from sftrun.report.page import visible
from sftrun.runs import history, numbers
from sftrun.runs.directory import RunDir
from sftrun.stages.report import write_report

HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(2)>' | `a` ```\n--- # {{ 7*7 }} "
    "</style></svg></pre>&amp;\u202e\0"
)
SECTIONS = {"scores", "training", "data", "mask", "samples", "export", "environment", "recipe"}
VOID = {"meta", "line", "polyline", "circle"}


class Page(HTMLParser):
    """A page taken apart: its elements, attributes and text; raises where a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[tuple[str, str]] = set()
        self.ids: set[str] = set()
        self.texts: dict[str, list[str]] = {}
        self.data = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.ids |= {str(value) for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data
        for tag in dict.fromkeys(self.open):
            self.texts[tag][-1] += data


def recipe(**changes: Any) -> Recipe:
    given: dict[str, Any] = {
        "model": ModelOptions(name="sftrun/tiny"),
        "source": "jsonl",
        "description": "A small assistant",
        "tuning": TuningOptions(mode="full"),
        "train": TrainOptions(learning_rate=5e-3),
        "evaluators": ["loss", "generation"],
    }
    return Recipe(**{**given, **changes})


def step(number: int, loss: float, **more: Any) -> dict[str, Any]:
    rates = {"learning_rate": 5e-3, "tokens_per_s": 1000.0, "trained_tokens_per_s": 250.0}
    seen = {"tokens": number * 100, "trained_tokens": number * 25}
    return {"event": "step", "step": number, "steps": 100, "epoch": 1.0, "loss": loss, **rates, **seen, **more}


def sample(number: int, right: bool, text: str = "an answer", **more: Any) -> dict[str, Any]:
    return {
        "evaluator": "generation",
        "origin": f"test.jsonl:{number}",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "reference": "the reference",
        "base": {"answer": "gibberish", "exact_match": 0.0},
        "tuned": {"answer": text, "exact_match": float(right)},
        **more,
    }


def split_stats(text: str) -> dict[str, Any]:
    return {
        "rows_in": 4010,
        "rows": 4000,
        "lost": {f"dropped: {text}": 10},
        "changed": {f"changed: style {text}": 7},
        "tokens": 200000,
        "trained_tokens": 50000,
        "tokens_lost": 900,
        "trained_tokens_lost": 300,
        "by_role": {"user": {"tokens": 150000, "trained": 0}, "assistant": {"tokens": 50000, "trained": 50000}},
        "length": {"mean": 50.5, "p50": 49, "p95": 81, "max": 93},
    }


def split_proof(text: str, pieces: list[Any] | None = None) -> dict[str, Any]:
    counts = {"turns": 4000, "turns_ended": 3990, "turns_cut": 10, "double_bos": 0, "straddling": 3}
    shown = pieces or [[f"user: {text}\n", False], [f"reply {text}", True], ["\n", False]]
    return {"rows": 4000, "rows_without_trained": 0, **counts, "examples": [{"origin": text, "pieces": shown}]}


def lock(text: str) -> dict[str, Any]:
    return {
        "sftrun": "0.1.0",
        "python": "3.11.7",
        "platform": text,
        "packages": {"torch": "2.13.0", text: text},
        "plugins": [{"kind": "masker", "name": text, "distribution": text, "version": text}],
        "hardware": {"cpus": 2, "memory_gb": 24.0, "gpus": [{"name": text, "memory_gb": 80.0}]},
        "git": {"commit": text, "dirty": True},
        "seed": 0,
        "overrides": [text],
    }


def state(text: str) -> dict[str, Any]:
    done = {"status": "done", "started": "2026-11-20T20:14:03+01:00", "seconds": 61.4}
    prepared = {"key": text, "source": {"use": "jsonl", "fingerprint": text}}
    return {
        "prepare": {**done, "prepared": prepared, "mask": "feed"},
        "train": {**done, "parameters": {"trained": 1000, "all": 430000}},
        "report": {"status": "started"},
    }


def fill(run: RunDir, text: str = "plain") -> RunDir:
    """A whole run directory; `text` stands wherever text of others can stand."""
    run.write("resolved.yaml", f"description: {json.dumps(text)}\n# {text}\n")
    run.write_json("lock.json", lock(text))
    run.write_json("state.json", state(text))
    for number in range(10, 101, 10):
        run.event(step(number, 5.0 / number))
    for event in ({"event": "eval", "step": 100, "loss": 0.06}, {"event": "warning", "message": text}):
        run.event(event)
    run.write_json("prepared/stats.json", {"val": split_stats(text), "train": split_stats(text)})
    proof = {"hash": "feed", "template": "c0de", "tokenizer": "beef", "end_of_turn": {text: [2]}, "stop_ids": [2]}
    proof["recipe_end"] = {"token": text, "after": text}
    run.write_json("prepared/proof.json", {**proof, "splits": {"train": split_proof(text), "val": split_proof(text)}})
    entry = {"split": "train", "origin": text, "action": "dropped", "reason": text, "detail": text, "tokens": 9}
    run.write("prepared/ledger.jsonl", f"{json.dumps(entry)}\n" * 30)
    base = {"loss": {"val_loss": 6.2, "val_perplexity": 492.7}, "generation": {"exact_match": 0.0, text: 0.5}}
    tuned = {"loss": {"val_loss": 0.06, "val_perplexity": 1.06}, "generation": {"exact_match": 0.9, text: 0.25}}
    down, up = {"higher_is_better": False}, {"higher_is_better": True}
    about = {"loss": {"val_loss": down, "val_perplexity": down}, "generation": {"exact_match": up, text: up}}
    run.write_json("eval/scores.json", {"base": base, "tuned": tuned, "metrics": about})
    message = {"role": text, "content": text, "tool_calls": [{"name": text}]}
    hostile = sample(0, False, text, origin=text, messages=[message], reference=text)
    hostile["tuned"]["reason"] = text
    samples = [hostile, *(sample(number, number % 10 > 0) for number in range(1, 300))]
    run.write("eval/samples.jsonl", "".join(json.dumps(each) + "\n" for each in samples))
    run.write_json("export/facts.json", {text: {text: {"deep": text}, "rows": 8, "difference": math.nan}})
    return run


def made(run: RunDir, of: Recipe | None = None) -> tuple[Page, str, str]:
    """The page taken apart, the page and the card."""
    write_report(of or recipe(), run)
    html = (run.path / "report.html").read_text("utf-8")
    return Page(html), html, (run.path / "README.md").read_text("utf-8")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "chat-20261120").mkdir()
    return RunDir(tmp_path / "chat-20261120")


def test_a_whole_run_has_every_section_and_its_numbers(run: RunDir) -> None:
    page, html, _ = made(fill(run))
    assert page.ids >= SECTIONS
    for shown in ("A small assistant", "chat-20261120", "6.2", "0.06", "−6.14", "4,000", "25.0 %", "2 min 03 s"):
        assert shown in page.data
    for shown in (
        "3,990 of 4,000 trained turns",
        "cut it off in 10",
        "0 of 150,000",
        "50,000 of 50,000",
        "feed",
        "c0de",
    ):
        assert shown in page.data
    assert "Training processed 10,000 tokens, 2,500 of them trained: 1,000 tokens per second, 250 trained" in page.data
    assert page.data.index("train, the first") < page.data.index("val, the first")
    assert html.count("<svg") == 2


def test_the_report_needs_nothing_beside_itself(run: RunDir) -> None:
    page, html, _ = made(fill(run))
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & set(page.tags)
    assert not {name for _, name in page.attributes} & {"src", "style", "srcset", "xlink:href"}
    assert set(re.findall(r'href="([^"]*)"', html)) == {f"#{name}" for name in SECTIONS - {"scores"}}
    assert "url(" not in html
    assert "@import" not in html
    assert "://" not in html


def test_hostile_text_adds_no_element_and_no_attribute(tmp_path: Path) -> None:
    runs = {}
    for name, text in (("plain", "plain"), ("hostile", HOSTILE)):
        (tmp_path / name).mkdir()
        changed = recipe(description=text, model=ModelOptions(name=text))
        runs[name] = made(fill(RunDir(tmp_path / name), text), changed)
    plain, hostile = runs["plain"][0], runs["hostile"][0]
    assert [tag for tag in hostile.tags if tag != "i"] == [tag for tag in plain.tags if tag != "i"]
    assert hostile.attributes == plain.attributes | {("i", "class")}
    assert "onerror" not in {name for _, name in hostile.attributes}
    assert hostile.data.count("<script>alert(1)</script>") > 30
    assert "{{ 7*7 }}" in hostile.data
    assert "49" not in hostile.texts["h1"][0]


def test_a_run_directory_with_a_hostile_name_is_shown_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>|`#"
    folder.mkdir()
    page, _, card = made(fill(RunDir(folder)))
    assert folder.name in page.data
    assert r"# &lt;img src=x onerror=alert(1)&gt;\|\`\#" in card


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(codec=None), max_size=60))
def test_any_text_ends_up_as_text(text: str) -> None:
    page = Page(f"<b>{visible(text)}</b>")
    assert set(page.tags) <= {"b", "i"}
    assert page.attributes <= {("i", "class")}
    hidden = {character for character in text if re.fullmatch(r"U\+[0-9A-F]+", visible(character).striptags())}
    shown = "".join(f"U+{ord(character):04X}" if character in hidden else character for character in text)
    assert page.data == shown


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(
        alphabet=st.sampled_from("<>&\"'`|/=-{}%#\n\r\t\0 ax\u2028\u202e\ud800") | st.characters(), max_size=40
    )
)
def test_any_text_anywhere_leaves_page_and_card_whole(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    run = RunDir(tmp_path_factory.mktemp("run"))
    fill(run, text.encode("utf-8", "replace").decode())
    samples = json.dumps(sample(1, False, text, messages=[{"role": "user", "content": text}]))
    (run.path / "eval/samples.jsonl").write_text(samples + "\n", "utf-8")
    page, _, card = made(run, recipe(description=text.encode("utf-8", "replace").decode()))
    assert {name for _, name in page.attributes} <= ALLOWED
    assert "script" not in page.tags
    check_card(card)


ALLOWED = {
    "lang", "charset", "name", "content", "http-equiv", "class", "id", "href", "open", "scope", "aria-label", "role",
    "viewbox", "transform", "text-anchor", "points", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "dy",
}  # fmt: skip


def check_card(card: str) -> dict[str, Any]:
    """The front matter, after a look at every table and fence."""
    _, head, body = card.split("---\n", 2)
    tables = re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE)
    assert len(tables) >= 2
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert len(re.findall(r"^```", body, re.MULTILINE)) == 4
    assert [line for line in body.splitlines() if line.startswith("#")][1:] == CARD_SECTIONS
    return dict(YAML(typ="safe").load(head))


FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def snippet(card: str) -> str:
    """The Python of a card."""
    return FENCED.findall(card)[0]


CARD_SECTIONS = ["## Scores", "## Training", "## Use", "## Limits"]


def test_the_card_names_a_hub_model_and_its_library(run: RunDir) -> None:
    lora = recipe(
        model=ModelOptions(name="Qwen/Qwen2.5-3B-Instruct", revision="abc"), tuning=TuningOptions(mode="lora")
    )
    _, _, card = made(fill(run), lora)
    head = check_card(card)
    assert head == {
        "base_model": "Qwen/Qwen2.5-3B-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "sftrun"],
    }
    assert 'from_pretrained("Qwen/Qwen2.5-3B-Instruct", revision="abc", dtype="auto")' in card
    assert "eos_token_id=[2]" in card
    assert "| exact_match (generation) | 0 | 0.9 |" in card
    assert "| val_loss (loss, lower is better) | 6.2 | 0.06 |" in card
    assert "| train | 4,010 | 4,000 | 200,000 | 50,000 | 25.0 % | 10 |" in card
    assert "| LoRA | r 16, alpha 32, dropout 0 |" in card


def test_the_card_of_the_embedded_model_says_that_it_is_a_demonstration(run: RunDir) -> None:
    _, _, card = made(fill(run))
    head = check_card(card)
    assert "base_model" not in head
    assert head["library_name"] == "transformers"
    assert "trained from scratch" in card
    assert "30 of 300 answers to held-out prompts are wrong" in card


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/someone/secret/base-model", "base-model"),
        ("/home/someone/runs/chat-latest/model", "chat-latest/model"),
        ("/home/someone/runs/chat-latest/export/merged", "chat-latest/export/merged"),
    ],
)
def test_the_card_does_not_tell_where_a_local_model_lies(run: RunDir, path: str, shown: str) -> None:
    local = recipe(model=ModelOptions(name=path), tuning=TuningOptions(mode="lora"))
    _, _, card = made(fill(run), local)
    assert "someone" not in card
    assert f"An adapter for {shown} (a local folder), made by" in card
    assert f'from_pretrained("{shown}", dtype="auto")  # the folder of the base model' in card
    assert "base_model" not in check_card(card)


def test_hostile_text_leaves_the_card_whole(run: RunDir) -> None:
    lora = LoraOptions(target_modules=[HOSTILE, "q_proj"])
    changed = recipe(
        description=HOSTILE,
        model=ModelOptions(name=HOSTILE, revision=HOSTILE),
        tuning=TuningOptions(mode="lora", lora=lora),
        masker=Use(use=HOSTILE),
    )
    _, _, card = made(fill(run, HOSTILE), changed)
    assert check_card(card)["library_name"] == "peft"
    assert "<script>" not in FENCED.sub("", card)
    assert "\u202e" not in card
    compile(snippet(card), "card", "exec")


def test_the_card_goes_with_the_model(run: RunDir) -> None:
    run.model.mkdir()
    _, _, card = made(fill(run))
    assert (run.model / "README.md").read_text("utf-8") == card


def test_what_lies_in_model_decides_between_adapter_and_whole_weights(run: RunDir) -> None:
    run.model.mkdir()
    assert "AutoModelForCausalLM.from_pretrained(folder" in made(fill(run), recipe(tuning=TuningOptions()))[2]
    (run.model / "adapter_config.json").write_text("{}")
    assert "PeftModel.from_pretrained(base, folder)" in made(run, recipe(tuning=TuningOptions()))[2]


def test_an_empty_run_directory_has_a_report_that_says_what_is_missing(run: RunDir) -> None:
    page, _, card = made(run, recipe(evaluators=[]))
    assert page.ids >= SECTIONS
    for said in ("names no evaluators", "No step was logged", "no statistics", "no mask proof", "no lock file"):
        assert said in page.data
    assert "was not evaluated" in card
    assert "Nothing is known about the quality" in card


def test_a_failed_stage_is_said_with_its_reason(run: RunDir) -> None:
    run.write_json("state.json", {"train": {"status": "failed", "failed": "2026-11-21", "reason": HOSTILE}})
    page, _, _ = made(run)
    assert "The stage train failed: <script>alert(1)</script>" in page.data


FILES = [
    "resolved.yaml", "lock.json", "state.json", "events.jsonl", "prepared/stats.json", "prepared/proof.json",
    "prepared/ledger.jsonl", "eval/scores.json", "eval/samples.jsonl", "export/facts.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_takes_only_its_own_facts_away(run: RunDir, name: str) -> None:
    (fill(run).path / name).unlink()
    page, _, card = made(run)
    assert page.ids >= SECTIONS
    assert "sftrun chat RUN" in card


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_a_file_that_says_little_is_enough(run: RunDir, name: str) -> None:
    file = fill(run).path / name
    thinner = {key: {} for key, value in json.loads(file.read_text()).items() if isinstance(value, dict)}
    file.write_text(json.dumps(thinner))
    assert made(run)[0].ids >= SECTIONS


def test_numbers_that_are_not_finite_are_said_and_not_drawn(run: RunDir) -> None:
    fill(run)
    for number, loss in ((110, math.nan), (120, math.inf)):
        run.event(step(number, loss))
    run.event({"event": "eval", "step": 120, "loss": math.nan})
    found = {"loss": {"val_loss": math.nan, "val_perplexity": math.inf}}
    run.write_json("eval/scores.json", {"base": found, "tuned": found})
    page, html, card = made(run)
    assert "3 logged values were not finite" in page.data
    assert "not a number" in page.data
    assert "∞" in card
    assert not re.search(r'points="[^"]*(nan|inf)', html)


def test_trained_text_is_marked_without_colour_and_unchanged(run: RunDir) -> None:
    fill(run)
    proof = run.read_json("prepared/proof.json")
    pieces = [["\n user\tasks\n\n", False], [" a  reply <|im_end|>", True], ["\r\n", False]]
    proof["splits"] = {"train": split_proof("x", pieces)}
    run.write_json("prepared/proof.json", proof)
    page, html, _ = made(run)
    assert " a  reply <|im_end|>" in page.texts["mark"]
    assert "\n user\tasks\n\n a  reply <|im_end|>U+000D\n" in page.texts["div"]
    assert "text-decoration: underline" in html
    assert 'mark::before { content: "⟦"; }' in html


def test_wrong_answers_are_shown_beside_right_ones_and_counted(run: RunDir) -> None:
    page, _, _ = made(fill(run))
    assert "right on 270 and wrong on 30 of 300 held-out prompts; the base model was right on 0" in page.data
    assert page.tags.count("article") == 20
    shown = [text for text in page.texts["article"] if "tuned" in text]
    assert ["tuned · wrong" in text for text in shown] == [True] * 10 + [False] * 10


@pytest.mark.parametrize(
    ("wrong", "right", "shown"),
    [(300, 0, (20, 0)), (2, 300, (2, 18)), (300, 3, (17, 3)), (5, 4, (5, 4)), (0, 0, (0, 0))],
)
def test_the_mix_takes_what_there_is(wrong: int, right: int, shown: tuple[int, int]) -> None:
    picked = scores._picked(["wrong"] * wrong, ["right"] * right, [], 20)
    assert (picked.count("wrong"), picked.count("right")) == shown


def test_answers_of_a_judge_have_their_reason_and_say_what_right_means(run: RunDir) -> None:
    fill(run)
    judged = {"answer": "so so", "score": 0.4, "reason": "half of it is missing"}
    line = sample(1, False) | {"evaluator": "judge", "base": judged, "tuned": {**judged, "score": 0.75}}
    run.write("eval/samples.jsonl", json.dumps(line) + "\n")
    page, _, card = made(run)
    assert "- judge: 1 of 1 answers are right, 0 are wrong; before training 0 were right (right: a score of" in card
    assert "right on 1 and wrong on 0 of 1" in page.data
    assert "a score of 0.5 or more" in page.data
    assert "half of it is missing" in page.data


def test_the_direction_of_a_metric_decides_what_is_better() -> None:
    verdicts = [
        scores.Metric("loss", "val_loss", 2.0, 1.0, higher_is_better=False).verdict,
        scores.Metric("loss", "test_perplexity", 2.0, 3.0, higher_is_better=False).verdict,
        scores.Metric("generation", "rouge_l", 0.2, 0.3).verdict,
        scores.Metric("generation", "bleu", 0.2, 0.1).verdict,
        scores.Metric("generation", "bleu", 0.2, 0.2).verdict,
        scores.Metric("generation", "bleu", None, math.nan).verdict,
        scores.Metric("generation", "wer", 0.3, 0.5, higher_is_better=None).verdict,
    ]
    assert verdicts == ["better", "worse", "better", "worse", "same", "unknown", "unknown"]


def test_a_resumed_run_is_one_curve() -> None:
    events = [step(number, 1.0) for number in (10, 20, 30, 40)]
    events += [{"event": "eval", "step": 40, "loss": 9.0}]
    events += [
        step(number, 2.0, tokens=100 * (number - 20), trained_tokens=25 * (number - 20)) for number in (30, 40, 50)
    ]
    past = history.build_history(events)
    assert past.loss == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0), (50, 2.0)]
    assert past.validation == []
    speed = history.measure_speed(events)
    assert (speed.tokens, speed.trained, speed.seconds) == (7000, 1750, 7.0)


def past(loss: list[float], validation: list[float]) -> history.History:
    every = len(loss) // max(1, len(validation))
    train = [(10.0 * (index + 1), value) for index, value in enumerate(loss)]
    held_out = [(10.0 * every * (index + 1), value) for index, value in enumerate(validation)]
    return history.History(train, held_out, [(10.0, 2e-4)])


GOOD = [scores.Metric("generation", "exact_match", 0.0, 0.9)]


@pytest.mark.parametrize(
    ("loss", "validation", "said"),
    [
        (
            [5, 4, 3, 2, 1.5, 1, 0.8, 0.6],
            [2.0, 1.0, 1.4, 2.0],
            "Overfitting: the validation loss was lowest at step 40",
        ),
        ([5, 4, 3, 2, 1.5, 1, 0.8, 0.6], [4.0, 2.0, 1.0, 0.9], None),
        (
            [3.0, 3.01, 2.99, 3.0, 3.0],
            [3.1, 3.1],
            "flat and high (3 at first, 3 at the end). Raise train.learning_rate",
        ),
        ([0.02, 0.02, 0.02, 0.02, 0.02], [0.03, 0.03], None),
        ([1, 1, 2, 4, 9], [], "The training loss rose"),
        ([1.0], [], None),
        ([], [], None),
    ],
)
def test_advice_is_given_only_when_the_numbers_say_so(
    loss: list[float], validation: list[float], said: str | None
) -> None:
    found = advice.advice(recipe(), past(loss, validation), GOOD)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_answers_no_better_than_before_point_to_the_data() -> None:
    same = [
        scores.Metric("generation", "exact_match", 0.2, 0.2),
        scores.Metric("loss", "val_loss", 3.0, 2.0, higher_is_better=False),
    ]
    assert "Check the data" in advice.advice(recipe(), past([], []), same)[0]
    assert advice.advice(recipe(), past([], []), GOOD) == []
    assert advice.advice(recipe(), past([], []), [scores.Metric("generation", "exact_match", 1.0, 1.0)]) == []


finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e99, max_value=1e99)


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=30), st.integers(1, 1000))
def test_every_point_lies_within_the_axes(values: list[float], every: int) -> None:
    points = [(float(every * index), value) for index, value in enumerate(values)]
    chart = curves.chart("t", "y", [("train", "loss", points)])
    for place in chart.lines[0].points.split():
        left, top = map(float, place.split(","))
        assert chart.left - 0.1 <= left <= chart.right + 0.1
        assert chart.top - 0.1 <= top <= chart.bottom + 0.1
    for ticks in (chart.x_ticks, chart.y_ticks):
        assert len(ticks) <= 12
        assert len({tick.at for tick in ticks}) == len(ticks)


def test_ticks_are_round_numbers() -> None:
    chart = curves.chart("t", "y", [("train", "loss", [(0.0, 0.0), (2000.0, 6.2)])])
    assert [tick.label for tick in chart.x_ticks] == ["0", "500", "1,000", "1,500", "2,000"]
    assert [tick.label for tick in chart.y_ticks] == ["0", "2", "4", "6"]


def test_long_curves_are_thinned_and_keep_their_mean() -> None:
    points = [(float(index), float(index % 7)) for index in range(60_000)]
    thin = curves.thinned(points)
    assert len(thin) == curves.MOST_POINTS
    assert thin[-1][0] == 59_999
    assert sum(value for _, value in thin) / len(thin) == pytest.approx(sum(value for _, value in points) / 60_000)


def test_long_texts_are_cut_and_say_so() -> None:
    assert str(visible("a" * 7000)).endswith('<i class="cut">… 1,000 more characters</i>')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (4000, "4,000"),
        (0.94312, "0.9431"),
        (12345.6, "12,346"),
        (2e-5, "2e-05"),
        (-0.5, "−0.5"),
        (1e300, "1e+300"),
        (math.nan, "not a number"),
        (-math.inf, "−∞"),
        (True, "yes"),
        (0.0, "0"),
        ("x", "x"),
    ],
)
def test_numbers_read_well(value: Any, text: str) -> None:
    assert numbers.format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (2.13, "2.1 s"), (61, "1 min 01 s"), (3725, "1 h 02 min"), (math.nan, "–")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert numbers.format_duration(seconds) == text


def test_hardware_counts_equal_cards() -> None:
    card = {"name": "H100", "memory_gb": 80.0}
    assert (
        describe.hardware({"cpus": 64, "memory_gb": 512.0, "gpus": [card, card]})
        == "64 CPUs, 512 GB memory, 2 × H100 (80 GB)"
    )
    assert describe.hardware({"cpus": 2, "memory_gb": 24.0, "gpus": []}) == "2 CPUs, 24 GB memory, no GPU"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("val_loss", "val_loss"),
        ("_both_ a_b", r"\_both\_ a_b"),
        ("a|b\nc`d`", r"a\|b c\`d\`"),
        ("1. one", "&#49;. one"),
        ("0.5", "0.5"),
        ("- x", r"\- x"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[x](y)", r"\[x\](y)"),
        (r"\|", r"\\\|"),
        ("a\u202eb", "a\ufffdb"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert markdown.escaped(text) == shown


@given(st.text())
def test_a_literal_means_the_same_to_python_and_to_yaml(text: str) -> None:
    quoted = markdown.literal(text)
    assert "\n" not in quoted
    assert ast.literal_eval(quoted) == text
    assert YAML(typ="safe", pure=True).load(quoted) == text


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_snippet_of_the_card_runs(
    run: RunDir, mode: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from sftrun import tiny

    tiny.save(run.model, seed=0)
    if mode == "lora":
        base = transformers.AutoModelForCausalLM.from_pretrained(run.model)
        adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
        (run.model / "model.safetensors").unlink()
        (run.model / "config.json").unlink()
        adapted.save_pretrained(run.model)
    _, _, card = made(fill(run), recipe(tuning=TuningOptions(mode=mode)))
    monkeypatch.chdir(run.path)
    exec(snippet(card), {})
    assert capsys.readouterr().out
