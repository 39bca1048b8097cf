"""Stage 1, prepare: turns rows into tokenised samples with masks, and writes the ledger and the mask proof."""

import contextlib
import gc
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sftrun import events
from sftrun.data import stats, store
from sftrun.data.ledger import Ledger, describe_reasons, select_filtered
from sftrun.data.masks.crosscheck import HINTS
from sftrun.data.pipeline import Pipeline, locate_file
from sftrun.data.prompts import PromptWriter
from sftrun.data.proof import Proof, Tally
from sftrun.errors import Place, Problem, UserError
from sftrun.kinds import Emit
from sftrun.options import Use
from sftrun.recipe.model import Recipe
from sftrun.registry import Registry, current, source_files
from sftrun.runs import base, manifest
from sftrun.runs.directory import BEGUN, RunDir
from sftrun.runs.preflight import check_prepared
from sftrun.runs.stage import StageWork

SHOWN = 20  # problems in an error
PACKAGE = Path(__file__).parent.parent
DECISIVE = ("jinja2", "tokenizers", "pyarrow", "msgspec")  # packages that decide what is read, rendered and encoded


def prepare(work: StageWork) -> None:
    """Writes `prepared/`, or copies it from the cache if the same was prepared before.

    Raises UserError if a row is malformed, if too many rows are lost, or if the proof fails.
    """
    recipe, run, emit, registry = base.pin_commit(work.recipe, work.run), work.run, work.emit, current()
    pipeline = Pipeline(recipe, registry)
    for warning in pipeline.warnings:
        emit(events.Warned(message=warning.message))
    parts = key_parts(recipe, pipeline, registry)
    key = store.make_key(parts)
    with store.entry_lock(key, lambda: emit(events.Prepare(waiting=True))):
        entry = store.find_entry(key, lambda file: emit(_warn_of_damage(file)))
        emit(events.Prepare(cached=entry is not None))
        store.copy_entry(entry or _prepare_entry(recipe, pipeline, parts), run.prepared)
    _check_lost(recipe, pipeline, run)
    _report_rows(pipeline, run, emit)
    proof = run.read_json("prepared/proof.json")
    _warn_of_date(recipe, pipeline, proof["date"], emit)
    _warn_of_variables(pipeline, proof["unread_variables"], emit)
    _check_masks(recipe, pipeline, proof["crosscheck"], emit)
    _warn_of_borders(pipeline, proof["borders"], emit)
    _check_expected(recipe, proof)
    model = run.read_json(BEGUN)["model"]
    run.add_facts("prepare", model=model, prepared={"key": key, **parts}, mask=proof["hash"])
    manifest.write(run)


def _warn_of_damage(file: str) -> events.Warned:
    return events.Warned(message=f"{file} in the cache has changed since it was written: the data are prepared again")


def _report_rows(pipeline: Pipeline, run: RunDir, emit: Emit) -> None:
    """Emits how many rows each split has, and a warning with the reasons if rows were lost."""
    for split, stats_of_split in run.read_json("prepared/stats.json").items():
        rows, lost = stats_of_split["rows_in"], stats_of_split["lost"]
        emit(events.Prepared(split=split, rows=rows, left_out={**lost, **select_filtered(stats_of_split["changed"])}))
        if lost:
            first = stats_of_split["first_lost"]
            where = f"first: {pipeline.source.locate(first['origin'])}: {first['detail']}"
            message = f"{split}: {sum(lost.values()):,} of {rows:,} rows are lost ({describe_reasons(lost)})"
            emit(events.Warned(message=f"{message}; {where}; prepared/ledger.jsonl has all"))
        if not stats_of_split["rows"]:
            emit(events.Warned(message=f"{split} has no row: nothing is evaluated on it"))


def check_components(work: StageWork) -> None:
    """Warns of what components say about the prepared data; raises UserError if one cannot work with them.

    It is called before the training, and not hours later, when an evaluator or an exporter would find out.
    """
    for problem in check_prepared(work.recipe, work.run):
        work.emit(events.Warned(message=str(problem)))


def _check_masks(recipe: Recipe, pipeline: Pipeline, crosscheck: dict[str, Any], emit: Emit) -> None:
    """Reports rows whose cross-check differs: as a warning, or with `data.crosscheck: error` as an error."""
    if not crosscheck["differ"]:
        return
    problems = [
        Problem(each["reason"], Place(pipeline.source.locate(each["origin"])), hint=HINTS[each["kind"]])
        for each in crosscheck["disagreements"]
    ]
    compared = crosscheck["generation"] + crosscheck["prefix"]
    message = f"cross-check: {crosscheck['differ']} of {compared} compared rows have another mask"
    if recipe.data.crosscheck == "error":
        raise UserError([Problem(message, path=("data", "crosscheck")), *problems])
    first = problems[0]
    emit(events.Warned(message=f"{message}; first: {first.where}: {first.message}; {first.hint}"))


