"""The conformance kit: the built-ins pass it, and whatever breaks a promise does not."""

import itertools
import json
import sys
from typing import Annotated

import msgspec
import pytest

import sftrun
from sftrun import testing
from sftrun.recipe.model import ModelOptions, Recipe
from sftrun.registry import current
from sftrun.types import Conversation, Row

COMPONENTS = [
    item for items in current().components.values() for item in items.values() if item.distribution == "sftrun"
]
TALK = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
ROWS = [
    {"messages": TALK},
    {"messages": TALK, "system": "Be terse."},
    {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    {"system": "Be terse.", "user": "2+2?", "assistant": "4"},
]


def create(kind, use, **options):
    return sftrun.create(kind, sftrun.Use(use=use, with_=options))


@pytest.mark.parametrize("folder", [True, False])
def test_the_source_jsonl_keeps_its_promises(tmp_path, folder):
    lines = [*(json.dumps({"user": str(number)}) for number in range(50)), "not JSON", "[1]"]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), "utf-8")
    if folder:
        (tmp_path / "test.jsonl").write_text(lines[0], "utf-8")
    testing.check_source(create("source", "jsonl", path=str(tmp_path if folder else tmp_path / "train.jsonl")))


FILES = {
    "json": '[{"a": 1}, 7, {"a": 2}]',
    "csv": "q,a\n1,2\n3\n",
    "tsv": "q\ta\n1\t2\n3\n",
    "text": "One.\n\nTwo.\n",
}


@pytest.mark.parametrize("use", FILES)
def test_the_sources_of_files_keep_their_promises(tmp_path, use):
    (tmp_path / "rows").write_text(FILES[use], "utf-8")
    testing.check_source(create("source", use, path=str(tmp_path / "rows")))


def test_the_source_mix_keeps_its_promises(tmp_path):
    for use, text in FILES.items():
        (tmp_path / use).write_text(text, "utf-8")
    sources = [{"use": use, "with": {"path": str(tmp_path / use)}} for use in FILES]
    for weights in (None, [1, 2, 3, 4]):
        testing.check_source(create("source", "mix", sources=sources, weights=weights))


CALL = {"id": "a", "function": {"name": "find", "arguments": {"q": "x", "n": [1, None]}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "Hm."}
FOUND = {"role": "tool", "content": [{"type": "text", "text": "none"}], "tool_call_id": "a"}
FORMATTED = [
    ("chat", {}, ROWS),
    ("chat", {}, [{"messages": [TALK[0], CALLING, FOUND, {**TALK[1], "weight": 1}], "tools": [{"name": "find"}]}]),
    ("chat", {"arguments": "text"}, [{"conversations": [{"from": "function_call", "value": '{"name": "find"}'}]}]),
    ("alpaca", {}, [{"instruction": "Add.", "input": "2, 2", "output": "4", "history": [["Hi", "Ho"]], "system": "s"}]),
    ("prompt-completion", {}, [{"prompt": "2+2=", "completion": "4"}, {"prompt": TALK, "completion": TALK}]),
    ("text", {}, [{"text": "2+2=4"}]),
    ("columns", {"system": "{s}", "user": "{a} + {b}", "assistant": "{c}"}, [{"s": "x", "a": 1, "b": 2.5, "c": "3.5"}]),
]


@pytest.mark.parametrize(("use", "options", "rows"), FORMATTED)
def test_formatters_keep_their_promises(use, options, rows):
    testing.check_formatter(create("formatter", use, **options), rows)


EVERY_ROLE = ("system", "user", "tool", "template", "assistant")
MASKERS_BUILT_IN = [
    ("assistant", {}, ()),
    ("assistant", {"reasoning": False, "tool_calls": False, "end_of_turn": False}, ()),
    ("last-reply", {}, ()),
    ("last-reply", {"reasoning": False}, ()),
    ("completion", {}, ()),
    ("all", {}, EVERY_ROLE),
    ("flagged", {"otherwise": "skip", "reasoning": False}, ()),
    ("flagged", {"otherwise": "train"}, ()),
    ("roles", {"roles": ["assistant"]}, ()),
    ("roles", {"roles": ["user", "tool"]}, ("user", "tool")),
    ("spans", {"pattern": r"[a-z]+"}, ()),
    ("spans", {"start": "T", "end": "w", "reasoning": True, "end_of_turn": False}, ()),
]


@pytest.mark.parametrize(("use", "options", "also"), MASKERS_BUILT_IN)
def test_the_maskers_keep_their_promises(use, options, also):
    testing.check_masker(create("masker", use, **options), also)


@pytest.mark.parametrize("where", ["missing", "replace", "append"])
def test_the_transform_style_keeps_its_promises(where):
    testing.check_transform(create("transform", "style", prompt="Be terse.", where=where))


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("dedupe", {}),
        ("dedupe", {"by": "prompt", "threshold": 0.5}),
        ("filter", {"min_chars": 5, "max_turns": 3, "max_tokens": 60, "reject": ["yes"]}),
        ("filter", {"languages": ["en"]}),
        ("sample", {"rows": 3}),
        ("sample", {"share": 0.5}),
        ("shuffle", {}),
        ("decontaminate", {}),
        ("redact", {"patterns": {"number": "[0-9]+"}}),
    ],
)
def test_transforms_keep_their_promises(use, options):
    testing.check_transform(create("transform", use, **options))


