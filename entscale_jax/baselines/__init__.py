"""What the paper compares the scale rule with, one method a file; `METHODS` gives each its name."""

from .baseline import Baseline
from .multidiffusion import MultiDiffusion, Windows
from .registry import METHODS, Method, read_baseline, read_method
from .resize import Resize
from .upscale import Upscale

__all__ = [
    "METHODS",
    "Baseline",
    "Method",
    "MultiDiffusion",
    "Resize",
    "Upscale",
    "Windows",
    "read_baseline",
    "read_method",
]
