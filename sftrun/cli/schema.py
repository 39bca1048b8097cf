"""`sftrun schema`: the JSON Schema of a recipe, for editors."""

import json

import click

from sftrun.recipe.schema import recipe_schema
from sftrun.registry import current


@click.command("schema")
@click.option("--builtin", is_flag=True, help="Leave out the plugins that are installed.")
def command(builtin: bool) -> None:
    """Print the JSON Schema of a recipe on stdout, the options of installed plugins included."""
    print(json.dumps(recipe_schema(current(), only_builtin=builtin), indent=2, ensure_ascii=False))
