"""The same weights in PyTorch and here, compared. Needs the extra `parity`."""

from .compare import Row, compare
from .table import exit_status, markdown, print_table

__all__ = ["Row", "compare", "exit_status", "markdown", "print_table"]