def test_the_transform_augment_keeps_its_promises(tmp_path):
    (tmp_path / "templates.txt").write_text("Please: {prompt}\nNow: {prompt}\n", "utf-8")
    testing.check_transform(create("transform", "augment", file=str(tmp_path / "templates.txt"), copies=2))


def test_the_judge_reference_keeps_its_promises():
    testing.check_judge(create("judge", "reference"))


@pytest.mark.parametrize("use", ["loss", "generation", "judge"])
def test_evaluators_keep_their_promises(use):
    testing.check_evaluator(create("evaluator", use))


@pytest.mark.parametrize("item", COMPONENTS, ids=lambda item: f"{item.kind}-{item.name}")
def test_the_options_of_built_ins_are_described(item):
    assert item.description
    if item.options is not None:
        testing.check_options(item.options)


def test_masks_are_shown_as_text():
    masker = create("masker", "assistant")
    assert testing.shown(masker, Conversation(TALK)) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧\n"
    )


class Fake:
    """A component whose methods are given: `Fake(choose=…)`."""

    def __init__(self, **methods):
        self.__dict__.update(methods)


def source(**methods):
    rows = methods.pop("rows", lambda split: iter([Row({}, "a:1"), Row({}, "a:2")]))
    usual = {"splits": lambda: ["train"], "rows": rows, "fingerprint": lambda: "f", "locate": lambda origin: origin}
    return Fake(**{**usual, **methods})


def numbers():
    """A function that returns another number each time."""
    count = itertools.count()
    return lambda *_: str(next(count))


ONE = [Row({}, "a:1")]
SHARED = iter([Row({}, f"a:{number}") for number in range(9)])
SOURCES = {
    "names none": source(splits=list),
    "must be among": source(splits=lambda: ["train", "dev"]),
    "must be a text: 7": source(fingerprint=lambda: 7),
    "fingerprint() is not the same a second time": source(fingerprint=numbers()),
    "rows('train') is not the same a second time": source(rows=lambda split: SHARED),
    "two rows have the origin 'a:1'": source(rows=lambda split: iter(ONE * 2)),
    "must be a Row or a BadRow, not dict": source(rows=lambda split: iter([{}])),
    "must have an origin": source(rows=lambda split: iter([Row({}, "")])),
    "the bad row a:1 must have a reason": source(rows=lambda split: iter([sftrun.BadRow("a:1", "")])),
    "must be a dict, not []": source(rows=lambda split: iter([Row([], "a:1")])),
    "must say where to look": source(locate=lambda origin: ""),
    "has no row": source(rows=lambda split: iter([])),
}


