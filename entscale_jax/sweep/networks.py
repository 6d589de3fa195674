"""Looks at the networks that metrics need before anything is drawn, as workers load them at their first picture."""

from ..errors import UserError
from .spec import EXTRACTOR_OF
from .sweep_file import SweepFile


def check_networks(file: SweepFile) -> None:
    """Opens what `extractors` names for the sweep's metrics, without reading weights and without touching a device.

    Raises UserError, with the file and the line of the key, for what a worker would refuse.
    """
    for name in dict.fromkeys(EXTRACTOR_OF[metric] for metric in file.spec.metrics if metric in EXTRACTOR_OF):
        try:
            _open(name, getattr(file.spec.extractors, name))
        except UserError as error:
            raise file.error_at((*file.place, "extractors", name), f"extractors.{name}: {error}") from error


def _open(name: str, place: str) -> None:
    if name == "inception":
        from ..metrics.inception import match_inception

        match_inception(place)
    else:
        from ..metrics.clip_score import open_clip

        open_clip(place)
