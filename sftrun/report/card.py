"""The model card: the README.md of a run directory, in the format of the Hugging Face Hub."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sftrun.options import is_path
from sftrun.recipe.model import Recipe
from sftrun.recipe.train_options import describe_warmup
from sftrun.report import describe, scores
from sftrun.report.facts import Facts
from sftrun.report.markdown import Plain, finalize, literal
from sftrun.runs import history
from sftrun.runs.numbers import format_duration, format_number, format_share
from sftrun.runs.persona import add_persona, find_persona

MOST_FILES = 50  # files of rows that the card lists
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9._-]{1,96})?", re.ASCII)


def card(recipe: Recipe, facts: Facts) -> str:
    """Returns the card as Markdown with YAML front matter."""
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(
            recipe=recipe,
            facts=facts,
            model=describe.model(recipe),
            messages=literal(example_messages(recipe, facts)),
            tiny=describe.is_tiny(recipe),
            base_model=literal(recipe.model.name) if _on_hub(recipe) else None,
            adapter=is_adapter(recipe, facts),
            base=literal(_base(recipe)),
            local=is_path(recipe.model.name),
            settings=settings(recipe, facts),
            metrics=scores.metrics(facts),
            groups=[group for group in scores.groups(facts) if group.right + group.wrong],
            stop=stop_ids(facts),
            made_of=parts(recipe, facts),
            most_files=MOST_FILES,
            versions=versions(facts),
        )
    )


def parts(recipe: Recipe, facts: Facts) -> list[dict[str, Any]]:
    """Returns what the model was made of: recipe, base, files of rows, mask; each with its hash. Empty if unknown."""
    made_of = facts.lock.get("made_of", {})
    base = made_of.get("base") or {}
    listed = [{"name": name, "sha256": digest} for name, digest in made_of.get("recipe", {}).items()]
    listed += [{**each, "name": f"base: {name}"} for name, each in base.get("files", {}).items()]
    if commit := base.get("commit"):
        listed.append({"name": f"base: {recipe.model.name}", "sha256": f"commit {commit}"})
    elif fingerprint := base.get("fingerprint"):
        listed.append({"name": f"base: {recipe.model.name}, seed {base.get('seed')}", "sha256": fingerprint})
    for each in made_of.get("data", [])[:MOST_FILES]:
        rows = ", ".join(f"{format_number(number)} in {split}" for split, number in each["rows"].items())
        listed.append({**each, "rows": rows})
    if made_of.get("mask"):
        listed.append({"name": "mask", "sha256": made_of["mask"]})
    return [{"size": None, "sha256": "", "rows": "", **each} for each in listed]


def versions(facts: Facts) -> str:
    """Returns the versions of sftrun, Python and the packages on one line."""
    found = facts.lock.get("made_of", {}).get("versions", {})
    packages = {"sftrun": found.get("sftrun"), "Python": found.get("python"), **found.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # `finalize` escapes for Markdown instead of HTML
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"number": format_number, "share": format_share, "duration": format_duration}
    environment.filters.update(filters | {"hardware": describe.hardware, "literal": literal})
    return environment


def example_messages(recipe: Recipe, facts: Facts) -> list[dict[str, Any]]:
    """Returns messages to try the model with, with the system prompt of the training, if there is one."""
    return add_persona([{"role": "user", "content": "Hello!"}], find_persona(recipe, facts.stats))


def is_adapter(recipe: Recipe, facts: Facts) -> bool:
    """Returns True if model/ holds an adapter, or would hold one if it does not exist yet."""
    return facts.adapter or (not facts.trained and recipe.tuning.mode != "full")


def stop_ids(facts: Facts) -> Plain:
    """Returns the ids that end an answer, for a Python list; the folder of an adapter does not have them."""
    return Plain(", ".join(map(str, facts.proof.get("stop_ids", ()))))


def settings(recipe: Recipe, facts: Facts) -> list[tuple[str, Any]]:
    """Returns the hyperparameters by name."""
    t, lora = recipe.train, recipe.tuning.lora
    steps = max((event.get("steps") or 0 for event in facts.events if event.get("event") == "step"), default=None)
    rows: list[tuple[str, Any]] = [("tuning", recipe.tuning.mode)]
    if recipe.tuning.mode != "full":
        rows.append(("LoRA", f"r {lora.r}, alpha {format_number(lora.alpha)}, dropout {format_number(lora.dropout)}"))
        modules = lora.target_modules
        rows.append(("adapted modules", modules if isinstance(modules, str) else ", ".join(modules)))
    return [
        *rows,
        ("masker", recipe.masker.use),
        ("backend", recipe.backend.use),
        ("epochs", t.epochs),
        ("steps", steps),
        ("learning rate", _learning_rate(recipe, facts)),
        ("schedule", f"{t.scheduler}, {_warmup(recipe, steps)}"),
        ("rows per optimizer step", _rows_per_step(recipe)),
        ("longest sequence", f"{format_number(recipe.model.max_seq_len)} tokens"),
        ("optimizer", f"{t.optimizer}, weight decay {format_number(t.weight_decay)}"),
        ("precision", t.precision),
        ("seed", recipe.seed),
    ]


def _warmup(recipe: Recipe, steps: int | None) -> str:
    t = recipe.train
    if steps:
        return describe_warmup(t.warmup_steps(steps), steps)
    return f"warm-up {format_number(t.warmup)} {'of all steps' if t.warmup < 1 else 'steps'}"


def _learning_rate(recipe: Recipe, facts: Facts) -> str:
    if recipe.train.learning_rate is not None:
        return format_number(recipe.train.learning_rate)
    # the backend chose the rate: its peak is known from the log alone
    logged = [value for _, value in history.build_history(facts.events).learning_rate]
    return f"the backend's default; peak {format_number(max(logged))}" if logged else "the backend's default"


def _rows_per_step(recipe: Recipe) -> str:
    t = recipe.train
    return f"{t.batch_size} × {t.grad_accum} accumulated" if t.grad_accum > 1 else format_number(t.batch_size)


def _on_hub(recipe: Recipe) -> bool:
    return not describe.is_tiny(recipe) and HUB_ID.fullmatch(recipe.model.name) is not None


def _base(recipe: Recipe) -> str:
    name = recipe.model.name
    return describe.folder(name) if is_path(name) else name
