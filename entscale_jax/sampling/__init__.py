"""From noise to latents: noise schedules, one function per step rule, and the scan that runs them."""

from .sample import denoise, sample
from .schedule import NoiseSchedule, StepTable

__all__ = ["NoiseSchedule", "StepTable", "denoise", "sample"]
