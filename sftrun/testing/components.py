"""What each kind of component promises, as checks."""

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, get_args

import msgspec

from sftrun import kinds, types
from sftrun.errors import RowError, UserError
from sftrun.testing import examples
from sftrun.types import BadRow, Conversation, Grade, Measure, Row, Scores

SPLITS = ("train", "val", "test")
JUNK: tuple[Any, ...] = (None, True, -1, 0.5, "", " \n", "\0", [], {}, [None], [[]], {"x": 1})
ACTIONS = get_args(types.NoteAction)
Note = tuple[str, str, str, str]


def check_source(source: kinds.Source) -> None:
    """Known splits; rows that come again in the same order; origins that name one row; a fingerprint that stays."""
    who = type(source).__name__
    splits, fingerprint = list(source.splits()), source.fingerprint()
    assert splits, f"{who}.splits() names none"
    assert len({*splits} & {*SPLITS}) == len(splits), f"{who}.splits() must be among {SPLITS}, once each: {splits}"
    assert _is_said(fingerprint), f"{who}.fingerprint() must be a text: {fingerprint!r}"
    origins: set[str] = set()
    for split in splits:
        next(source.rows(split), None)  # a reader that stopped early must not move the next one
        rows, again = list(source.rows(split)), list(source.rows(split))
        assert rows == again, f"{who}.rows({split!r}) is not the same a second time"
        for row in rows:
            _check_row(row, who)
            assert row.origin not in origins, f"{who}: two rows have the origin {row.origin!r}"
            origins.add(row.origin)
            assert _is_said(source.locate(row.origin)), f"{who}.locate({row.origin!r}) must say where to look"
    assert origins, f"{who} has no row, so nothing was checked"
    assert source.fingerprint() == fingerprint, f"{who}.fingerprint() is not the same a second time"


def _check_row(row: Any, who: str) -> None:
    assert isinstance(row, Row | BadRow), f"{who}: a row must be a Row or a BadRow, not {type(row).__name__}"
    assert _is_said(row.origin), f"{who}: a row must have an origin: {row!r}"
    if isinstance(row, BadRow):
        assert _is_said(row.reason), f"{who}: the bad row {row.origin} must have a reason"
    else:
        assert isinstance(row.data, dict), f"{who}: the data of {row.origin} must be a dict, not {row.data!r}"


def _is_said(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def check_formatter(formatter: kinds.Formatter, rows: Iterable[dict[str, Any]]) -> None:
    """`rows` become conversations, the same ones each time; any of them with a part broken fits or is a RowError."""
    rows = list(rows)
    assert rows, "check_formatter needs a row"
    for number, data in enumerate(rows, 1):
        row = Row(data, f"rows.jsonl:{number}")
        before = copy.deepcopy(data)
        talk = formatter.format(row)
        _check_conversation(talk, row)
        assert data == before, f"{row.origin}: the row was changed in place"
        assert formatter.format(row) == talk, f"{row.origin}: the conversation is not the same a second time"
    broken = [each for data in rows for each in _broken(data) if isinstance(each, dict)]
    for data in [{"unexpected": 1}, *broken]:
        _check_hostile(formatter, Row(data, "hostile.jsonl:1"))


def _broken(value: Any) -> Iterator[Any]:
    """Copies of a value, in each of which one thing is missing or of another type, however deep it lies."""
    yield from JUNK
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield from ({**value, key: each} for each in _broken(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], each, *value[index + 1 :]] for each in _broken(inner))


def _check_hostile(formatter: kinds.Formatter, row: Row) -> None:
    try:
        talk = formatter.format(row)
    except RowError as error:
        if not _is_said(str(error)):
            raise AssertionError(f"the RowError for {row.data!r} has no reason") from error
        return
    except Exception as error:
        raise AssertionError(f"must be a RowError, not {type(error).__name__}: {error}; for {row.data!r}") from error
    try:
        _check_conversation(talk, row)
    except AssertionError as error:
        raise AssertionError(f"neither refused nor right: {error}; for {row.data!r}") from None


def _check_conversation(talk: Any, row: Row) -> None:
    assert isinstance(talk, Conversation), f"format() must return a Conversation, not {type(talk).__name__}"
    assert talk.origin == row.origin, f"the origin is {talk.origin!r}, but the row's is {row.origin!r}"
    assert talk.messages, "the conversation has no messages"
    for index, message in enumerate(talk.messages):
        assert isinstance(message, dict), f"message {index} must be a dict, not {type(message).__name__}"
        assert isinstance(message.get("role"), str), f"message {index} has no role"
        _check_content(message, index, talk.plain)
        train = message.get("train", True)
        assert isinstance(train, bool), f"message {index}: train must be true or false, not {train!r}"
    last = talk.messages[-1]["role"]
    fits = talk.plain or last == "assistant"
    assert fits, f"it ends on a {last} turn; the last message is the answer to learn, or to hold out"
    msgspec.json.encode(talk)  # held-out prompts are kept as JSON


