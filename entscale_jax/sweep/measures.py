"""What is measured of a drawn picture besides entropy: its objects, its fit to the caption, features for distances."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import UserError
from .spec import Extractors, Metric

Columns = dict[str, Any]
Features = dict[str, list[float]]
"""What names an extractor (weights and resize) -> the features that it saw."""


class Measures:
    """Holds the networks that look at pictures; each is loaded at its first picture."""

    def __init__(self, metrics: Sequence[Metric], extractors: Extractors | None = None):
        self._metrics = frozenset(metrics)
        self._extractors = extractors or Extractors()

    def columns(self, image: np.ndarray, caption: str) -> Columns:
        """Columns of a row, of a picture uint8[height, width, 3]."""
        columns: Columns = {}
        if Metric.OBJECTS in self._metrics:
            columns |= _objects(image, caption)
        if Metric.SCENES_CLIP in self._metrics:
            (columns["scenes_clip"],) = _short(self._scenes_scorer([image], [caption], batch=1))
            columns["scenes_clip_scorer"] = self._scenes_scorer.identity
        if Metric.CLIP in self._metrics:
            (columns["clip"],) = _short(self._clip_scorer([image], [caption], batch=1))
            columns["clip_scorer"] = self._clip_scorer.identity
        return columns

    def features(self, image: np.ndarray) -> Features:
        """Features of a picture uint8[height, width, 3], for the distances that the sweep asks for."""
        found: Features = {}
        if self._metrics & {Metric.SCENES_FID, Metric.SCENES_KID}:
            found[self._scenes_extractor.identity] = _short(self._scenes_extractor(image[None], batch=1)[0])
        if self._metrics & {Metric.FID, Metric.KID}:
            found[self._inception.identity] = _short(self._inception(image[None], batch=1)[0])
        return found

    @cached_property
    def _scenes_scorer(self) -> Any:
        from ..metrics.scenes_models import ScenesScorer

        return ScenesScorer.load()

    @cached_property
    def _scenes_extractor(self) -> Any:
        from ..metrics.scenes_models import scenes_extractor

        return scenes_extractor()

    @cached_property
    def _clip_scorer(self) -> Any:
        from ..metrics.clip_score import ClipScorer

        return ClipScorer.from_pretrained(_given(self._extractors.clip, "clip"))

    @cached_property
    def _inception(self) -> Any:
        from ..metrics.inception import inception_extractor

        return inception_extractor(_given(self._extractors.inception, "inception"))


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise UserError(f"extractors lacks {name}")
    return value


def _objects(image: np.ndarray, caption: str) -> Columns:
    from ..metrics.objects import compare

    verdict = compare(image, caption)
    return {
        "objects_exact": bool(verdict.exact),
        "objects_missing": int(verdict.missing),
        "objects_extra": int(verdict.extra),
    }


def _short(values: np.ndarray) -> list[float]:
    """The shortest decimals that are the same float32s, so that rows stay small."""
    return [float(str(value)) for value in np.asarray(values, np.float32)]
