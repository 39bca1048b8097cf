"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click

overrides: Callable[[Any], Any] = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe; may be repeated."
)