@pytest.mark.parametrize("reason", SOURCES)
def test_a_source_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_source(SOURCES[reason])
    assert reason in str(caught.value)


def made(row, messages=TALK, **changes):
    return msgspec.structs.replace(Conversation(list(messages), row.origin), **changes)


def popped(row):
    row.data.pop("user", None)
    return made(row)


def refused(row):
    if row.data != {"user": "2+2?"}:
        raise sftrun.RowError("")
    return made(row)


ANY = numbers()
FORMATTERS = {
    "must return a Conversation, not dict": lambda row: {},
    "the origin is ''": lambda row: made(row, origin=""),
    "has no messages": lambda row: made(row, []),
    "message 0 has no role": lambda row: made(row, [{"content": "a"}]),
    "content must be a text": lambda row: made(row, [{"role": "user", "content": 4}]),
    "it ends on a user turn": lambda row: made(row, TALK[:1]),
    "changed in place": popped,
    "not the same a second time": lambda row: made(row, [{"role": "assistant", "content": ANY()}]),
    "must be a RowError, not KeyError: 'user'": lambda row: made(row, [*TALK, {**TALK[1], "name": row.data["user"]}]),
    "neither refused nor right: message 0: content": lambda row: made(
        row, [{"role": "user", "content": row.data.get("user")}, TALK[1]]
    ),
    "has no reason": refused,
    "train must be true or false": lambda row: made(row, [{**TALK[1], "train": 1}]),
    "plain content must be a text": lambda row: made(row, [{"role": "text", "content": []}], plain=True),
    "a role and a content only": lambda row: made(row, [{**TALK[1], "train": True}], plain=True),
}


@pytest.mark.parametrize("reason", FORMATTERS)
def test_a_formatter_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_formatter(Fake(format=FORMATTERS[reason]), [{"user": "2+2?"}])
    assert reason in str(caught.value)


FLAGS = itertools.count()
MASKERS = {
    "flags for": lambda spans: [],
    "flags must be bools": lambda spans: [1] * len(spans),
    "not the same a second time": lambda spans: [next(FLAGS) % 2 == 0 and span.generated for span in spans],
    "(message -1, template) is trained": lambda spans: [True] * len(spans),
    "user) is trained, but the model never emits it": lambda spans: [span.role == "user" for span in spans],
    "nothing is trained in any": lambda spans: [False] * len(spans),
    "choose() depends on positions": lambda spans: [span.generated and span.end < 300 for span in spans],
}
NARROW = {
    "apart from one another": lambda text: [(0, len(text)), (0, 1)],
    "inside the text": lambda text: [(0, len(text) + 1)],
    "and others a second time": lambda text: [(0, next(FLAGS) % 2 if text else 0)],
}


@pytest.mark.parametrize("reason", MASKERS)
def test_a_masker_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_masker(Fake(choose=MASKERS[reason]))
    assert reason in str(caught.value)


@pytest.mark.parametrize("reason", NARROW)
def test_a_masker_that_gives_wrong_stretches_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_masker(Fake(choose=lambda spans: [span.generated for span in spans], narrow=NARROW[reason]))
    assert reason in str(caught.value)


def test_a_masker_may_train_other_roles_where_that_is_meant():
    testing.check_masker(Fake(choose=lambda spans: [s.generated or s.role == "tool" for s in spans]), also=["tool"])


def each(change, noting=None):
    """A transform that changes every conversation, and notes what it is told to."""

    def apply(conversations, context):
        for talk in conversations:
            if noting:
                context.note(*noting(talk))
            yield from change(talk)

    return Fake(apply=apply)


def louder(talk):
    messages = [{**message, "content": message["content"] + "!"} for message in talk.messages]
    return [msgspec.structs.replace(talk, messages=messages)]


def in_place(talk):
    talk.messages[0]["content"] += "!"
    return [talk]


