"""The steps that measure in linen modules: what an attention computes is sown where `intermediates` is mutable."""

from collections.abc import Callable
from typing import Any

import jax

from ..scales import Scaling
from .entropy import MeasuredCall, check_unmasked
from .layers import Reach, call_arguments, call_tokens
from .options import Options
from .report import AdaptedLayer
from .sown import NAME

Measured = tuple[AdaptedLayer, bool, tuple[str, str]]
"""A layer, whether its call takes `scale`, and the children whose outputs are its queries and keys."""


class Measurer:
    """Sows the entropy of each measured layer, of queries that the adapted model has multiplied already."""

    def __init__(self, scaling: Scaling, layers: tuple[Measured, ...]):
        self.scaling, self.layers = scaling, {measured[0].path: measured for measured in layers}
        self.children: dict[str, tuple[MeasuredCall, str]] = {}
        """While a layer is computed: the path of a child -> the call, and whether it gives queries or keys."""

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The submodule's own output."""
        if path in self.layers and sows(module):
            return self._attend(path, module, proceed, args, kwargs)
        out = proceed(*args, **kwargs)
        call, role = self.children.get(path, (None, ""))
        if call is not None and call.note(role, out):
            # Here, not after the layer: the arrays may be of a program inside it.
            sow(module.parent, call.entropy)
        return out

    def _attend(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        layer, takes_scale, names = self.layers[path]
        hidden, given = call_arguments(type(module), args, kwargs)
        check_unmasked(layer, given)
        tokens = call_tokens(path, type(module), args, kwargs)
        call = MeasuredCall(layer, hidden, layer.scale(self.scaling, tokens) if takes_scale else None)
        roles = {f"{path}/{name}".removeprefix("/"): role for name, role in zip(names, ("query", "key"), strict=True)}
        self.children |= {child: (call, role) for child, role in roles.items()}
        out = proceed(*args, **kwargs)
        for child in roles:
            del self.children[child]
        call.check()
        return out


def measurer(
    options: Options,
    layers: tuple[tuple[AdaptedLayer, Reach], ...],
    logits: Callable[[str, Reach], tuple[str, str]] = lambda path, reach: ("to_q", "to_k"),
) -> tuple[tuple[Callable, tuple[Any, ...]], ...]:
    """The step for these layers, as a plan has it: none where the caller did not ask.

    `logits` names the children of an attention that give queries and keys; without it those of `FlaxAttention`.
    """
    if not options.measure_entropy:
        return ()
    measured = tuple((layer, reach.child is None, logits(layer.path, reach)) for layer, reach in layers)
    return ((Measurer, (options.scaling, measured)),)


def sows(module: Any) -> bool:
    """Whether what a module sows in this call goes anywhere."""
    return module.is_mutable_collection("intermediates") and not module.is_initializing()


def sow(module: Any, entropy: jax.Array | None) -> None:
    """Adds one call to a module's intermediates."""
    module.sow("intermediates", NAME, entropy)
