"""Transforms: what each leaves out, changes or adds, and what the ledger says of it."""

import json
import random
import re
from pathlib import Path

import msgspec
import pytest
from conftest import talk as row
from hypothesis import given
from hypothesis import strategies as st

import sftrun
from sftrun import testing
from sftrun.types import Conversation

IMAGE = {"type": "image_url", "image_url": {"url": "data:mail@example.org"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": '{"to": "ada@example.org"}'}}
ODD = [
    Conversation([{"role": "user", "content": [{"type": "text", "text": "Write to ada@example.org"}, IMAGE]}]),
    Conversation(
        [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}], "train": False},
            {"role": "user", "content": "Send it."},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "To ada@example.org."},
            {"role": "tool", "content": "sent", "tool_call_id": "call_1", "name": "send"},
            {"role": "assistant", "content": "Sent.", "train": True},
        ],
        tools=[{"type": "function", "function": {"name": "send", "parameters": {}}}],
        template_kwargs={"enable_thinking": True},
    ),
    Conversation([{"role": "system", "content": None}, {"role": "assistant", "content": ""}]),
    Conversation([{"role": "user", "content": []}, {"role": "assistant", "tool_calls": [{"arguments": {"n": [1]}}]}]),
    Conversation([]),
]
PLAIN = Conversation(
    [{"role": "user", "content": "Once upon "}, {"role": "assistant", "content": "a time."}], plain=True
)


def create(use, **options):
    return sftrun.create("transform", sftrun.Use(use=use, with_=options))


def talk(*turns, origin="", **fields):
    return Conversation(row(*turns)["messages"], origin, **fields)


def talks(*texts):
    """Conversations with these questions (or pairs of question and answer), and origins 1, 2, …"""
    pairs = [text if isinstance(text, tuple) else (text, "Yes.") for text in texts]
    return [talk(*pair, origin=str(number)) for number, pair in enumerate(pairs, 1)]


def applied(use, given, others=(), seed=0, split="train", **options):
    """What comes of conversations, and what is noted: `origin: action: reason (detail)`."""
    notes = []

    def note(origin, action, reason, detail=""):
        notes.append(f"{origin}: {action}: {reason}" + (f" ({detail})" if detail else ""))

    context = msgspec.structs.replace(testing.context(others, note), seed=seed, split=split)
    return list(create(use, **options).apply(iter(given), context)), notes


def origins(conversations):
    return [each.origin for each in conversations]


def said(use, **options):
    """What `check` and `ready` say, as messages."""
    transform = create(use, **options)
    checks = [getattr(transform, name, None) for name in ("check_recipe", "check_machine")]
    return [problem.message for check in checks if check for problem in check(None)]


@pytest.fixture
def phrases(tmp_path):
    file = tmp_path / "phrases.yaml"
    file.write_text("templates: ['Please: {prompt}']\nparaphrases: {river: [stream, brook], '?': ['??']}\n", "utf-8")
    return str(file)


WHOLE = {
    "style": {"prompt": "Be terse.", "where": "append"},
    "dedupe": {"threshold": 0.8},
    "filter": {"min_chars": 3, "max_turns": 2, "reject": ["Two"], "languages": ["en"], "max_tokens": 50},
    "sample": {"rows": 4},
    "shuffle": {},
    "decontaminate": {},
    "redact": {"patterns": {"number": r"\d+"}},
}


@pytest.mark.parametrize("use", WHOLE)
def test_whatever_a_message_holds_a_transform_keeps_its_promises(use):
    testing.check_transform(create(use, **WHOLE[use]), ODD if use == "style" else [*ODD, PLAIN, *ODD])


def test_augment_keeps_its_promises_for_any_message(phrases):
    testing.check_transform(create("augment", file=phrases, copies=3), [*ODD, PLAIN])


@pytest.mark.parametrize("use", sorted({*WHOLE, "augment"} - {"style", "decontaminate"}))
def test_a_transform_works_on_the_splits_that_it_is_asked_to(use, phrases):
    given = [*ODD, talk("7 rivers?", "Two.", "?", "?", "?", "?"), *ODD]
    options = WHOLE.get(use, {"file": phrases})
    assert applied(use, given, split="test", **{**options, "splits": ["val"]}) == (given, [])
    assert applied(use, given, split="test", **{**options, "splits": ["test"]})[0] != given


def test_only_train_is_decontaminated():
    assert applied("decontaminate", MANY, MANY, split="val") == (MANY, [])
    assert applied("decontaminate", MANY, MANY)[0] == []