def _warn_of_date(recipe: Recipe, pipeline: Pipeline, date: str | None, emit: Emit) -> None:
    if date is None:
        return
    then = "expect_mask fails then" if recipe.expect_mask else "so do the ids and the mask"
    message = f"the chat template writes today's date, {date}, into the rows, which differ on another day; {then}"
    emit(events.Warned(message=f"{message}; {pipeline.date_advice}"))


def _warn_of_variables(pipeline: Pipeline, unread: dict[str, str], emit: Emit) -> None:
    for name, origin in unread.items():
        message = f"the chat template does not read the variable {name}, which has no effect"
        emit(events.Warned(message=f"{message}; first: {pipeline.source.locate(origin)}"))


def _warn_of_borders(pipeline: Pipeline, borders: dict[str, Any], emit: Emit) -> None:
    """Reports rows that lose a token at a border, with the first of each split."""
    for split, found in borders.items():
        where = pipeline.source.locate(found["origin"])
        message = f"{split}: {found['rows']} rows lose the token at the border of a trained text"
        emit(events.Warned(message=f"{message}; first: {where}: {found['reason']}; {found['hint']}"))


def _check_expected(recipe: Recipe, proof: dict[str, Any]) -> None:
    found, date = proof["hash"], proof["date"]
    if recipe.expect_mask not in (None, found):
        changed = "rows, template, tokenizer or masker have changed"
        if date is not None:
            changed = f"the chat template writes the date, {date} today, so every day has another mask; or {changed}"
        message = f"the mask is {found}, not the expected one: {changed}"
        hint = "check the mask with sftrun inspect; if it is right, write that hash"
        raise UserError(Problem(message, path=("expect_mask",), hint=hint))


def key_parts(recipe: Recipe, pipeline: Pipeline, registry: Registry) -> dict[str, Any]:
    """Returns the parts of the cache key: everything that the prepared samples depend on."""
    uses = {"formatter": [recipe.formatter], "masker": [recipe.masker], "transform": recipe.transforms}
    return {
        "code": _hash_code([*(PACKAGE / "data").rglob("*.py"), PACKAGE / "strict_json.py", Path(__file__)]),
        "source": {"use": recipe.source.use, "fingerprint": pipeline.source.fingerprint()},
        "transform_files": _fingerprint_transforms(pipeline),
        "components": [_component(registry, kind, use) for kind, named in uses.items() for use in named],
        "source_code": _component(registry, "source", recipe.source),
        "tokenizer": pipeline.tokenizer.fingerprint,
        "template": pipeline.tokenizer.template.fingerprint,
        "tool_template": pipeline.tokenizer.tool_template.fingerprint,
        "date": _template_date(pipeline),
        "eot_token": recipe.model.eot_token,
        "stop_tokens": sorted(pipeline.tokenizer.template.stop_tokens),
        "split_reasoning": recipe.data.split_reasoning,
        "space_to_answer": recipe.model.space_to_answer,
        "max_seq_len": recipe.model.max_seq_len,
        "packing": recipe.packing.strategy,
        "seed": recipe.seed if recipe.transforms else None,
        "data": [recipe.data.on_bad_row, recipe.data.on_too_long],
        "packages": {name: metadata.version(name) for name in DECISIVE},
    }


def _fingerprint_transforms(pipeline: Pipeline) -> list[str]:
    return [each.fingerprint() for each in pipeline.transforms if hasattr(each, "fingerprint")]


def _template_date(pipeline: Pipeline) -> str | None:
    """Returns the day for a template that prints it; None for any other."""
    template = pipeline.tokenizer.template
    sources = (template.source, pipeline.tokenizer.tool_template.source)
    return template.now.date().isoformat() if any("strftime_now" in source for source in sources) else None


def _component(registry: Registry, kind: str, use: Use) -> dict[str, Any]:
    item = registry.get(kind, use.use)
    return {
        "kind": kind,
        "use": use.use,
        "with": use.with_,
        "version": item.version,
        "code": _hash_code(source_files(item)),
    }


