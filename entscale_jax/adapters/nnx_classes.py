"""Copies of NNX trees, and modules in them that become of another class, which calls the user's own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from flax import nnx

from ..scales import Scaling
from .report import AdaptedLayer

_PLAN, _ORIGINAL = "entscale_plan", "entscale_original"
Calling = Callable[[type], Callable]
"""From the user's class, the method that stands in place of its own and calls it."""


@dataclass(frozen=True)
class LayerPlan:
    """What an adapted attention knows of itself, as a static attribute, so that equal plans make equal graphs."""

    layer: AdaptedLayer
    scaling: Scaling


def structural_copy(model: nnx.Module) -> Any:
    """The same modules and variables anew around the same arrays, adapted ones as they were before."""
    copy = nnx.clone(model)
    for _, module in nnx.iter_modules(copy):
        while original := vars(type(module)).get(_ORIGINAL):
            object.__setattr__(module, "__class__", original)
        if hasattr(module, _PLAN):
            delattr(module, _PLAN)
    return copy


def submodules(model: nnx.Module) -> dict[str, Any]:
    """Every submodule by its path, `/` between the parts."""
    return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def put(calling: Calling, module: Any, plan: LayerPlan, method: str = "__call__") -> None:
    """Makes a module, in a copy, one of a class whose `method` is `calling` of its own and finds the plan."""
    setattr(module, _PLAN, plan)
    become(calling, module, method)


def become(calling: Calling, module: Any, method: str = "__call__") -> None:
    """Makes a module, in a copy, one of a class whose `method` is `calling` of its own."""
    # Past NNX, which would note the attribute in the graph definition for good.
    object.__setattr__(module, "__class__", _subclass(type(module), calling, method))


def plan_of(module: Any) -> LayerPlan:
    """What a module that was given a plan knows of itself."""
    return getattr(module, _PLAN)


@cache
def _subclass(kind: type, calling: Calling, method: str) -> type:
    """The user's class under its own name with another method. One base alone lets an object change to it."""
    described = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    replaced: Any = calling(kind)
    replaced.__signature__ = inspect.signature(getattr(kind, method))
    return type(kind.__name__, (kind,), {**described, method: replaced, _ORIGINAL: kind})