# style


def test_style_appends_to_a_system_prompt_in_parts_and_keeps_its_other_fields():
    made, _ = applied("style", [ODD[1]], prompt="Be brief.", where="append")
    assert made[0].messages[0] == {
        "role": "system",
        "content": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "\nBe brief."}],
        "train": False,
    }
    assert (made[0].tools, made[0].template_kwargs) == (ODD[1].tools, ODD[1].template_kwargs)


def test_plain_text_cannot_get_a_system_prompt():
    with pytest.raises(sftrun.RowError, match=r"rows\.jsonl:3: plain text has no system prompt"):
        applied("style", [msgspec.structs.replace(PLAIN, origin="rows.jsonl:3")], prompt="Be brief.")


# dedupe


def test_the_first_of_equal_conversations_is_kept_whatever_its_white_space():
    given = talks("What is it?", "What  is\nit? ", "what is it?", ("What is it?", "No."))
    made, notes = applied("dedupe", given)
    assert origins(made) == ["1", "3", "4"]
    assert notes == ["2: filtered: dedupe: same conversation (as 1)"]


def test_case_does_not_count_where_it_is_to_be_ignored():
    assert origins(applied("dedupe", talks("What is it?", "what is it?"), ignore_case=True)[0]) == ["1"]


def test_by_prompt_one_answer_is_kept_for_each_question():
    given = talks(("Who?", "Ada."), ("Who?", "Ben."), ("When?", "Ada."))
    made, notes = applied("dedupe", given, by="prompt")
    assert origins(made) == ["1", "3"]
    assert notes == ["2: filtered: dedupe: same prompt (as 1)"]


def test_conversations_that_differ_in_what_is_no_text_are_not_the_same():
    pictures = [
        Conversation([{"role": "user", "content": [{"type": "text", "text": "What is to be seen?"}, part]}], str(index))
        for index, part in enumerate([IMAGE, {"type": "image", "url": "b.png"}, IMAGE])
    ]
    made, notes = applied("dedupe", pictures, threshold=0.1)
    assert origins(made) == ["0", "1"]
    assert notes == ["2: filtered: dedupe: same conversation (as 0)"]
    calls = [Conversation([{"role": "assistant", "tool_calls": [{"arguments": {"n": n}}]}]) for n in (1, 2)]
    assert len(applied("dedupe", calls)[0]) == 2


LONG = "The Danube rises in the Black Forest and flows through ten countries before it reaches the Black Sea"


def test_near_duplicates_are_left_out_from_a_threshold_on():
    given = talks(LONG, f"{LONG} today!", LONG.replace("Danube", "Rhine").replace("Sea", "Hole"), f"{LONG} today!")
    made, notes = applied("dedupe", given, threshold=0.8, shingle=2)
    assert origins(made) == ["1", "3"]
    assert notes == [
        "2: filtered: dedupe: similar conversation (0.84 like 1)",
        "4: filtered: dedupe: same conversation (as 1)",
    ]
    assert origins(applied("dedupe", given, threshold=0.6, shingle=2)[0]) == ["1"]
    assert origins(applied("dedupe", given, threshold=0.8, shingle=9)[0]) == ["1", "2", "3"]
    assert origins(applied("dedupe", given)[0]) == ["1", "2", "3"]


def pairs(change):
    """Forty texts of forty words, and after them the same with some words changed."""
    draw = random.Random(0)
    texts = [[draw.choice("abcdefgh") + str(draw.randrange(40)) for _ in range(40)] for _ in range(40)]
    return texts, [[word if draw.random() > change else "x" for word in text] for text in texts]


def joined(texts):
    return talks(*(" ".join(text) for text in texts))


def test_all_that_is_similar_enough_is_found_and_nothing_else():
    texts, altered = pairs(0.2)
    made, notes = applied("dedupe", joined(texts + altered), threshold=0.8, shingle=1)
    similar = {str(41 + index) for index, text in enumerate(texts) if jaccard(text, altered[index]) >= 0.8}
    assert 10 < len(similar) < 30
    assert {note.split(":")[0] for note in notes} == similar
    assert len(made) == 80 - len(similar)


def jaccard(one, other):
    words = [{*text, "yes"} for text in (one, other)]
    return len(words[0] & words[1]) / len(words[0] | words[1])


def test_a_longer_minhash_finds_what_a_short_one_overlooks():
    texts, altered = pairs(0.1)
    options = {"threshold": 0.5, "shingle": 1}
    found = [len(applied("dedupe", joined(texts + altered), **options, permutations=size)[1]) for size in (1, 128)]
    assert found[0] < found[1] == 40


