"""Where a run is: a folder of this machine or a URI, and the files there."""

from pathlib import Path

from ...errors import UserError
from .cloud_files import CloudFiles
from .files import LocalFiles, PatientFiles

SCHEMES = ("s3", "gs", "gcs")
"""Of the URIs that a run can live at."""


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI and no local folder."""
    return "://" in str(place)


def open_files(place: str | Path) -> PatientFiles:
    """The files at a local folder or a URI; touches neither. Raises UserError for a URI that is none of SCHEMES."""
    if not is_uri(place):
        return PatientFiles(LocalFiles(Path(place)))
    scheme, _, rest = str(place).partition("://")
    if scheme not in SCHEMES:
        raise UserError(f"{place} is no place for a run: give a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    if not all(rest.strip("/").partition("/")[::2]):
        raise UserError(f"{place} names no folder in a bucket: write {scheme}://BUCKET/FOLDER")
    return PatientFiles(CloudFiles(scheme, rest))