def _check_content(message: types.Message, index: int, plain: bool) -> None:
    content = message.get("content")
    if plain:
        assert isinstance(content, str), f"message {index}: plain content must be a text, not {content!r}"
        assert message.keys() == {"role", "content"}, f"message {index}: a plain one has a role and a content only"
        return
    fits = isinstance(content, str | list) or (content is None and message.get("tool_calls"))
    assert fits, f"message {index}: content must be a text or a list of parts, not {content!r}"


def check_masker(masker: kinds.Masker, also: Collection[str] = ()) -> None:
    """One bool a span; nothing is trained but what the model emits, and spans of the roles in `also`.

    Flags that stay where spans move; stretches of a text in order, inside it and apart from one another.
    """
    trained = 0
    talks = [*examples.talks(), *(examples.flagged() if getattr(masker, "honours_flags", False) else [])]
    for talk in talks:
        text = examples.rendered(talk)
        chosen = masker.choose(list(text.spans))
        _check_flags(masker, talk.origin, text.spans, chosen)
        for span, flag in zip(text.spans, chosen, strict=True):
            where = f"{talk.origin}: the span {span.start} to {span.end} (message {span.message}, {span.role})"
            assert not flag or span.generated or span.role in also, f"{where} is trained, but the model never emits it"
            if flag and not span.end_of_turn:
                _check_stretches(masker, text.text[span.start : span.end])
        trained += sum(chosen)
    assert trained, f"nothing is trained in any of {len(talks)} conversations"
    for odd in ("", " \n", "\0", "</think>", "<think>\nx</think>\n\ny", "Дунай 🌊" * 99):
        _check_stretches(masker, odd)


def _check_flags(masker: kinds.Masker, origin: str, spans: Sequence[types.Span], chosen: Sequence[bool]) -> None:
    assert len(chosen) == len(spans), f"{origin}: {len(chosen)} flags for {len(spans)} spans"
    assert all(isinstance(flag, bool) for flag in chosen), f"{origin}: flags must be bools: {list(chosen)}"
    assert list(masker.choose(list(spans))) == list(chosen), f"{origin}: not the same a second time"
    moved = [msgspec.structs.replace(span, start=3 * span.start, end=3 * span.end + 1) for span in spans]
    why = "choose() depends on positions; conversations of one shape are asked about once"
    assert list(masker.choose(moved)) == list(chosen), f"{origin}: {why}"


def _check_stretches(masker: kinds.Masker, text: str) -> None:
    """Checks `narrow`, where the masker has it."""
    narrow = getattr(masker, "narrow", None)
    if narrow is None:
        return
    found = [(start, end) for start, end in narrow(text)]
    edges = [edge for stretch in found for edge in stretch]
    fits = edges == sorted(edges) and all(0 <= edge <= len(text) for edge in edges)
    what = f"narrow({text[:20]!r}) gives {found[:5]}"
    assert fits, f"{what}; stretches must be in order, inside the text and apart from one another"
    assert [*map(tuple, narrow(text))] == found, f"{what}, and others a second time"


def check_transform(transform: kinds.Transform, conversations: Sequence[Conversation] = ()) -> None:
    """The same in, the same out; nothing is changed in place; all that is left out or changed is noted, nothing else.

    Give conversations that the transform acts on; those of `talks` are tried in any case.
    """
    given = _distinct([*examples.talks(), *conversations])
    kept = copy.deepcopy(given)
    made, notes = _applied(transform, given)
    assert given == kept, "conversations were changed in place; make new ones (msgspec.structs.replace)"
    assert _applied(transform, given) == (made, notes), "not the same a second time: state must not outlive apply()"
    origins = {talk.origin for talk in given}
    for talk in made:
        assert isinstance(talk, Conversation), f"apply() must yield Conversations, not {type(talk).__name__}"
        assert talk.origin in origins, f"the origin {talk.origin!r} is that of no conversation given"
    for origin, action, reason, detail in notes:
        assert origin in origins, f"the note on {origin!r} is about no conversation given"
        assert action in ACTIONS, f"{origin}: the action is {action!r}; there are {', '.join(ACTIONS)}"
        assert _is_said(reason), f"{origin}: the note has no reason"
        assert isinstance(detail, str), f"{origin}: the detail of a note must be a text, not {detail!r}"
    for talk in given:
        _check_noted(talk, made, {action for origin, action, *_ in notes if origin == talk.origin})