def test_each_split_is_deduped_by_itself():
    transform, context = create("dedupe"), testing.context()
    assert [len(list(transform.apply(talks("Who?"), context))) for _ in range(2)] == [1, 1]


# filter


@pytest.mark.parametrize(
    ("options", "kept", "note"),
    [
        ({"min_chars": 4}, "2", "1: filtered: filter: min_chars (3 chars)"),
        ({"max_chars": 4}, "1", "2: filtered: filter: max_chars (17 chars)"),
        ({"min_tokens": 4}, "2", "1: filtered: filter: min_tokens (1 tokens)"),
        ({"max_tokens": 4}, "1", "2: filtered: filter: max_tokens (13 tokens)"),
        ({"min_turns": 2}, "2", "1: filtered: filter: min_turns (1 turns)"),
        ({"max_turns": 1}, "1", "2: filtered: filter: max_turns (2 turns)"),
        ({"match": ["^[A-Z]", "Sea"]}, "2", "1: filtered: filter: match (Sea is not found)"),
        ({"reject": ["Z", "Sea$"]}, "1", "2: filtered: filter: reject (Sea$ is found)"),
        ({"reject": ["Who"], "roles": ["user"]}, "2", "1: filtered: filter: reject (Who is found)"),
        ({"max_chars": 20, "roles": ["user", "assistant"]}, "1", "2: filtered: filter: max_chars (33 chars)"),
    ],
)
def test_a_filter_keeps_what_meets_its_rules_and_says_which_was_broken(options, kept, note):
    given = [talk("Who?", "The", origin="1"), talk("Where to?", "Black Sea", "Really?", "I swear.", origin="2")]
    made, notes = applied("filter", given, **options)
    assert origins(made) == [kept]
    assert notes == [note]


SPOKEN = talks(
    ("?", "The Danube is a river in Europe, and it is a long one."),
    ("?", "Die Donau ist ein Fluss in Europa, und zwar ein langer."),
    ("?", "42"),
)


def test_a_filter_keeps_languages_and_what_is_too_short_to_have_one():
    made, notes = applied("filter", SPOKEN, languages=["en", "fr"])
    assert origins(made) == ["1", "3"]
    assert notes[0].startswith("2: filtered: filter: languages (de (")
    assert origins(applied("filter", SPOKEN, languages=["en"], language_confidence=0)[0]) == ["1"]


# sample, shuffle


MANY = talks(*map(str, range(300)))


def test_a_sample_has_as_many_rows_as_asked_for_in_their_order():
    made, notes = applied("sample", MANY, rows=50)
    assert len(made) == 50
    assert made == [each for each in MANY if each in made]
    assert {note.split(": ", 1)[1] for note in notes} == {"filtered: sample: not chosen"}
    assert sorted([*origins(made), *(note.split(":")[0] for note in notes)]) == sorted(origins(MANY))
    assert applied("sample", MANY[:20], rows=50)[0] == MANY[:20]


def test_a_sample_is_a_share_of_the_rows():
    made, notes = applied("sample", MANY, share=0.3)
    assert 60 < len(made) < 120
    assert len(made) + len(notes) == 300
    assert applied("sample", MANY, share=1)[0] == MANY


@pytest.mark.parametrize("options", [{"rows": 50}, {"share": 0.3}])
def test_the_seed_decides_what_a_sample_is(options):
    first, again, other = (applied("sample", MANY, seed=seed, **options)[0] for seed in (1, 1, 2))
    assert first == again != other


@given(st.lists(st.text(), max_size=30), st.integers(0, 9))
def test_shuffling_loses_nothing_and_is_the_same_for_the_same_seed(texts, seed):
    given = talks(*texts)
    made, notes = applied("shuffle", given, seed=seed)
    assert sorted(origins(made)) == sorted(origins(given))
    assert {each.origin: each for each in made} == {each.origin: each for each in given}
    assert notes == []
    assert applied("shuffle", given, seed=seed)[0] == made


def test_another_seed_or_split_is_another_order():
    orders = [
        origins(applied("shuffle", MANY, splits=["train", "val"], **each)[0])
        for each in ({}, {"seed": 1}, {"split": "val"})
    ]
    assert len({*map(tuple, orders)}) == 3
    assert origins(MANY) not in orders


# decontaminate


