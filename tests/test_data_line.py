"""Rows to samples: what is trained, what is lost, and what is said about it."""

import json

import pytest
from conftest import talk

GOOD = talk("2+2?", "4")


def trained(said):
    rows = [json.loads(line) for line in said.out.splitlines()]
    return [_marked(row) for row in rows]


def _marked(row):
    from sftrun.data.tokens.tokenizer import load_tokenizer
    from sftrun.options import parse
    from sftrun.recipe.model import ModelOptions

    tokenizer = load_tokenizer(parse({"name": "sftrun/tiny"}, ModelOptions))
    chosen = [token for token, flag in zip(row["ids"], row["trained"], strict=True) if flag]
    assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["text"]
    return tokenizer.decode(chosen, skip_special_tokens=False)


def test_only_answers_and_their_end_of_turn_are_trained(sftrun, write):
    rows = [GOOD, talk("hi", "hello", "bye", "see you", system="Be kind.")]
    said = sftrun("inspect", write(rows), "--json")
    assert trained(said) == ["4<|im_end|>", "hello<|im_end|>see you<|im_end|>"]


@pytest.mark.parametrize(
    "row",
    [
        talk("hi", "hello", system="Be kind."),
        {"conversations": talk("hi", "hello", system="Be kind.")["messages"]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "system": "Be kind."},
        {"system": "Be kind.", "user": "hi", "assistant": "hello"},
        {"system": "Be kind.", "conversations": talk("hi", "hello")["messages"]},
    ],
    ids=["messages", "conversations", "from-value", "columns", "seed-format"],
)
def test_every_known_shape_reads_as_the_same_conversation(sftrun, write, row):
    said = sftrun("inspect", write([row]), "--json")
    expected = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n"
    )
    assert json.loads(said.out)["text"] == expected


def test_columns_of_any_name_are_mapped_by_an_option(sftrun, write):
    fields = {"user": "question", "assistant": "answer"}
    recipe = write([{"question": "hi", "answer": "hello"}], formatter={"use": "chat", "with": {"fields": fields}})
    assert trained(sftrun("inspect", recipe, "--json")) == ["hello<|im_end|>"]


