"""A finished or unfinished run as something to look at. Needs the extra `report`."""

from .html import write_report
from .picture import write_picture

__all__ = ["write_picture", "write_report"]