def test_a_row_that_shares_a_run_of_words_with_a_held_out_one_is_left_out():
    given = talks(f"Is it true? {LONG.upper()}!", "Where does the Danube rise?", "Where does the Rhine rise?")
    others = [talk("Tell me more.", LONG), talk("Where does the Danube rise", "In a forest.")]
    made, notes = applied("decontaminate", given, others, against=["val"])
    assert origins(made) == ["3"]
    assert notes == [
        "1: filtered: decontaminate: overlaps with evaluation data (6 of 9 runs of words)",
        "2: filtered: decontaminate: overlaps with evaluation data (1 of 1 runs of words)",
    ]


def test_short_answers_and_system_prompts_are_no_contamination():
    system = {"role": "system", "content": LONG}
    given = [Conversation([system, *talk("Is it so?", "Yes.").messages], "1")]
    assert applied("decontaminate", given, [Conversation([system, *talk("Really?", "Yes.").messages])])[0] == given


def test_some_overlap_may_be_allowed_and_runs_may_be_shorter():
    given, others = talks(f"Is it true? {LONG}"), [talk("Tell me more.", LONG)]
    assert applied("decontaminate", given, others, max_overlap=0.8)[0] == given
    assert applied("decontaminate", talks("the Black Forest, and so on"), others, ngram=3)[0] == []
    assert applied("decontaminate", given, others, against=[])[0] == given


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bench.txt", f"\ufeffWho are you?\n{LONG}\n"),
        ("bench.jsonl", '{"q": "Who are you?"}\n\n' + json.dumps({"id": 1, "choices": [{"text": LONG}]})),
        ("bench.json", json.dumps([["who are you"], LONG])),
    ],
)
def test_a_row_that_stands_in_a_benchmark_is_left_out(tmp_path, name, text):
    (tmp_path / name).write_text(text, "utf-8")
    given = talks(LONG, "Who are you?", "And you?")
    assert origins(applied("decontaminate", given, files=[str(tmp_path / name)])[0]) == ["3"]


def test_a_benchmark_that_cannot_be_read_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "bench.jsonl"
    file.write_text('{"q": 1}\n{"q": \n')
    with pytest.raises(sftrun.UserError, match=r"bench\.jsonl:2: not valid JSON"):
        applied("decontaminate", [], files=[str(file)])


def test_the_fingerprint_of_a_transform_changes_with_its_files(tmp_path):
    file = tmp_path / "phrases.txt"
    seen = []
    for text in ("Please {prompt}", "Kindly {prompt}", "Please {prompt}"):
        file.write_text(text)
        seen.append(
            (create("decontaminate", files=[str(file)]).fingerprint(), create("augment", file=str(file)).fingerprint())
        )
    assert seen[0] == seen[2]
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


# redact


def redacted(text, **options):
    (made,), _ = applied("redact", [talk(text, "Yes.")], **options)
    return made.messages[0]["content"]


AWS, GITHUB = "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9  # in two parts, so that no scanner takes them for keys
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nAAAA\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ada.b+c@mail.example.org, please", "[email], please"),
        ("grüße@bücher.example", "[email]"),
        ("call +49 30 123456 now", "call [phone] now"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("amex 378282246310005", "amex [card]"),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", "IBAN [iban] BIC COBADEFF"),
        ("GB82WEST12345698765432", "[iban]"),
        (f"export KEY={AWS}", "export KEY=[key]"),
        (f"{GITHUB}!", "[key]!"),
        ("hf_" + "aB3d" * 9, "[key]"),
        ("sk-proj-" + "aB3d" * 9, "[key]"),
        (f"a\n{PEM}\nb", "a\n[key]\nb"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_1", "[key]"),
    ],
)
def test_what_belongs_to_one_person_is_replaced(text, expected):
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails the check digit",
        "1700000000000 is a time",
        "DE89 3704 0044 0532 0130 01 has the wrong check digits",
        "2024-01-02 12:30:00, version 10.2.3.4, 2+2=4, 030 1234567",
        "sk-learn-is-the-name-of-a-library, user@localhost, a@b",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert redacted(text) == text


def test_national_phone_numbers_are_found_for_countries_that_are_named():
    assert redacted("030 1234567 or (415) 555-2671", regions=["DE", "US"]) == "[phone] or [phone]"


def test_public_addresses_of_the_internet_are_found_on_request():
    text = "8.8.8.8, 2001:4860:4860::8888, 192.168.0.1, ::1, 12:30:45, 1.2.3.4.5"
    assert redacted(text, kinds=["ip"]) == "[ip], [ip], 192.168.0.1, ::1, 12:30:45, 1.2.3.4.5"


