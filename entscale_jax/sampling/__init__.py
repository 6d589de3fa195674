"""From noise to latents: noise schedules, one sampler a file, and the scan that runs them."""

from .ddim import DDIM
from .dpm_solver import DPMSolver
from .euler import Euler, EulerAncestral
from .pndm import PNDM
from .sample import Advance, Context, Fuse, Measured, State, call_noise, denoise, sample
from .sampler import Latents, Memory, Sampler, Table
from .samplers import SAMPLERS, choose_sampler, read_sampler
from .schedule import NoiseSchedule

__all__ = [
    "DDIM",
    "PNDM",
    "SAMPLERS",
    "Advance",
    "Context",
    "DPMSolver",
    "Euler",
    "EulerAncestral",
    "Fuse",
    "Latents",
    "Measured",
    "Memory",
    "NoiseSchedule",
    "Sampler",
    "State",
    "Table",
    "call_noise",
    "choose_sampler",
    "denoise",
    "read_sampler",
    "sample",
]
