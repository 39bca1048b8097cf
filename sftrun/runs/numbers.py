"""Formats numbers, bytes and durations for people."""

import math
from typing import Any

NOTHING = "–"


def format_number(value: Any) -> str:
    """Returns a value for a table: four significant digits, commas between thousands; a dash for None."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return _format_float(value) if isinstance(value, float) else str(value)


def _format_float(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-4 <= abs(value) < 1e7:
        text = f"{value:.3g}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−", 1) if value < 0 else text


def byte_count(count: float) -> str:
    """Returns a number of bytes as `1.5 GB` or `12 MB`, in powers of 1000."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def format_share(part: Any, whole: Any) -> str:
    """Returns a part of a whole in per cent; a dash if either is missing."""
    return f"{100 * part / whole:.1f} %" if part is not None and whole else NOTHING


def format_duration(seconds: float) -> str:
    """Returns seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    if not math.isfinite(seconds):
        return NOTHING
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