def test_patterns_of_ones_own_and_another_replacement():
    options = {"kinds": ["email"], "patterns": {"customer": r"C-\d{4}"}, "replacement": "<{kind}>"}
    assert redacted("C-1234 is a@example.org", **options) == "<customer> is <email>"


def test_every_text_of_a_message_is_redacted_and_nothing_else_changes():
    (made,), notes = applied("redact", [msgspec.structs.replace(ODD[1], origin="7")])
    answer = made.messages[2]
    assert answer["reasoning_content"] == "To [email]."
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {"to": "[email]"}
    assert [made.messages[index] for index in (0, 1, 3, 4)] == [ODD[1].messages[index] for index in (0, 1, 3, 4)]
    assert notes == ["7: changed: redact: email (2 email)"]
    assert applied("redact", [made])[1] == []
    (made,), _ = applied("redact", [ODD[0]])
    assert made.messages[0]["content"] == [{"type": "text", "text": "Write to [email]"}, IMAGE]


@given(st.text())
def test_redacting_twice_is_redacting_once(text):
    once = redacted(f"{text} ada@example.org {text}")
    assert "ada@example.org" not in once
    assert redacted(once) == once


def test_a_long_text_without_spaces_takes_no_long_time():
    text = "aB3." * 50_000
    assert redacted(text, kinds=["key", "email", "iban", "card", "ip"]) == text


# augment


def test_augment_adds_questions_in_other_words_with_the_same_answer(phrases):
    given = talks(("Name a river?", "The Danube."))
    made, notes = applied("augment", given, file=phrases, copies=20)
    assert made[0] == given[0]
    assert {each.messages[0]["content"] for each in made[1:]} == {
        f"Please: Name a {word}{mark}" for word in ("river", "stream", "brook") for mark in ("?", "??")
    }
    assert {(each.origin, each.messages[1]["content"]) for each in made} == {("1", "The Danube.")}
    assert notes == ["1: added: augment: a rephrased question"] * (len(made) - 1)


def test_augment_makes_as_many_copies_as_asked_for(phrases):
    given = talks("A river, a river, a river?")
    assert [len(applied("augment", given, file=phrases, copies=copies)[0]) for copies in (1, 3)] == [2, 4]
    assert len(applied("augment", given, file=phrases)[0]) == 2


def test_augment_makes_the_same_of_a_row_whatever_stands_beside_it(phrases):
    given = talks("Which river?", "A river, or a river?")
    assert applied("augment", given, file=phrases)[0][2:] == applied("augment", given[1:], file=phrases)[0]
    seeds = [applied("augment", given, seed=seed, file=phrases)[0] for seed in range(9)]
    assert any(each != seeds[0] for each in seeds)


def test_a_text_file_has_a_template_a_line(tmp_path):
    (tmp_path / "t.txt").write_text("Please {prompt}\n\n")
    made, _ = applied("augment", [talk("say hi", "hi"), ODD[0]], file=str(tmp_path / "t.txt"))
    assert made[1].messages[0]["content"] == "Please say hi"
    assert made[3].messages[0]["content"] == [{"type": "text", "text": "Please Write to ada@example.org"}, IMAGE]


# what is wrong with options


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("dedupe", {"shingle": 2}, "dedupe: shingle has no effect without threshold"),
        ("filter", {}, "filter has no rule, so it keeps everything"),
        ("filter", {"min_chars": 2, "max_chars": 1}, "filter keeps nothing: min_chars 2 is more than max_chars 1"),
        ("filter", {"match": ["("]}, "filter: match has '(', which is not a regular expression: missing ), "),
        ("filter", {"min_turns": 1, "language_confidence": 0.1}, "filter: language_confidence has no effect"),
        ("filter", {"languages": ["english"]}, "filter: no language has the code 'english'"),
        ("sample", {}, "sample needs either rows or share"),
        ("sample", {"rows": 1, "share": 0.5}, "sample needs either rows or share"),
        ("decontaminate", {"against": []}, "decontaminate compares with nothing"),
        ("decontaminate", {"files": ["nowhere.txt"]}, "decontaminate: no such file: nowhere.txt"),
        ("redact", {"kinds": []}, "redact looks for nothing"),
        ("redact", {"patterns": {"x": "["}}, "redact: the pattern x is '[', which is not a regular expression"),
        ("redact", {"patterns": {"x": "a*"}}, "redact: the pattern x matches an empty text"),
        ("redact", {"patterns": {"email": "a"}}, "redact: patterns has 'email', which is the name of a kind"),
        ("redact", {"kinds": ["key"], "regions": ["DE"]}, "redact: regions has no effect without the kind phone"),
        ("redact", {"regions": ["Germany"]}, "redact: 'Germany' is no country with phone numbers"),
        ("augment", {"file": "nowhere.txt"}, "augment: no such file: nowhere.txt"),
    ],
)
def test_options_that_make_no_sense_are_said(use, options, message):
    (found,) = said(use, **options)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "Please prompt\n", "the template 'Please prompt' has no {prompt}"),
        ("t.txt", "\n", "has neither templates nor paraphrases"),
        ("t.yaml", "template: []", "unknown field `template`"),
        ("t.yaml", "paraphrases: {a: b}", "Expected `array`, got `str` - at `$.paraphrases[...]`"),
        ("t.yaml", "paraphrases: {a: []}", "the phrase 'a' has no paraphrases"),
        ("t.json", "{", "while parsing"),
    ],
)
def test_a_file_of_phrases_that_makes_no_sense_is_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    (found,) = said("augment", file=str(tmp_path / name))
    assert message in found