TRANSFORMS = {
    "was changed, but noted is: nothing": each(louder),
    "was dropped, but noted is: nothing": each(lambda talk: []),
    "was dropped, but noted is: changed": each(lambda talk: [], lambda talk: (talk.origin, "changed", "why")),
    "was kept as it is, but noted is: changed": each(lambda talk: [talk], lambda talk: (talk.origin, "changed", "why")),
    "changed in place": each(in_place),
    "not the same a second time": each(lambda talk: [msgspec.structs.replace(talk, origin=ANY())]),
    "belongs to none of the conversations": each(lambda talk: [msgspec.structs.replace(talk, origin="new")]),
    "is about none of the conversations": each(lambda talk: [talk], lambda talk: ("new", "changed", "why")),
    "the action is 'lost'": each(lambda talk: [], lambda talk: (talk.origin, "lost", "why")),
    "the note has no reason": each(lambda talk: [], lambda talk: (talk.origin, "dropped", "")),
    "must be a text, not 7": each(lambda talk: [], lambda talk: (talk.origin, "dropped", "why", 7)),
    "was changed, but noted is: filtered": each(louder, lambda talk: (talk.origin, "filtered", "why")),
    "nothing was added to it": each(lambda talk: [talk], lambda talk: (talk.origin, "added", "why")),
    "must yield Conversations, not list": each(lambda talk: [talk.messages]),
}


@pytest.mark.parametrize("reason", TRANSFORMS)
def test_a_transform_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_transform(TRANSFORMS[reason])
    assert reason in str(caught.value)


def test_a_transform_may_add_conversations():
    testing.check_transform(each(lambda talk: [talk, *louder(talk)]))
    testing.check_transform(each(lambda talk: [talk, *louder(talk)], lambda talk: (talk.origin, "added", "louder")))
    testing.check_transform(each(louder, lambda talk: (talk.origin, "changed", "louder")))


def appended(work):
    work.prompt.messages.append({"role": "user", "content": "?"})
    return sftrun.Grade(1, "good")


JUDGES = {
    "must return a Grade, not float": lambda work: 0.5,
    "must be from 0 to 1, not 2": lambda work: sftrun.Grade(2, "good"),
    "must be from 0 to 1, not nan": lambda work: sftrun.Grade(float("nan"), "good"),
    "there must be a reason": lambda work: sftrun.Grade(1, ""),
    "not the same grade a second time": lambda work: sftrun.Grade(1, ANY()),
    "the prompt was changed in place": appended,
}


@pytest.mark.parametrize("reason", JUDGES)
def test_a_judge_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_judge(Fake(grade=JUDGES[reason]))
    assert reason in str(caught.value)


def scored(metrics, samples=()):
    return lambda work: sftrun.Scores(metrics, list(samples))


def answer(work):
    """Returns what the model of a check always answers."""
    return work.model.decode(work.model.generate([[1]], sftrun.types.Decoding(max_new_tokens=9))[0])


def only_if_answered(work):
    asked = [prompt for each in work.prompts.values() for prompt in each if answer(work)]
    samples = [{"origin": prompt.origin, "messages": [], "reference": "", "answer": ""} for prompt in asked]
    return sftrun.Scores({"share": sftrun.Measure(1.0)}, samples)


def measured(value, **declared):
    return sftrun.Scores({"share": sftrun.Measure(value, **declared)})


def untyped(work):
    work.emit({"event": "custom"})


EVALUATORS = {
    "must return Scores, not dict": lambda work: {},
    "there is no metric": scored({}),
    "share must be finite, not nan": scored({"share": float("nan")}),
    "share must be a number, not '1'": scored({"share": "1"}),
    "share has no direction": scored({"share": 1.0}),
    "share is 3.0, outside its range 0.0 to 1.0": scored({"share": sftrun.Measure(3.0)}),
    "a sample lacks answer, messages, reference": scored({"share": sftrun.Measure(1.0)}, [{"origin": "a:1"}]),
    "not the same a second time": lambda work: measured(float(ANY()), range=(0, None)),
    "the names of the metrics depend on the model": lambda work: sftrun.Scores({answer(work): sftrun.Measure(1.0)}),
    "the range of share depends on the model": lambda work: measured(1.0, higher_is_better=work.which == "base"),
    "must be of the same prompts": only_if_answered,
    "an event must be one of sftrun.events": untyped,
    "without prompts: must be a UserError, not KeyError": lambda work: measured(
        float(len(work.prompts["test"])), range=(0, None)
    ),
}