BAD = {
    "malformed": ('{"messages": [', "not valid JSON"),
    "list": ("[1]", "must be a JSON object, not a list"),
    "no-shape": ({"text": "hi"}, "has the keys text, but needs messages, conversations, or user and assistant"),
    "empty": ({"messages": []}, "the conversation is empty"),
    "user-last": (talk("hi", "hello", "and?"), "ends on a user turn; there is no answer to train on"),
    "number": ({"user": "hi", "assistant": 4}, "message 1: content must be a string, not the number 4"),
    "null": ({"user": None, "assistant": "x"}, "message 0: content must be a string, not null"),
    "role": ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0] has the role 'boss'"),
    "twice": ({"messages": [], "user": "a", "assistant": "b"}, "fits several shapes at once"),
    "unread": (
        {"messages": [{"role": "user", "content": "x", "mood": 0}]},
        "messages[0] has 'mood', which is not read",
    ),
    "system-late": (
        {"messages": [*GOOD["messages"], {"role": "system", "content": "x"}]},
        "message 2: a system prompt must come first",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_that_names_file_and_line(sftrun, write, tmp_path, name):
    row, reason = BAD[name]
    said = sftrun("prepare", write([GOOD, GOOD, row, GOOD]), "--out", tmp_path / "out")
    assert said.code == 1
    assert "data/train.jsonl:3: error: " in said.err
    assert reason in said.err
    assert "Traceback" not in said.err
    assert "train.jsonl:1" not in said.err


def test_all_bad_rows_are_named_at_once(sftrun, write, tmp_path):
    rows = [GOOD, "{", {"messages": []}, GOOD, "nonsense"]
    said = sftrun("prepare", write(rows), "--out", tmp_path / "out")
    assert [number for number in range(1, 6) if f"train.jsonl:{number}: error" in said.err] == [2, 3, 5]


def test_bad_rows_are_counted_in_the_ledger_when_they_are_to_be_skipped(sftrun, write, tmp_path):
    recipe = write([GOOD] * 18 + ["{", {"messages": []}], data={"on_bad_row": "skip"})
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "train: 2 rows dropped: bad row" in said.err
    entries = [json.loads(line) for line in (tmp_path / "out/prepared/ledger.jsonl").read_text().splitlines()]
    assert [(entry["origin"], entry["action"]) for entry in entries] == [
        ("train.jsonl:19", "dropped"),
        ("train.jsonl:20", "dropped"),
    ]
    assert "the conversation is empty" in entries[1]["detail"]


def test_losing_more_rows_than_allowed_is_an_error_with_the_reasons(sftrun, write, tmp_path):
    recipe = write([GOOD] * 3 + ["{"], data={"on_bad_row": "skip"})
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert said.code == 1
    assert "train: 1 of 4 rows are lost, more than data.max_lost=0.1 (1 dropped: bad row)" in said.err
    assert sftrun("prepare", recipe, "--set", "data.max_lost=0.25", "--out", tmp_path / "out2").code == 0


LONG = talk("word " * 100, "the answer")
WORDY = talk("hi", "word " * 300)


def test_a_row_that_is_too_long_is_an_error_when_the_recipe_says_so(sftrun, write, tmp_path):
    recipe = write([GOOD, WORDY], data={"on_too_long": "error"})
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert said.code == 1
    assert "train.jsonl:2: error: has" in said.err
    assert "more than model.max_seq_len=256" in said.err


def test_truncation_counts_what_it_cuts_and_drops_a_row_whose_answer_is_gone(sftrun, write, tmp_path):
    keys = {"model": {"max_seq_len": 64}, "data": {"on_too_long": "truncate", "max_lost": 1}}
    said = sftrun("prepare", write([GOOD, WORDY, LONG], **keys), "--out", tmp_path / "out")
    assert said.code == 0, said.err
    stats = json.loads((tmp_path / "out/prepared/stats.json").read_text())["train"]
    assert stats["lost"] == {"truncated: too long": 1, "dropped: nothing trained after truncation": 1}
    assert stats["rows"] == 2
    assert stats["trained_tokens_lost"] > 0
    proof = json.loads((tmp_path / "out/prepared/proof.json").read_text())["splits"]["train"]
    assert (proof["turns"], proof["turns_ended"], proof["turns_cut"]) == (2, 1, 1)
    assert proof["rows_without_trained"] == 0


def test_a_second_preparation_is_the_first_ones_files_and_a_changed_byte_is_not(sftrun, write, tmp_path):
    rows = [talk("hello", str(number)) for number in range(5)]
    first = sftrun("prepare", write(rows), "--out", tmp_path / "a")
    again = sftrun("prepare", write(rows), "--out", tmp_path / "b")
    changed = sftrun("prepare", write([*rows[:4], talk("hello", "five")]), "--out", tmp_path / "c")
    assert ["from the cache" in said.err for said in (first, again, changed)] == [False, True, False]
    read = [(tmp_path / name / "prepared/train.arrow").read_bytes() for name in "abc"]
    assert read[0] == read[1] != read[2]


def test_style_writes_the_system_prompt_and_the_ledger(sftrun, write, tmp_path):
    rows = [GOOD, talk("hi", "hello", system="Old.")]
    prompts = {"replace": ["New.", "New."], "missing": ["New.", "Old."], "append": ["New.", "Old.\nNew."]}
    for where, expected in prompts.items():
        recipe = write(rows, transforms=[{"use": "style", "with": {"prompt": "New.", "where": where}}])
        said = sftrun("inspect", recipe, "--json")
        texts = [json.loads(line)["text"] for line in said.out.splitlines()]
        assert [text.split("<|im_end|>")[0].removeprefix("<|im_start|>system\n") for text in texts] == expected
    sftrun("prepare", recipe, "--out", tmp_path / "out")
    ledger = (tmp_path / "out/prepared/ledger.jsonl").read_text()
    assert ledger.count('"changed"') == 2


def test_rows_without_a_validation_file_are_split_by_their_content(sftrun, write):
    rows = [talk("say", str(number)) for number in range(200)]
    recipe = write(rows, source_options={"val_share": 0.2})
    split = {name: trained(sftrun("inspect", recipe, "--json", "--split", name)) for name in ("train", "val")}
    assert not set(split["train"]) & set(split["val"])
    assert len(split["train"]) + len(split["val"]) == 200
    assert 20 < len(split["val"]) < 60
    more = write([talk("new", "row"), *rows], source_options={"val_share": 0.2})
    assert set(split["val"]) <= set(trained(sftrun("inspect", more, "--json", "--split", "val")))


def test_a_missing_data_folder_is_said_before_anything_runs(sftrun, write, tmp_path):
    recipe = write([GOOD])
    said = sftrun("prepare", recipe, "--set", "source.with.path=nowhere", "--out", tmp_path / "out")
    assert said.code == 1
    assert "no such file or folder" in said.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_a_split_is_not_silently_ignored(sftrun, write, tmp_path):
    recipe = write({"train": [GOOD], "more": [GOOD]})
    said = sftrun("prepare", recipe, "--out", tmp_path / "out")
    assert "not read: more.jsonl" in said.err


def test_inspect_shows_one_row_by_its_origin(sftrun, write):
    said = sftrun("inspect", write([GOOD, talk("a", "b")]), "--origin", "train.jsonl:2")
    assert "⟦b<|im_end|>⟧" in said.err
    assert "2+2" not in said.err
    assert sftrun("inspect", write([GOOD]), "--origin", "train.jsonl:9").code == 1


def flagged(*flags):
    """A conversation of two turns, whose messages say whether they are trained."""
    messages = talk("a", "b", "c", "d")["messages"]
    return {
        "messages": [
            {**each, **({} if flag is None else {"train": flag})} for each, flag in zip(messages, flags, strict=True)
        ]
    }


FLAGS = {
    "assistant-off": (flagged(None, False, None, None), "assistant", "has train: false, but this masker trains it"),
    "last-on": (flagged(None, True, None, None), "last-reply", "has train: true, but this masker does not train it"),
    "user-on": (flagged(True, None, None, None), "flagged", "but that key only works on answers; use masker: roles"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_row_that_asks_for_another_mask_than_it_would_get_is_refused(sftrun, write, tmp_path, name):
    row, masker, reason = FLAGS[name]
    said = sftrun("prepare", write([GOOD, row], masker=masker), "--out", tmp_path / "out")
    assert said.code == 1
    assert "train.jsonl:2: error: message" in said.err
    assert reason in said.err


def test_flags_decide_with_the_masker_that_reads_them(sftrun, write):
    said = sftrun("inspect", write([flagged(None, False, None, True)], masker="flagged"), "--json")
    assert trained(said) == ["d<|im_end|>"]
