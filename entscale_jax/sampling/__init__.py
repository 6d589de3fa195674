"""From noise to latents: noise schedules, one sampler a file, and the scan that runs them."""

from .ddim import DDIM
from .dpm_solver import DPMSolver
from .euler import Euler, EulerAncestral
from .pndm import PNDM
from .sample import Context, Measured, call_noise, denoise, sample
from .sampler import Latents, Sampler, Table
from .samplers import SAMPLERS, choose_sampler, read_sampler
from .schedule import NoiseSchedule

__all__ = [
    "DDIM",
    "PNDM",
    "SAMPLERS",
    "Context",
    "DPMSolver",
    "Euler",
    "EulerAncestral",
    "Latents",
    "Measured",
    "NoiseSchedule",
    "Sampler",
    "Table",
    "call_noise",
    "choose_sampler",
    "denoise",
    "read_sampler",
    "sample",
]