@pytest.mark.parametrize("reason", EVALUATORS)
def test_an_evaluator_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_evaluator(Fake(score=EVALUATORS[reason]))
    assert reason in str(caught.value)


def test_an_evaluator_may_ask_for_log_likelihoods():
    def score(work):
        pairs = [(prompt.ids, work.model.encode(prompt.reference)) for prompt in work.prompts.get("test", [])]
        found = work.model.loglikelihood([pair for pair in pairs if pair[1]])
        return measured(sum(each.sum for each in found), range=(None, 0), per_row=False)

    testing.check_evaluator(Fake(score=score))


METRICS_BUILT_IN = ["exact_match", "token_f1", "bleu", "rouge_1", "rouge_2", "rouge_l"]


@pytest.mark.parametrize("use", METRICS_BUILT_IN)
def test_metrics_keep_their_promises(use):
    metric = create("metric", use)
    if list(getattr(metric, "check_machine", lambda recipe: ())(None)):
        pytest.skip("its package is not installed here")
    testing.check_metric(metric)


def each_row(value):
    """A metric's method that scores row by row."""
    return lambda work: [value(*pair) for pair in zip(work.answers, work.references, strict=True)]


def missing_letters(answer, reference):
    return float(len(set(reference) - set(answer)))


def test_a_metric_may_be_an_error_without_an_upper_end_or_of_the_whole_corpus():
    testing.check_metric(Fake(measure=each_row(missing_letters), higher_is_better=False, range=(0, None)))
    share = Fake(measure=lambda work: len(set(work.answers) & set(work.references)) / len(set(work.references)))
    testing.check_metric(Fake(**vars(share), per_row=False))


def equal(answer, reference):
    return float(answer == reference)


METRICS = {
    "higher_is_better must be True or False, not 'yes'": Fake(measure=each_row(equal), higher_is_better="yes"),
    "range must be (lowest, highest)": Fake(measure=each_row(equal), range=1.0),
    "range must begin with its lowest value": Fake(measure=each_row(equal), range=(1.0, 0.0)),
    "but the best value is 1.0": Fake(measure=each_row(lambda *_: 0.5)),
    "and wrong ones 0.0, but lower is better": Fake(measure=each_row(equal), higher_is_better=False, range=(None, 1)),
    "outside its range 0.0 to 1.0": Fake(measure=each_row(lambda *_: 100.0)),
    "must return 4 values, one per answer": Fake(measure=lambda work: 1.0),
    "must return one number, not [": Fake(measure=each_row(equal), per_row=False),
    "must return numbers, not 'right'": Fake(measure=each_row(lambda *_: "right")),
    "a value must be finite, not nan": Fake(measure=each_row(lambda *_: float("nan"))),
    "ZeroDivisionError: float division by zero": Fake(
        measure=each_row(lambda answer, _: equal(answer, _) * len(answer) / len(answer))
    ),
    "not the same a second time": Fake(measure=each_row(lambda *_: -float(ANY())), range=(None, None)),
    "depend on the order of the rows": Fake(
        measure=lambda work: [each + (work.answers[0] == "") for each in each_row(equal)(work)], range=(0, None)
    ),
}


@pytest.mark.parametrize("reason", METRICS)
def test_a_metric_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_metric(METRICS[reason])
    assert reason in str(caught.value)


def test_the_tracker_tensorboard_keeps_its_promises():
    testing.check_tracker(create("tracker", "tensorboard"))


class Tracker:
    """A tracker that writes a line per event."""

    def start(self, work):
        assert not hasattr(self, "run"), "started twice"
        self.run = work.run
        self.resumed = work.resumed

    def track(self, event):
        with (self.run.path / "tracker.txt").open("a") as file:
            file.write(type(event).__name__ + "\n")

    def finish(self, status):
        pass


