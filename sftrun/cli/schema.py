"""`sftrun schema`: prints the JSON Schema of a recipe, for editors."""

import json

import click

from sftrun.recipe.schema import recipe_schema
from sftrun.registry import current


@click.command("schema")
@click.option("--builtin", is_flag=True, help="Leave out installed plugins.")
def command(builtin: bool) -> None:
    """Print the JSON Schema of a recipe, including the options of installed plugins, on standard output."""
    print(json.dumps(recipe_schema(current(), only_builtin=builtin), indent=2, ensure_ascii=False))
