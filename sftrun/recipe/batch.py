"""The rows of an optimizer step are said once; where a recipe says them twice, both have to agree."""


def disagreement(size: int, accum: int, processes: int | None, rows: int) -> tuple[str, str] | None:
    """What is wrong with `effective_batch_size: rows` beside the other numbers, and a hint; None where it fits.

    `processes` is None where only the machine will say how many there are: any number is as good then.
    """
    each = size * accum * (processes or 1)
    if rows == each or (processes is None and rows % each == 0):
        return None
    names, values = "batch_size × grad_accum", f"{size} × {accum}"
    if processes and processes > 1:
        names, values = f"{names} × processes", f"{values} × {processes}"
    message = f"train.effective_batch_size is {rows}, but {names} is {values} = {each}"
    return message, f"write batch_size: auto, which chooses both, or {_split(rows // (processes or 1), size)}"


def _split(rows: int, size: int) -> str:
    """The nearest batch that gives so many rows."""
    fitting = max(each for each in range(1, max(min(size, rows), 1) + 1) if rows % each == 0)
    return f"batch_size: {fitting} and grad_accum: {rows // fitting}"
