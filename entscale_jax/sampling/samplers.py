"""The samplers by name, and which one a model's folder asks for."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import UserError
from .ddim import DDIM
from .dpm_solver import DPMSolver
from .euler import Euler, EulerAncestral
from .pndm import PNDM
from .sampler import Sampler

SAMPLERS: dict[str, type[Sampler]] = {kind.name: kind for kind in (DDIM, PNDM, Euler, EulerAncestral, DPMSolver)}
DIFFUSERS_NAMES = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmsolver++",
}
_OWN = {"pndm": {"skip_prk_steps": True}}
"""What a sampler must have where it was not the folder's own, as the config of another sampler does not say it."""


def read_sampler(raw: Mapping[str, Any]) -> Sampler:
    """The sampler of a scheduler_config.json. Raises UserError for a class or a value that is not implemented."""
    name = _name(raw)
    if name is None:
        kind = raw.get("_class_name")
        raise UserError(f"scheduler {kind} is not implemented: give one of {', '.join(SAMPLERS)} as the sampler")
    return SAMPLERS[name].from_json(raw)


def choose_sampler(raw: Mapping[str, Any], choice: str | Mapping[str, Any] | None) -> Sampler:
    """The folder's sampler, or another one on the same noise schedule.

    Args:
        raw: scheduler_config.json.
        choice: None, a name of SAMPLERS, or a mapping with `name` and fields to change, in the names of diffusers.
    """
    if choice is None:
        return read_sampler(raw)
    changes = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = changes.pop("name", _name(raw))
    if not isinstance(name, str) or name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is none: use {', '.join(SAMPLERS)}")
    kind = SAMPLERS[name]
    known = {field.name for field in fields(kind)}
    for field in changes:
        if field not in known:
            raise UserError(f"sampler {name} has no option {field!r}: it has {', '.join(sorted(known))}")
    return kind.from_json({**raw, **_OWN.get(name, {}), **kind.checked(changes, f"sampler {name}")})


def _name(raw: Mapping[str, Any]) -> str | None:
    # A class of Flax's is taken for PyTorch's of that name, which steps alike where Flax's has no fault of its own.
    kind = raw.get("_class_name")
    return DIFFUSERS_NAMES.get(kind.removeprefix("Flax")) if isinstance(kind, str) else None
