"""From noise to latents: noise schedules, one function per step rule, and the scan that runs them."""

from .ddim import Latents
from .sample import Context, Measured, denoise, sample
from .schedule import NoiseSchedule, StepTable

__all__ = ["Context", "Latents", "Measured", "NoiseSchedule", "StepTable", "denoise", "sample"]
