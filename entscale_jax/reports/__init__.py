"""A finished or unfinished run as something to look at. Needs the extra `report`."""

from .calibrated_section import write_calibrated
from .html import write_report
from .picture import write_picture
from .study_section import write_study

__all__ = ["write_calibrated", "write_picture", "write_report", "write_study"]
