"""The terminal of the command line, as rich writes to it."""

import sys
from typing import TYPE_CHECKING

from sftrun import scrub

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Returns a rich console on standard error; every text that comes from outside must be `printable`."""
    from rich.console import Console

    raw = sys.stderr.stream if isinstance(sys.stderr, scrub.Guarded) else sys.stderr
    return Console(file=scrub.Hiding(raw), highlight=False)  # type: ignore[arg-type]
