"""A finished or unfinished run as something to look at. Needs the extra `report`."""

from .html import write_report
from .sheets.sheet import write_sheet
from .studies.calibrated_section import write_calibrated
from .studies.study_section import write_study

__all__ = ["write_calibrated", "write_report", "write_sheet", "write_study"]
