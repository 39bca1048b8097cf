"""Who imports whom, and that nothing heavy is imported before it is needed."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sftrun"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

# A module imports from its own line and from those above it.
LAYERS = [
    {"errors", "options", "scrub", "types"},
    {"events", "files", "gpus", "hub", "strict_json", "tiny"},
    {"api_changes", "hookspecs", "kinds"},
    {"sftrun"},  # the public face; what is heavy in it is loaded on first use
    {"registry"},
    {"recipe"},
    {"data", "runs"},
    {"launch"},
    {"memory", "report", "training"},
    {"stages"},
    {"flow"},
    {"testing", "tools"},
    {"cli"},
]
# What plugins may import, besides `sftrun.training`; tiny is data: the files of the embedded model.
PUBLIC = {
    "sftrun",
    *(
        f"sftrun.{name}"
        for name in ("data", "errors", "events", "files", "hub", "kinds", "strict_json", "tiny", "types")
    ),
}
HEAVY = {
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "numpy",
    "trl",
    "peft",
    "pyarrow",
    "tokenizers",
    "pandas",
    "accelerate",
}
CODE = "import json, sys; from sftrun.cli.main import run; run(sys.argv[1:]); print(json.dumps(sorted(sys.modules)))"


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that is executed, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from _imports(node)


def _part(module: str) -> str:
    """The part of sftrun that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imported(path: Path) -> set[str]:
    """The modules of sftrun that a file imports."""
    found = set()
    for node in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif node.module == "sftrun":
            here = {name.name for name in node.names}
            found |= {f"sftrun.{name}" if _is_module(name) else "sftrun" for name in here}
        else:
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] == "sftrun"}


def _is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _layer(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_one_way(path):
    name = _name(path)
    if name.startswith("sftrun.builtin") or name == "sftrun.__main__":
        return
    own = _layer(_part(name))
    for module in imported(path) - {"sftrun.builtin"}:
        assert _layer(_part(module)) <= own, f"{name} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "builtin").rglob("*.py")), ids=_name)
def test_builtins_use_the_public_api_alone(path):
    kind = ".".join(_name(path).split(".")[:3])
    for module in imported(path) - PUBLIC:
        assert module.startswith((kind, "sftrun.training")), f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "training").rglob("*.py")), ids=_name)
def test_what_backends_are_built_from_uses_the_public_api_alone(path):
    for module in imported(path) - PUBLIC:
        assert module.startswith("sftrun.training"), f"{_name(path)} imports {module}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if {"builtin", "training"}.isdisjoint(path.parts)], ids=_name
)
def test_only_backends_know_what_they_are_built_from(path):
    assert [module for module in imported(path) if module.startswith("sftrun.training")] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "stages").glob("*.py")), ids=_name)
def test_no_stage_imports_another(path):
    assert [module for module in imported(path) if module.startswith("sftrun.stages")] == []


@pytest.mark.parametrize("path", [path for path in MODULES if "builtin" not in path.parts], ids=_name)
def test_shared_code_knows_no_component_by_name(path):
    branches = re.compile(r"\b(if|elif|case)\b[^\n]*\b(backend|masker|formatter|source)\S*\s*(==|in)\s*[\[({\"']")
    assert branches.findall(path.read_text(encoding="utf-8")) == []


def loaded(*args: str) -> set[str]:
    """The top-level names of all modules that a command line imports."""
    out = subprocess.run(
        [sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    return set(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("args", [["--help"], ["validate", "recipes"], ["plugins"], ["schema"]], ids=" ".join)
def test_nothing_heavy_is_imported(args):
    assert loaded(*args) & HEAVY == set()


def test_help_imports_no_subcommand_and_no_recipe_engine():
    modules = loaded("--help")
    assert {name for name in modules if name.startswith(("sftrun.cli.", "sftrun.recipe"))} == {"sftrun.cli.main"}
    assert modules & {"jsonschema", "ruamel.yaml", "rich", "sftrun.registry"} == set()


def test_text_without_a_terminal_needs_no_rich():
    assert "rich" not in loaded("validate", "tests/recipes/invalid/typo.yaml")


def test_the_public_api_is_light():
    code = (
        "import sys, sftrun; print('jsonschema' in sys.modules, 'ruamel.yaml' in sys.modules, 'click' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False False False\n"


def test_every_public_name_is_there():
    import sftrun

    for name in sftrun.__all__:
        assert getattr(sftrun, name) is not None


def test_the_public_functions_are_not_hidden_by_modules_of_the_same_name():
    import sftrun
    import sftrun.flow

    assert all(callable(getattr(sftrun, name)) for name in ("load", "validate", "run", "create"))
