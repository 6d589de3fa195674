"""The rows of a comparison as a table in a terminal and in the documentation."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .compare import Row

_HEADER = ("module", "size", "rule", "error", "bound", "")


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Prints one line a row, the failed ones in red."""
    table = Table(
        title="PyTorch and JAX compared", caption="Controls, whose bound is a lower one, are wrong on purpose."
    )
    for name in _HEADER:
        table.add_column(name, justify="right" if name in ("error", "bound") else "left")
    for row in rows:
        table.add_row(*_cells(row), style=None if row.passed else "red")
    (console or Console()).print(table)


def markdown(rows: Sequence[Row]) -> str:
    """The same as a table of Markdown."""
    lines = [_HEADER, ("---",) * len(_HEADER), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def exit_status(rows: Sequence[Row]) -> int:
    """0 where every row passed, else 1."""
    return 0 if rows and all(row.passed for row in rows) else 1


def _cells(row: Row) -> tuple[str, ...]:
    sign = "≥" if row.control else "≤"
    return (
        row.module,
        row.size,
        row.rule,
        f"{row.error:.1e}",
        f"{sign} {row.bound:.1e}",
        "ok" if row.passed else "FAILED",
    )
