"""The modules as plugins."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sftrun import testing, validate

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize("name", ["ticket", "final_answer", "keyword"])
def test_each_module_is_a_whole_plugin(name):
    testing.check_plugin(importlib.import_module(f"sftrun_example.{name}"))


def test_the_recipe_is_valid():
    assert [str(problem) for problem in validate(RECIPES / "support.yaml")] == []


def test_the_tickets_are_what_make_writes():
    subprocess.run([sys.executable, RECIPES / "data" / "tickets" / "make.py", "--check"], check=True)