def _hash_code(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _prepare_entry(recipe: Recipe, pipeline: Pipeline, parts: dict[str, Any]) -> Path:
    key = store.make_key(parts)
    making = store.begin_entry(key)
    try:
        with _frozen_garbage():
            _prepare_splits(recipe, pipeline, making)
        _check_unchanged(pipeline, parts)
    except BaseException:
        shutil.rmtree(making)
        raise
    return store.publish_entry(making, key)


def _check_unchanged(pipeline: Pipeline, parts: dict[str, Any]) -> None:
    """Raises UserError if a file of the rows was written while it was read: nobody knows which rows were read."""
    source = pipeline.source.fingerprint() != parts["source"]["fingerprint"]
    if source or _fingerprint_transforms(pipeline) != parts["transform_files"]:
        key = "source" if source else "transforms"
        hint = "run it again when no other program writes to them"
        raise UserError(Problem(f"files of the {key} changed while they were read", path=(key,), hint=hint))


@contextlib.contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Excludes existing objects from garbage collection inside the block: almost all of them live on."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _prepare_splits(recipe: Recipe, pipeline: Pipeline, making: Path) -> None:
    proof = Proof(pipeline)
    with contextlib.closing(Ledger(making / "ledger.jsonl")) as ledger:
        pipeline.add = ledger.add
        for split in pipeline.source.splits():
            _prepare_split(pipeline, split, making, proof)
    found = {
        split: stats.compute_stats(tally, split, pipeline.rows_in[split], ledger.counts)
        for split, tally in proof.splits.items()
    }
    unfit = proof.find_problems(ledger.counts)
    if unfit:
        unfit = [*_find_lost(recipe, pipeline, found), *unfit]
    if problems := _shorten(pipeline.problems) or unfit:
        raise UserError(problems)
    if recipe.packing.strategy != "none":
        found["train"]["packing"] = _pack(recipe, proof.splits["train"], making)
    _write_json(making / "data.json", {"files": _list_data(pipeline)})
    _write_json(making / "proof.json", proof.to_json())
    _write_json(making / "stats.json", found)


def _list_data(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Returns the files that the rows came from, with size, hash and rows by split; other places without a hash."""
    listed = []
    for name, rows in sorted(pipeline.rows_by_file.items()):
        file = locate_file(pipeline.source, name)
        listed.append({"name": name, **(manifest.describe_file(file) if file else {}), "rows": dict(rows)})
    return listed


def _prepare_split(pipeline: Pipeline, split: str, making: Path, proof: Proof) -> None:
    writer = store.Writer(making / f"{split}.arrow")
    prompts = PromptWriter(pipeline, making / f"prompts-{split}.jsonl") if split != "train" else None
    for batch in pipeline.make_batches(split):
        writer.add(batch.ids, batch.trained, batch.lengths, batch.origins)
        proof.add(split, batch)
        if prompts:
            prompts.add(batch)
    proof.set_hash(split, writer.close())
    if not writer.rows:
        (making / f"{split}.arrow").unlink()
    if prompts:
        prompts.close()


def _pack(recipe: Recipe, tally: Tally, making: Path) -> dict[str, Any]:
    from sftrun.data import pack

    lengths, capacity = np.concatenate(tally.sizes), recipe.model.max_seq_len
    packs = pack.best_fit(lengths, capacity)
    pack.write_packs(making / "train.packs.arrow", packs)
    count = len(packs.starts) - 1
    return {"sequences": count, "fill": round(int(lengths.sum()) / (count * capacity), 4)}


def _shorten(problems: list[Problem]) -> list[Problem]:
    problems = list(dict.fromkeys(problems))  # a source may give a row more than once
    if len(problems) <= SHOWN:
        return problems
    rest = Problem(f"{len(problems) - SHOWN} more rows like these", hint="data.on_bad_row: skip leaves them out")
    return [*problems[:SHOWN], rest]


def _check_lost(recipe: Recipe, pipeline: Pipeline, run: RunDir) -> None:
    """Raises UserError if more rows are lost than `data.max_lost` allows; what was prepared stays in the cache."""
    problems = list(_find_lost(recipe, pipeline, run.read_json("prepared/stats.json")))
    if problems:
        raise UserError(problems)


def _find_lost(recipe: Recipe, pipeline: Pipeline, found: dict[str, Any]) -> Iterator[Problem]:
    for split, each in found.items():
        lost, rows = sum(each["lost"].values()), each["rows_in"]
        if lost > recipe.data.max_lost * rows:
            limit = f"more than data.max_lost={recipe.data.max_lost:g} ({describe_reasons(each['lost'])})"
            example = each["first_lost"]
            first = f"first: {pipeline.source.locate(example['origin'])}: {example['detail']}"
            hint = f"{first}; fix the rows, or raise model.max_seq_len or data.max_lost"
            yield Problem(f"{split}: {lost} of {rows} rows are lost, {limit}", path=("data", "max_lost"), hint=hint)


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