def _distinct(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The conversations, each with an origin of its own."""
    numbered = enumerate(copy.deepcopy([*conversations]), 1)
    return [msgspec.structs.replace(talk, origin=f"talks.jsonl:{number}") for number, talk in numbered]


def _applied(transform: kinds.Transform, given: Sequence[Conversation]) -> tuple[list[Conversation], list[Note]]:
    notes: list[Note] = []

    def note(origin: str, action: types.NoteAction, reason: str, detail: str = "", /) -> None:
        notes.append((origin, action, reason, detail))

    made = list(transform.apply(iter(given), examples.context(given[:1], note)))
    return made, notes


def _check_noted(talk: Conversation, made: Sequence[Conversation], noted: set[str]) -> None:
    """A conversation that comes out as it went in is not noted, even where others were made of it."""
    results = [each for each in made if each.origin == talk.origin]
    said = " and ".join(sorted(noted)) or "nothing"
    done = noted - {"added"}
    if talk in results:
        was, fits = "kept as it is", not done
    elif results:
        was, fits = "changed", done == {"changed"}
    else:
        was, fits = "dropped", done in ({"dropped"}, {"filtered"})
    assert fits, f"{talk.origin} ({talk.messages}) was {was}, but noted is: {said}"
    assert len(results) > 1 or "added" not in noted, f"{talk.origin}: nothing was added to it, but noted is: {said}"


def check_judge(judge: kinds.Judge) -> None:
    """A grade from 0 to 1 with a reason, whatever the answer is; the same each time."""
    prompt = examples.prompts("test")[0]
    for answer in ("", " \n", prompt.reference, prompt.reference.upper(), "no", "Дунай 🌊 \0 <|im_end|>", "so " * 5000):
        what = f"for the answer {answer[:20]!r}"
        grade = judge.grade(kinds.Grading(prompt=prompt, answer=answer))
        assert isinstance(grade, Grade), f"grade() must return a Grade, not {type(grade).__name__}, {what}"
        assert 0 <= grade.score <= 1, f"the score must be from 0 to 1, not {grade.score}, {what}"
        assert _is_said(grade.reason), f"there must be a reason {what}"
        assert judge.grade(kinds.Grading(prompt=prompt, answer=answer)) == grade, (
            f"not the same grade a second time {what}"
        )


def check_evaluator(evaluator: kinds.Evaluator) -> None:
    """Finite metrics; samples that can be laid beside another model's; without prompts a UserError, if any."""
    prompts = {split: examples.prompts(split) for split in ("val", "test")}
    scores = evaluator.score(examples.scoring(examples.Parrot("The Danube."), prompts))
    _check_scores(scores)
    again = evaluator.score(examples.scoring(examples.Parrot("The Danube."), prompts))
    assert again == scores, "the scores are not the same a second time"
    other = evaluator.score(examples.scoring(examples.Parrot(""), prompts))
    assert other.metrics.keys() == scores.metrics.keys(), "the names of the metrics depend on the model"
    same = [each["origin"] for each in other.samples] == [each["origin"] for each in scores.samples]
    assert same, "the samples of two models must be of the same prompts, in the same order"
    try:
        evaluator.score(examples.scoring(examples.Parrot(""), {}))
    except UserError:
        return
    except Exception as error:
        raise AssertionError(f"without prompts: must be a UserError, not {type(error).__name__}: {error}") from error


def _check_scores(scores: Any) -> None:
    assert isinstance(scores, Scores), f"score() must return Scores, not {type(scores).__name__}"
    assert scores.metrics, "there is no metric"
    for name, measure in scores.metrics.items():
        value = measure.value if isinstance(measure, Measure) else measure
        assert isinstance(value, float | int), f"{name} must be a number, not {value!r}"
        assert math.isfinite(value), f"{name} must be finite, not {value}"
        assert isinstance(measure, Measure), f"{name} has no direction; give it as sftrun.Measure({value})"
    for sample in scores.samples:
        missing = {"origin", "messages", "reference"} - sample.keys()
        assert not missing, f"a sample lacks {', '.join(sorted(missing))}: {sample}"
    msgspec.json.encode(scores)  # they are kept as JSON
