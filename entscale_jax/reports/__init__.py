"""Tables, figures and the HTML report of a sweep."""

from .html import write_report

__all__ = ["write_report"]
