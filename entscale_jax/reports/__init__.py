"""A finished or unfinished run as something to look at. Needs the extra `report`."""

from .calibrated_section import write_calibrated
from .html import write_report
from .sheet import write_sheet
from .study_section import write_study

__all__ = ["write_calibrated", "write_report", "write_sheet", "write_study"]