class OnlyNew(Tracker):
    def start(self, work):
        super().start(work)
        if work.resumed:
            raise ValueError("no")


class OnlySteps(Tracker):
    def track(self, event):
        return event.step


class Needy(Tracker):
    def track(self, event):
        return float(event.loss) if hasattr(event, "loss") else 0


class Closing(Tracker):
    def finish(self, status):
        self.run.log.touch()


class Elsewhere(Tracker):
    def track(self, event):
        with open("tracker.txt", "w") as file:
            file.write("")


class Meddling(Tracker):
    def finish(self, status):
        if hasattr(self, "run"):
            self.run.write_json("state.json", {})


class Fussy(Tracker):
    def finish(self, status):
        if status == "interrupted":
            raise ValueError("no")


TRACKERS = {
    "start() of a resumed run must not fail": OnlyNew,
    "track() of StageChanged(": OnlySteps,
    "track() of Step(step=3, loss=None": Needy,
    "finish() without start() must not fail": Closing,
    "wrote tracker.txt into the current folder": Elsewhere,
    "the tracker changed state.json of the run": Meddling,
    "finish('interrupted') must not fail": Fussy,
}


def test_a_tracker_that_writes_into_the_run_passes():
    testing.check_tracker(Tracker())


@pytest.mark.parametrize("reason", TRACKERS)
def test_a_tracker_that_breaks_a_promise_fails(reason):
    with pytest.raises(AssertionError) as caught:
        testing.check_tracker(TRACKERS[reason]())
    assert reason in str(caught.value)


@pytest.fixture
def finished(tmp_path):
    """A run that has trained, as an exporter that only copies sees it."""
    recipe = Recipe(model=ModelOptions(name="sftrun/tiny"), source=sftrun.Use(use="jsonl", with_={"path": "."}))
    run = sftrun.RunDir(tmp_path / "run")
    run.model.mkdir(parents=True)
    run.write_recipe(recipe)
    (run.model / "weights").write_bytes(b"1" * (1 << 18))
    return run


def copied(work, folder):
    """Copies the weights of a run, and refuses a run without them."""
    if not work.run.model.is_dir():
        raise sftrun.UserError("there is no model")
    (folder / "weights").write_bytes((work.run.model / "weights").read_bytes())
    return {"path": "export/copy"}


def export(work):
    with sftrun.files.atomic_folder(work.run.export / "copy") as making:
        return copied(work, making)


def in_place(work):
    folder = work.run.export / "copy"
    folder.mkdir(parents=True, exist_ok=True)
    return copied(work, folder)


def stamped(work):
    facts = export(work)
    (work.run.export / "copy/stamp").write_text(ANY())
    return facts


def without_refusal(work):
    return export(work) if work.run.model.is_dir() else None


def into_the_model(work):
    (work.run.model / "merged").touch()
    return export(work)


def into_the_current_folder(work):
    with open("copy", "w") as file:
        file.write("")
    return export(work)


EXPORTERS = {
    "must return a dict of facts, not str": lambda work: export(work)["path"],
    "the facts must be JSON": lambda work: {**export(work), "size": object()},
    "the facts must be JSON: Out of range": lambda work: {**export(work), "difference": float("nan")},
    "the same when read back from JSON": lambda work: {**export(work), "shape": (1, 2)},
    "must have the path of what was written": lambda work: {**export(work), "path": None},
    "path must lie below export/": lambda work: {**export(work), "path": "model"},
    "there is nothing at export/other": lambda work: {**export(work), "path": "export/other"},
    "the facts are not the same a second time": lambda work: {**export(work), "time": ANY()},
    "not the same files a second time: copy/stamp": stamped,
    "changed model/merged of the run": into_the_model,
    "an export that failed (a full disk) left copy/weights": in_place,
    "a run without a model must be a UserError": without_refusal,
    "must be a UserError, not FileNotFoundError": lambda work: list(work.run.model.iterdir()) and export(work),
    "wrote copy into the current folder": into_the_current_folder,
}


