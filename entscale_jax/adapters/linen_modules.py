"""The scale inside linen modules: a subclass a plan, whose calls multiply the queries of its self-attention.

A linen module is a value, and `jit` compares it with `==`. An adapted one is of another class than the original, one a
`Plan`, so no program that was compiled for one can run for another, and an interceptor is there whenever it is traced.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import jax
from flax import linen
from jaxtyping import Array, Float

from ..attention import accumulator
from ..errors import UserError
from ..scales import Scaling
from .entropy import logits_of
from .layers import Reach, call_tokens, classify, described, reach_of, shown
from .linen_entropy import measurer
from .options import Options
from .report import Adapted, AdaptedLayer, Report

_ACTIVE = threading.local()
_CALL = ("__call__",)
"""What a step is around, unless its attribute `methods` names others."""
_LOCK = threading.Lock()
"""Held while a class is looked up: two threads must not make two of one plan."""


class Step(Protocol):
    """What is done around the call of each submodule."""

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The submodule's output; `proceed` is its own call, and `path` is relative to the adapted module."""


@dataclass(frozen=True)
class Plan:
    """Everything static about an adaptation; equal plans make equal models."""

    scaling: Scaling
    layers: tuple[tuple[AdaptedLayer, Reach], ...]
    mends: tuple[tuple[Callable[..., Step], tuple[Any, ...]], ...] = ()
    """Further steps: what makes them, anew for each call, and its arguments."""
    outer: tuple[tuple[Callable[..., Step], tuple[Any, ...]], ...] = ()
    """Those to which queries come multiplied."""


def adapted(model: linen.Module, plan: Plan) -> Any:
    """A copy of an unbound module that follows the plan; its fields are the original's own."""
    with _LOCK:
        kind = _subclass(type(model), plan)
    copy = object.__new__(kind)
    copy.__dict__.update(model.__dict__)
    return copy


def adapt_linen(model: linen.Module, options: Options) -> Adapted:
    """A module of the user's own, whose layers are found by tracing one call on `inputs`."""
    name = type(model).__name__
    options.refuse(name, "arithmetic")
    if options.inputs is None:
        raise UserError(
            f"inputs is missing: the layers of {name}, a linen module, are found by tracing it once; give arrays or "
            "shapes of one call, adapt(model, inputs=(x,), ...)"
        )
    found = trace(model, *options.inputs)
    chosen, left = classify(name, found, options)
    layers = described(found, chosen, options.train_tokens_of(name, chosen))
    reaches = tuple((layer, reach_of(found, layer.path, options.query)) for layer in layers)
    outer = measurer(options, reaches, lambda path, reach: logits_of(found, path, reach, options.key))
    plan = Plan(options.scaling, reaches, outer=outer)
    report = Report(name, options.scaling, layers, left, options.train_size, tokens=options.tokens)
    return Adapted(adapted(original(model), plan), report)


def original(model: linen.Module) -> Any:
    """What an adapted module was made from; another module itself."""
    kind = type(model)
    if "_entscale_plan" not in vars(kind):
        return model
    copy = object.__new__(kind.__mro__[1])
    copy.__dict__.update(model.__dict__)
    return copy


