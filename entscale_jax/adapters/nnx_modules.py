"""The scale inside NNX modules: a copy of the tree in which chosen attention is of a class that sets its own scale.

Class and plan of each layer are part of the graph definition, by which `nnx.jit` and `nnx.split` tell models apart.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flax import nnx

from ..errors import UserError
from ..scales import Scaling
from .entropy import logits_of
from .layers import Reach, call_tokens, classify, described, reach_of, shown
from .linen_modules import multiplied
from .nnx_classes import LayerPlan, become, plan_of, put, structural_copy, submodules
from .nnx_entropy import measure
from .options import Options
from .report import Adapted, AdaptedLayer, Report

_CALLS = threading.local()


def adapt_nnx(model: nnx.Module, options: Options) -> Adapted:
    """A module of the user's own, whose layers the user names."""
    name = type(model).__name__
    options.refuse(name, "arithmetic", "inputs")
    copy = structural_copy(model)
    found = submodules(copy)
    chosen, left = classify(name, found, options)
    layers = described(found, chosen, options.train_tokens_of(name, chosen))
    for layer in layers:
        reach = reach_of(found, layer.path, options.query)
        logits = logits_of(found, layer.path, reach, options.key) if options.measure_entropy else None
        set_scale(found, layer, options.scaling, reach)
        if logits is not None:
            measure(found, layer, options.scaling, reach, logits)
    return Adapted(copy, Report(name, options.scaling, layers, left, options.train_size, tokens=options.tokens))


def set_scale(found: dict[str, Any], layer: AdaptedLayer, scaling: Scaling, reach: Reach) -> None:
    """Makes the attention at the layer's path, in a copy, scale by `scaling`."""
    module, plan = found[layer.path], LayerPlan(layer, scaling)
    if reach.child is None:
        put(_taking_scale, module, plan)
        return
    put(_scaling_queries, module, plan)
    query = found[f"{layer.path}/{reach.child}".removeprefix("/")]
    become(_multiplied, query)


def _taking_scale(kind: type) -> Callable:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan, tokens = _planned(self, kind, args, kwargs)
        return kind.__call__(self, *args, **{**kwargs, "scale": plan.layer.scale(plan.scaling, tokens)})

    return __call__


def _scaling_queries(kind: type) -> Callable:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan, tokens = _planned(self, kind, args, kwargs)
        with _call(plan.layer, plan.layer.multiplier(plan.scaling, tokens)):
            return kind.__call__(self, *args, **kwargs)

    return __call__


def _multiplied(kind: type) -> Callable:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.__call__(self, *args, **kwargs)
        if not _calls():
            raise UserError("adapted queries were computed outside their attention's call: their N is not known there")
        _calls()[-1].reached = True
        return multiplied(out, _calls()[-1].multiplier)

    return __call__


@dataclass
class _Call:
    """One call of an attention that is being traced."""

    multiplier: float
    reached: bool = False


def _calls() -> list[_Call]:
    return _CALLS.__dict__.setdefault("stack", [])


@contextmanager
def _call(layer: AdaptedLayer, multiplier: float) -> Iterator[None]:
    call = _Call(multiplier)
    _calls().append(call)
    try:
        yield
    finally:
        _calls().pop()
    if not call.reached:
        raise UserError(
            f"the scale of {shown(layer.path)} was not reached in this call, which computes no queries by its adapted "
            "child; name the one that it uses by query="
        )


def _planned(module: Any, kind: type, args: tuple, kwargs: dict[str, Any]) -> tuple[LayerPlan, int]:
    plan = plan_of(module)
    return plan, call_tokens(plan.layer.path, kind, args, kwargs)
