"""Everything that is wrong with a recipe, at once; and the typed recipe where nothing is."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from sftrun.errors import Place, Problem, RecipePath, UserError
from sftrun.options import schema
from sftrun.recipe import adjust, checks, complete
from sftrun.recipe import load as files
from sftrun.recipe import overrides as sets
from sftrun.recipe.compose import LINE_BREAK, compose
from sftrun.recipe.diagnose import Diagnosis
from sftrun.recipe.document import Document, Node, Origin
from sftrun.recipe.model import Recipe, components, typed_recipe
from sftrun.recipe.resolved import from_resolved, resolved_yaml
from sftrun.recipe.walk import Visit, walk
from sftrun.registry import Registry, current

__all__ = ["Checked", "Loaded", "check", "from_resolved", "load", "read", "resolved_yaml", "validate"]

PathLike = str | os.PathLike[str]
FIELDS = Recipe.__struct_fields__


class Checked(msgspec.Struct, frozen=True):
    """What was found out about a recipe; without errors there is a typed recipe."""

    problems: list[Problem]
    document: Document | None = None
    recipe: Recipe | None = None


class Loaded(msgspec.Struct, frozen=True):
    """A recipe without errors, the document that it was read from, and warnings.

    `name` is the path that was read (`recipe` for a recipe built in Python), and `text` what stands there.
    """

    recipe: Recipe
    document: Document
    warnings: list[Problem]
    name: str
    text: str
    overrides: tuple[str, ...] = ()


def load(path: PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """The typed recipe; raises UserError with all that is wrong. `overrides` are texts like `train.epochs=1`."""
    return read(path, overrides).recipe


def validate(source: PathLike | Recipe, overrides: Sequence[str] = ()) -> list[Problem]:
    """All errors and warnings of a recipe, in the order of their places."""
    return check(source, overrides).problems


def read(source: PathLike | Recipe, overrides: Sequence[str] = ()) -> Loaded:
    """As `load`, with the document (for places), the warnings, and the text; `source` may be a Recipe built in
    Python.
    """
    found = check(source, overrides)
    if found.recipe is None or found.document is None:
        raise UserError(found.problems)
    if isinstance(source, Recipe):
        name, text = "recipe", resolved_yaml(source)
    else:
        name, text = str(source), Path(source).read_text("utf-8-sig")
    return Loaded(found.recipe, found.document, found.problems, name, text, tuple(overrides))


def check(source: PathLike | Recipe, overrides: Sequence[str] = ()) -> Checked:
    """Reads and validates; never raises for what stands in the recipe."""
    try:
        root, reading = _built(source) if isinstance(source, Recipe) else files.read(Path(source))
    except UserError as error:
        return Checked(list(error.problems))
    document, wrong = sets.applied(Document(root), overrides, os.environ)
    registry = current()
    document = adjust.fitted(document, schema(Recipe), registry)
    problems = _shape(document, registry, [*reading, *wrong])
    recipe = None
    if not _errors(problems):
        recipe, found = _typed(document, registry)
        problems += found
    return Checked(_sorted(problems, document), document, None if _errors(problems) else recipe)


def _built(recipe: Recipe) -> tuple[Node, list[Problem]]:
    """Returns a recipe built in Python as if it were read from a file; its relative paths start at the working
    folder.
    """
    text = resolved_yaml(recipe)
    node, problems = compose(text, Origin("<recipe>", Path.cwd(), LINE_BREAK.split(text)))
    if node is None:
        raise UserError(problems)
    return node, problems


def _errors(problems: Iterable[Problem]) -> bool:
    return any(problem.severity == "error" for problem in problems)


def _shape(document: Document, registry: Registry, reading: list[Problem]) -> list[Problem]:
    """What is wrong with the recipe and its components as the schemas see them, and what schemas cannot see."""
    whole = schema(Recipe)
    first = [*reading, *adjust.env_problems(document, whole, registry)]
    visits = {visit.path: visit for visit in walk(document.root, whole, registry) if visit.kind}
    partial = any(problem.path == files.EXTENDS for problem in reading)
    diagnosis = Diagnosis(document, visits, registry, partial)
    found = list(diagnosis.problems(document.data, whole))
    for visit in visits.values():
        found += _component(visit, document, diagnosis, registry)
    found += checks.of_recipe(document)
    said = {problem.where for problem in first}  # a value that could not be read needs no second complaint
    return first + [problem for problem in found if problem.where not in said]


def _component(visit: Visit, document: Document, diagnosis: Diagnosis, registry: Registry) -> Iterator[Problem]:
    name = visit.named()
    if name is None:
        return
    wrong = registry.unknown(str(visit.kind), name)
    if wrong:
        path = (*visit.path, "use") if visit.node.child("use") else visit.path
        yield msgspec.structs.replace(wrong, where=document.place(path), path=path)
        return
    use = visit.use()
    if use is not None:
        options = registry.get(str(visit.kind), name).schema()
        yield from diagnosis.problems(use.with_, options, (*visit.path, "with"))


def _typed(document: Document, registry: Registry) -> tuple[Recipe | None, list[Problem]]:
    """The typed recipe, and what its components say about it."""
    document = adjust.with_absolute_paths(document, schema(Recipe), registry)
    try:
        recipe = complete.recipe(typed_recipe(document.data), registry)
    except UserError as error:
        return None, [_placed(problem, document, ()) for problem in error.problems]
    found = []
    visits = list(walk(document.root, schema(Recipe), registry))
    asked = [(str(visit.kind), visit.path, visit.use()) for visit in visits]
    written = {visit.path[:1] for visit in visits}
    # those that the recipe leaves to the defaults have a say too
    asked += [(kind, (kind,), use) for kind, use in components(recipe) if kind in FIELDS and (kind,) not in written]
    for kind, path, use in asked:
        if use is not None:
            said = checks.of_component(kind, use, recipe, registry)
            found += [_placed(problem, document, path) for problem in said]
    found += [_placed(problem, document, ()) for problem in checks.of_backend(recipe, registry)]
    return recipe, found


def _placed(problem: Problem, document: Document, path: RecipePath) -> Problem:
    """A problem with the place of its path, or else of the component that it comes from."""
    if problem.where is not None:
        return problem
    path = path if problem.path is None else problem.path
    return msgspec.structs.replace(problem, where=document.place(path), path=path)


def _sorted(problems: list[Problem], document: Document) -> list[Problem]:
    """In the order of their places: the recipe's own file, those it extends, overrides."""
    rank = {name: index for index, name in enumerate(document.files())}

    def order(problem: Problem) -> tuple[int, int, int]:
        where = problem.where or Place("")
        return rank.get(where.file, len(rank)), where.line or 0, where.column or 0

    unique = {(problem.message, problem.where): problem for problem in problems}
    return sorted(unique.values(), key=order)