def trace(
    model: linen.Module, *inputs: Any, step: Step | None = None, methods: tuple[str, ...] = _CALL, **named: Any
) -> dict[str, Any]:
    """Every submodule by its path, `/` between the parts, found by an abstract call that allocates nothing."""
    found: dict[str, Any] = {}

    def note(path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        found.setdefault(path, module)
        return proceed(*args, **kwargs) if step is None else step(path, module, proceed, args, kwargs)

    def call(*inputs: Any, **named: Any) -> Any:
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        with linen.intercept_methods(_interceptor((), note, methods)):
            return model.init(rngs, *inputs, **named)

    jax.eval_shape(call, *inputs, **named)
    return found


def multiplied(query: Float[Array, "*tokens D"], multiplier: float) -> Float[Array, "*tokens D"]:
    """Queries times `lambda sqrt(d)`, in float32 or wider; by 1.0 nothing is done."""
    if multiplier == 1.0:
        return query
    return (query.astype(accumulator(query.dtype)) * multiplier).astype(query.dtype)


class Scaler:
    """The step of one call that multiplies the queries of each planned layer, and knows which it reached."""

    def __init__(self, plan: Plan):
        self.scaling = plan.scaling
        self.layers = {layer.path: (layer, reach) for layer, reach in plan.layers}
        self.queries: dict[str, tuple[str, float]] = {}
        """While a layer is computed: the path of its query projection -> the layer's, and the multiplier."""
        self.reached: set[str] = set()

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Multiplies, or hands on `scale`."""
        if path in self.layers:
            return self._attend(*self.layers[path], module, proceed, args, kwargs)
        if path not in self.queries:
            return proceed(*args, **kwargs)
        layer, multiplier = self.queries[path]
        self.reached.add(layer)
        return multiplied(proceed(*args, **kwargs), multiplier)

    def _attend(
        self, layer: AdaptedLayer, reach: Reach, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        tokens = call_tokens(layer.path, type(module), args, kwargs)
        if reach.child is None:
            self.reached.add(layer.path)
            return proceed(*args, **{**kwargs, "scale": layer.scale(self.scaling, tokens)})
        query = f"{layer.path}/{reach.child}".removeprefix("/")
        self.queries[query] = layer.path, layer.multiplier(self.scaling, tokens)
        out = proceed(*args, **kwargs)
        del self.queries[query]
        return out

    def check(self) -> None:
        """Raises UserError for a layer that was not reached: a program kept from elsewhere would do that in silence."""
        if missed := [path for path in self.layers if path not in self.reached]:
            raise UserError(
                f"the scale of {', '.join(map(shown, missed))} was not reached in this call: the layer was skipped, or "
                "compiled before inside the model (nn.jit); leave it out of layers=, or take nn.jit out"
            )


@cache
def _subclass(kind: type, plan: Plan) -> type:
    """The class under its own name, so that diffusers saves an adapted model as what it is: its weights are equal."""
    methods = {name: _stepping(getattr(kind, name), plan) for name in _methods(kind)}
    described = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    # diffusers registers a config in __init__, which linen would write anew for a subclass that has none.
    return type(kind.__name__, (kind,), {**methods, **described, "__init__": kind.__init__, "_entscale_plan": plan})


def _methods(kind: type) -> list[str]:
    """Public methods of the user's classes, and `__call__`: whatever `apply(method=...)` may name."""
    own = [base for base in kind.__mro__ if issubclass(base, linen.Module) and base is not linen.Module]
    names = {name for base in own for name, value in vars(base).items() if inspect.isfunction(value)}
    return sorted(name for name in names if name == "__call__" or not (name.startswith("_") or name == "setup"))


def _stepping(method: Callable, plan: Plan) -> Callable:
    def call(self: linen.Module, *args: Any, **kwargs: Any) -> Any:
        with _steps(self, plan, whole=method.__name__ == "__call__"):
            return method(self, *args, **kwargs)

    # Not functools.wraps: linen keeps marks in a method's dictionary, which the copy must not have.
    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__
    call.__signature__ = inspect.signature(method)  # pyright: ignore[reportFunctionMemberAccess]
    return call


@contextmanager
def _steps(root: linen.Module, plan: Plan, *, whole: bool) -> Iterator[None]:
    """The plan's steps around the outermost method of `root`; a method that it calls in turn adds none."""
    active = _ACTIVE.__dict__.setdefault("roots", set())
    if root.scope is None or id(root) in active:
        yield
        return
    scaler = Scaler(plan)
    active.add(id(root))
    try:
        with ExitStack() as stack:
            outer, inner = ([make(*arguments) for make, arguments in steps] for steps in (plan.outer, plan.mends))
            for step in (*outer, scaler, *inner):
                methods = getattr(step, "methods", _CALL)
                stack.enter_context(linen.intercept_methods(_interceptor(root.path, step, methods)))
            yield
    finally:
        active.discard(id(root))
    if whole:
        scaler.check()


def _interceptor(root: tuple[str, ...], step: Step, methods: tuple[str, ...]) -> Callable:
    """`step` as linen calls it, for the calls of `methods` below `root`."""

    def intercept(proceed: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        path = context.module.path
        if context.method_name not in methods or path[: len(root)] != root:
            return proceed(*args, **kwargs)
        return step("/".join(path[len(root) :]), context.module, proceed, args, kwargs)

    return intercept
