"""The baselines by name, and what stands for a method in a sweep: a scale rule or a baseline."""

from collections.abc import Mapping
from dataclasses import fields

from ..errors import UserError
from ..scales import Scaling
from .baseline import Baseline
from .multidiffusion import MultiDiffusion
from .resize import Resize
from .upscale import Upscale

METHODS: dict[str, type[Baseline]] = {kind.name: kind for kind in (Resize, MultiDiffusion, Upscale)}

Method = Scaling | Baseline


def read_baseline(value: object) -> Baseline:
    """From a name, or `{baseline: NAME, OPTION: ...}`. Raises UserError for an unknown name, option or value."""
    given = dict(value) if isinstance(value, Mapping) else {"baseline": value}
    name = given.pop("baseline", None)
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown baseline {name!r}: use one of {', '.join(METHODS)}")
    known = {field.name: field.default for field in fields(METHODS[name])}
    for option, wanted in given.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"baseline {name} has no option {option!r}: {has}")
        if type(wanted) is not type(known[option]):
            raise UserError(f"{option} is {wanted!r}: give a value such as {known[option]!r}")
    return METHODS[name](**given)


def is_baseline(value: object) -> bool:
    """Whether what a user wrote stands for a baseline rather than for a scale rule."""
    if isinstance(value, Mapping):
        return "baseline" in value
    return isinstance(value, Baseline) or (isinstance(value, str) and value in METHODS)


def read_method(value: object) -> Method:
    """A baseline, or what `Scaling.of` makes of it. Raises UserError for anything else."""
    if isinstance(value, Baseline):
        return value
    return read_baseline(value) if is_baseline(value) else Scaling.of(value)  # pyright: ignore[reportArgumentType]