def test_an_exporter_that_copies_the_model_passes(finished):
    testing.check_exporter(Fake(export=export), finished)
    assert not finished.export.exists()


@pytest.mark.parametrize("reason", EXPORTERS)
def test_an_exporter_that_breaks_a_promise_fails(reason, finished):
    with pytest.raises(AssertionError) as caught:
        testing.check_exporter(Fake(export=EXPORTERS[reason]), finished)
    assert reason in str(caught.value)


PLUGIN = """
import sftrun
SFTRUN_API = 1
class Thing:
    \"\"\"A thing.\"\"\"
    def choose(self, spans): return [span.generated for span in spans]
@sftrun.hookimpl
def register_maskers(register):
    register("thing", Thing)
"""
PLUGINS = {
    "declares no API version; add SFTRUN_API = 1": PLUGIN.replace("SFTRUN_API = 1", ""),
    "registers nothing": "SFTRUN_API = 1",
    "importing {name} imports numpy": "import numpy\n" + PLUGIN,
    "a name is lower-case words": PLUGIN.replace('"thing"', '"Thing One"'),
    "has no description": PLUGIN.replace('"""A thing."""', ""),
    "lacks the method choose": PLUGIN.replace("def choose", "def chose"),
    "did you mean 'narrow'": PLUGIN.replace("\n@sftrun", "\n    def narow(self, text): return []\n@sftrun"),
    "its factory cannot be called": PLUGIN.replace("Thing)", "'sys:path', description='A thing.')"),
}


@pytest.fixture
def plugin(tmp_path, monkeypatch, request):
    """Imports a plugin module with the given source."""
    monkeypatch.syspath_prepend(tmp_path)
    names = itertools.count()

    def load(text):
        name = f"kit_plugin_{next(names)}"
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        request.addfinalizer(lambda: sys.modules.pop(name, None))
        return __import__(name)

    return load


def test_a_whole_plugin_passes(plugin):
    testing.check_plugin(plugin(PLUGIN))


METRIC = """
import sftrun
SFTRUN_API = 1
class Thing:
    \"\"\"A thing.\"\"\"
    def measure(self, work): return [1.0 for _ in work.answers]
@sftrun.hookimpl
def register_metrics(register):
    register("my_thing", Thing)
"""
TRACKER = METRIC.replace("measure(self, work)", "start(self, work)").replace("register_metrics", "register_trackers")


def test_a_metric_may_have_underscores_in_its_name_and_no_other_kind(plugin):
    testing.check_plugin(plugin(METRIC))
    methods = "    def track(self, event): pass\n    def finish(self, status): pass\n@sftrun"
    tracker = plugin(TRACKER.replace("@sftrun", methods))
    with pytest.raises(AssertionError, match=r"the tracker 'my_thing'.*a name is lower-case words with hyphens"):
        testing.check_plugin(tracker)


@pytest.mark.parametrize("reason", PLUGINS)
def test_a_plugin_that_breaks_a_promise_fails(plugin, reason):
    module = plugin(PLUGINS[reason])
    with pytest.raises(AssertionError) as caught:
        testing.check_plugin(module)
    assert reason.format(name=module.__name__) in str(caught.value)


class Inner(msgspec.Struct):
    """Open to unknown keys."""

    x: Annotated[int, sftrun.Meta(description="A number.")] = 0


class Undescribed(sftrun.Options):
    """One option is not described."""

    x: int = 0


class Nested(sftrun.Options):
    """An option whose own options take unknown keys."""

    inner: Annotated[tuple[Inner, ...], sftrun.Meta(description="Some.")] = ()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Inner, "must be a subclass of sftrun.Options"),
        (Undescribed, "Undescribed.x has no description"),
        (Nested, "Nested.inner takes unknown keys"),
    ],
)
def test_options_that_are_not_closed_and_described_fail(options, reason):
    with pytest.raises(AssertionError, match=reason):
        testing.check_options(options)