# in a recipe


def test_what_is_left_out_on_purpose_is_in_the_ledger_and_does_not_count_as_lost(sftrun, write, tmp_path):
    transforms = [
        "dedupe",
        {"use": "filter", "with": {"match": ["h"]}},
        {"use": "sample", "with": {"rows": 2}},
        "shuffle",
    ]
    rows = [row("hi", "hello"), row("hi", "hello"), row("hi", "bye"), *(row(f"say {n}", f"ah {n}") for n in range(5))]
    said = sftrun("prepare", write(rows, transforms=transforms, data={"max_lost": 0}), "--out", tmp_path / "out")
    assert said.code == 0, said.err
    for line in (
        "1 rows filtered: dedupe: same",
        "1 rows filtered: filter: match",
        "4 rows filtered: sample: not chosen",
    ):
        assert f"train: {line}" in said.err
    entries = [json.loads(line) for line in (tmp_path / "out/prepared/ledger.jsonl").read_text().splitlines()]
    assert (entries[0]["origin"], entries[0]["action"], entries[0]["detail"]) == (
        "train.jsonl:2",
        "filtered",
        "as train.jsonl:1",
    )
    assert json.loads((tmp_path / "out/prepared/stats.json").read_text())["train"]["lost"] == {}


def test_tokens_are_those_of_the_model_of_the_recipe(sftrun, write):
    recipe = write(
        [row("hi", "hello"), row("hi", "word " * 20)], transforms=[{"use": "filter", "with": {"max_tokens": 9}}]
    )
    assert len(sftrun("inspect", recipe, "--json").out.splitlines()) == 1


def test_train_rows_that_are_held_out_as_well_are_not_trained(sftrun, write):
    recipe = write({"train": [row("hi", "a"), row("ho", "b")], "val": [row("Hi!", "c")]}, transforms=["decontaminate"])
    assert [json.loads(line)["origin"] for line in sftrun("inspect", recipe, "--json").out.splitlines()] == [
        "train.jsonl:2"
    ]


def test_validate_says_what_is_wrong_with_a_transform_and_where(sftrun, write):
    recipe = write([row("hi", "ho")], transforms=["shuffle", {"use": "filter", "with": {"match": ["("]}}])
    said = sftrun("validate", recipe)
    assert said.code == 1
    assert "recipe.yaml:" in said.err + said.out
    assert "filter: match has '(', which is not a regular expression" in said.err + said.out


DATA = Path(__file__).parent.parent / "docs" / "data.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", DATA.read_text("utf-8").partition("\n## Transforms\n")[2], re.DOTALL)


def test_what_stands_in_the_docs_is_valid(sftrun, tmp_path):
    for block in [block for block in BLOCKS if block.startswith("transforms:")]:
        (tmp_path / "r.yaml").write_text(
            f"model: {{name: sftrun/tiny}}\nsource: {{use: jsonl, with: {{path: x}}}}\n{block}"
        )
        assert sftrun("validate", tmp_path / "r.yaml").code == 0
    (phrases,) = [block for block in BLOCKS if "paraphrases:" in block]
    (tmp_path / "phrases.yaml").write_text(phrases)
    made, _ = applied("augment", talks("How do I swim?"), file=str(tmp_path / "phrases.yaml"), copies=99)
    assert "What is the way to swim? Keep it short." in [each.messages[0]["content"] for each in made]
