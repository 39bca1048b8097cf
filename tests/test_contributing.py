"""CONTRIBUTING.md: its tree of the package is what the modules say of themselves."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
TREE = re.compile(r"(<!-- tree: [^>]*-->\n).*?(<!-- end of tree -->)", re.DOTALL)


def first_line(module: Path) -> str:
    """The first sentence of a module's or a package's docstring."""
    file = module / "__init__.py" if module.is_dir() else module
    doc = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    assert doc, f"{file} has no docstring"
    return doc.split("\n\n")[0].replace("\n", " ")


def modules(folder: Path) -> Iterator[Path]:
    """The public modules of a package, then its sub-packages."""
    files = [each for each in folder.glob("*.py") if not each.name.startswith("_")]
    folders = [each for each in folder.iterdir() if (each / "__init__.py").is_file()]
    yield from (*sorted(files), *sorted(folders))


def tree() -> str:
    """Every module and package of sftrun, two levels deep, with a line each."""
    package = ROOT / "sftrun"
    lines = ["```"]
    for top in modules(package):
        lines.append(f"{top.name + ('/' if top.is_dir() else ''):24}{first_line(top)}")
        lines += [
            f"  {each.name + ('/' if each.is_dir() else ''):22}{first_line(each)}"
            for each in (modules(top) if top.is_dir() else ())
        ]
    return "\n".join([*lines, "```"]) + "\n"


def test_the_tree_is_fresh():
    page = PAGE.read_text("utf-8")
    fresh = TREE.sub(lambda found: f"{found[1]}{tree()}{found[2]}", page)
    if os.environ.get("SFTRUN_UPDATE"):
        PAGE.write_text(fresh, "utf-8")
    assert TREE.search(page), "CONTRIBUTING.md has no place for the tree"
    assert page == fresh or os.environ.get("SFTRUN_UPDATE"), "SFTRUN_UPDATE=1 pytest tests/test_contributing.py"
