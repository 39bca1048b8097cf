"""Validates a recipe file: reports every problem at once, or returns the typed recipe."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from sftrun.errors import Place, Problem, RecipePath, UserError
from sftrun.options import Use, schema
from sftrun.recipe import adjust, checks, complete
from sftrun.recipe.compose import LINE_BREAK, compose
from sftrun.recipe.diagnose import Diagnosis
from sftrun.recipe.document import Document, Node, Origin
from sftrun.recipe.load import EXTENDS, read_file
from sftrun.recipe.model import Recipe, components, typed_recipe
from sftrun.recipe.overrides import apply_overrides
from sftrun.recipe.resolved import from_resolved, resolved_yaml, written_yaml
from sftrun.recipe.walk import Visit, walk
from sftrun.registry import Registry, current

__all__ = ["Checked", "Loaded", "check_file", "from_resolved", "load", "load_with_places", "resolved_yaml", "validate"]

PathLike = str | os.PathLike[str]
FIELDS = Recipe.__struct_fields__


class Checked(msgspec.Struct, frozen=True):
    """The problems of a recipe file; `recipe` is None if there are errors, `document` if it could not be read."""

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
    """Returns the typed recipe of a file; raises UserError with every error. An override is like `train.epochs=1`."""
    return load_with_places(path, overrides).recipe


def validate(source: PathLike | Recipe, overrides: Sequence[str] = ()) -> list[Problem]:
    """Returns all errors and warnings of a recipe, in the order of their places."""
    return check_file(source, overrides).problems


def load_with_places(source: PathLike | Recipe, overrides: Sequence[str] = ()) -> Loaded:
    """Returns the typed recipe with its document, its warnings and its text; raises UserError with every error.

    `source` may be a Recipe that was built in Python.
    """
    found = check_file(source, overrides)
    if found.recipe is None or found.document is None:
        raise UserError(found.problems)
    if isinstance(source, Recipe):
        name, text = "recipe", written_yaml(source)
    else:
        name, text = str(source), Path(source).read_text("utf-8-sig")
    return Loaded(found.recipe, found.document, found.problems, name, text, tuple(overrides))


def check_file(source: PathLike | Recipe, overrides: Sequence[str] = ()) -> Checked:
    """Reads and validates; never raises for what stands in the recipe."""
    try:
        root, read_problems = _built(source) if isinstance(source, Recipe) else read_file(Path(source))
    except UserError as error:
        return Checked(list(error.problems))
    document, override_problems = apply_overrides(Document(root), overrides, os.environ)
    registry = current()
    document, visits = _visit(document, registry)
    problems = _schema_problems(document, registry, visits, [*read_problems, *override_problems])
    recipe = None
    if not _has_errors(problems):
        recipe, component_problems = _typed(document, registry, visits)
        problems += component_problems
    return Checked(_sorted(problems, document), document, None if _has_errors(problems) else recipe)


def _visit(document: Document, registry: Registry) -> tuple[Document, list[Visit]]:
    """Returns a document with the types of the schema, and a visit of each of its nodes."""
    visits = list(walk(document.root, schema(Recipe), registry))
    converted = adjust.convert_scalars(document, visits)
    if converted is not document:
        visits = list(walk(converted.root, schema(Recipe), registry))
    return converted, visits


def _built(recipe: Recipe) -> tuple[Node, list[Problem]]:
    """Returns a recipe built in Python as if it were read from a file; its relative paths start at the working
    folder.
    """
    text = written_yaml(recipe)
    node, problems = compose(text, Origin("<recipe>", Path.cwd(), LINE_BREAK.split(text)))
    if node is None:
        raise UserError(problems)
    return node, problems


def _has_errors(problems: Iterable[Problem]) -> bool:
    return any(problem.severity == "error" for problem in problems)


def _schema_problems(
    document: Document, registry: Registry, visits: Sequence[Visit], read_problems: list[Problem]
) -> list[Problem]:
    """Returns the problems of reading, of the schemas of the recipe and its components, and of keys that depend."""
    root = schema(Recipe)
    earlier = [*read_problems, *adjust.variable_problems(visits), *adjust.number_problems(visits)]
    named = {visit.path: visit for visit in visits if visit.kind}
    partial = any(problem.path == EXTENDS for problem in read_problems)
    diagnosis = Diagnosis(document, named, registry, partial)
    later = list(diagnosis.problems(document.data, root))
    for visit in named.values():
        later += _option_problems(visit, document, diagnosis, registry)
    later += checks.key_problems(document)
    reported = {problem.where for problem in earlier}  # one problem per value is enough
    return earlier + [problem for problem in later if problem.where not in reported]


def _option_problems(visit: Visit, document: Document, diagnosis: Diagnosis, registry: Registry) -> Iterator[Problem]:
    name = visit.component_name()
    if name is None:
        return
    unknown = registry.unknown(str(visit.kind), name)
    if unknown:
        path = (*visit.path, "use") if visit.node.child("use") else visit.path
        yield msgspec.structs.replace(unknown, where=document.place(path), path=path)
        return
    use = visit.use()
    if use is not None:
        options = registry.get(str(visit.kind), name).schema()
        yield from diagnosis.problems(use.with_, options, (*visit.path, "with"))


def _typed(document: Document, registry: Registry, visits: Sequence[Visit]) -> tuple[Recipe | None, list[Problem]]:
    """Returns the typed recipe, and the problems that its components report."""
    document = adjust.make_paths_absolute(document, visits)
    try:
        recipe = complete.recipe(typed_recipe(document.data), registry)
    except UserError as error:
        return None, [_placed(problem, document, ()) for problem in error.problems]
    problems = []
    asked = [(str(visit.kind), visit.path, _use_at(document, visit)) for visit in visits if visit.kind]
    written = {visit.path[:1] for visit in visits}
    # default components are checked too
    asked += [(kind, (kind,), use) for kind, use in components(recipe) if kind in FIELDS and (kind,) not in written]
    for kind, path, use in asked:
        if use is not None:
            reported = checks.of_component(kind, use, recipe, registry)
            problems += [_placed(problem, document, path) for problem in reported]
    problems += [_placed(problem, document, ()) for problem in checks.of_backend(recipe, registry)]
    return recipe, problems


def _use_at(document: Document, visit: Visit) -> Use | None:
    """Returns the component at a visited path, with the values that a document has there now."""
    node = document.find(visit.path)
    return None if node is None else msgspec.structs.replace(visit, node=node).use()


def _placed(problem: Problem, document: Document, path: RecipePath) -> Problem:
    """Returns a problem with the place of its own path, or else with the place of the component that reports it."""
    if problem.where is not None:
        return problem
    path = path if problem.path is None else problem.path
    return msgspec.structs.replace(problem, where=document.place(path), path=path)


def _sorted(problems: list[Problem], document: Document) -> list[Problem]:
    """Returns problems in the order of their places: the recipe's own file, the files it extends, overrides."""
    rank = {name: index for index, name in enumerate(document.files())}

    def order(problem: Problem) -> tuple[int, int, int]:
        where = problem.where or Place("")
        return rank.get(where.file, len(rank)), where.line or 0, where.column or 0

    unique = {(problem.message, problem.where): problem for problem in problems}
    return sorted(unique.values(), key=order)
