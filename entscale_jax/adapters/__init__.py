"""The scale of the paper inside models that others own: `adapt` gives a copy of a model, and says what it found."""

from .adapt import adapt
from .entropy import measure_entropy
from .report import Adapted, AdaptedLayer, Grids, LayerAtSize, Report

__all__ = ["Adapted", "AdaptedLayer", "Grids", "LayerAtSize", "Report", "adapt", "measure_entropy"]
