"""Measuring in NNX modules: attention of a class that sows the entropy of what it computes as `nnx.Intermediate`."""

import threading
from collections.abc import Callable
from typing import Any

from flax import nnx

from ..scales import Scaling
from .entropy import MeasuredCall, check_unmasked
from .layers import Reach, call_arguments, call_tokens
from .nnx_classes import LayerPlan, become, plan_of, put
from .report import AdaptedLayer
from .sown import NAME

_CALLS = threading.local()


def measure(
    found: dict[str, Any], layer: AdaptedLayer, scaling: Scaling, reach: Reach, logits: tuple[str, str]
) -> None:
    """Makes the adapted attention at the layer's path, in a copy, measure what these children give."""
    put(_measuring if reach.child else _measuring_its_scale, found[layer.path], LayerPlan(layer, scaling))
    for name, noting in zip(logits, (_noting_query, _noting_key), strict=True):
        become(noting, found[f"{layer.path}/{name}".removeprefix("/")])


def sow(module: Any, entropy: Any) -> None:
    """Adds one call to a module's intermediates."""
    module.sow(nnx.Intermediate, NAME, entropy)


def _measuring(kind: type) -> Callable:
    return _calling(kind, lambda plan, tokens: None)


def _measuring_its_scale(kind: type) -> Callable:
    return _calling(kind, lambda plan, tokens: plan.layer.scale(plan.scaling, tokens))


def _calling(kind: type, scale: Callable[[LayerPlan, int], float | None]) -> Callable:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = plan_of(self)
        hidden, given = call_arguments(kind, args, kwargs)
        check_unmasked(plan.layer, given)
        call = MeasuredCall(plan.layer, hidden, scale(plan, call_tokens(plan.layer.path, kind, args, kwargs)))
        _calls().append(call)
        try:
            out = kind.__call__(self, *args, **kwargs)
        finally:
            _calls().pop()
        call.check()
        sow(self, call.entropy)
        return out

    return __call__


def _noting_query(kind: type) -> Callable:
    return _noting(kind, "query")


def _noting_key(kind: type) -> Callable:
    return _noting(kind, "key")


def _noting(kind: type, role: str) -> Callable:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.__call__(self, *args, **kwargs)
        if _calls():
            _calls()[-1].note(role, out)
        return out

    return __call__


def _calls() -> list[MeasuredCall]:
    return _CALLS.__dict__.setdefault("stack", [])
