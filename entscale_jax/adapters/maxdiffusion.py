"""MaxDiffusion's UNets, pipelines and attention, whatever its kernel: queries are multiplied behind every norm of them.

Its classes are known by their names and that of their package, which is not imported. Of its kernels `dot_product`
multiplies logits by the operation's `scale`, or ignores it where attention is memory-efficient; the flash, ring and
Ulysses kernels multiply the keys; `cudnn_flash_te` takes the scale when it is made. All compute `query . key`, so a
multiplied query reaches all of them, and one layer may use several: short sequences fall back to `dot_product`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen, nnx

from ..errors import UserError
from ..scales import Scaling
from .diffusers_flax import adapt_flax, adapt_unet
from .entropy import mean_entropy
from .layers import Reach, attention_layers, described, shown
from .linen_entropy import measurer, sow, sows
from .linen_modules import Plan, adapt_linen, adapted, multiplied, original, trace
from .nnx_classes import LayerPlan, plan_of, put, structural_copy, submodules
from .nnx_entropy import sow as sow_nnx
from .nnx_modules import adapt_nnx, set_scale
from .options import Options, choose
from .report import Adapted, AdaptedLayer, Report

KERNELS = (
    "dot_product",
    "flash",
    "tokamax_flash",
    "tokamax_ring",
    "tokamax_ring_custom",
    "ulysses",
    "ulysses_custom",
    "ulysses_custom_fixed_m",
    "ulysses_ring",
    "ulysses_ring_custom",
    "ulysses_ring_custom_bidir",
    "ulysses_ring_custom_fixed_m",
    "cudnn_flash_te",
)
"""Those of its registry that were read: they take queries as they come, and norm nothing."""
_PACKAGE = "maxdiffusion"
_UNET = "FlaxUNet2DConditionModel"
_ATTENTION, _QUERY = "FlaxAttention", "to_q"
_OPERATION, _NNX_OPERATION = "AttentionOp", "NNXAttentionOp"
_JOINT = ("FlaxFluxAttention", "NNXFluxAttention", "NNXFluxSingleAttention")
"""Over captions and picture as one sequence, where the axes' names don't say that it is self-attention."""
_NO_PICTURE = ("audio_attn1", "context_refiner")
"""Self-attention of sound or captions alone, whose length does not follow the picture's size."""
_OWN_KERNEL = {"ZImageAttention": ("norm_q", "to_q")}
"""Attention that takes short sequences past its operation -> what computes its queries last."""


def is_maxdiffusion(model: Any) -> bool:
    """Whether a model is of MaxDiffusion, or an NNX module that holds its attention operation."""
    if _is(model):
        return True
    return isinstance(model, nnx.Module) and any(_is(module, _NNX_OPERATION) for _, module in nnx.iter_modules(model))


def adapt_maxdiffusion(model: Any, options: Options) -> Adapted:
    """A UNet, a pipeline with one, or a module that holds MaxDiffusion's attention."""
    if isinstance(model, nnx.Module):
        return _adapt_nnx(model, options)
    if isinstance(model, linen.Module) and not _is(model, _UNET):
        return _adapt_linen(model, options)
    unet = getattr(model, "unet", model)
    if not _is(unet, _UNET):
        raise UserError(
            f"{type(model).__name__} is not known: of MaxDiffusion, adapt takes UNets, pipelines with one and "
            "modules; others by their parts, adapt(pipeline.transformer, train_tokens=...)"
        )
    options.refuse(type(model).__name__, "arithmetic")
    _check_kernel(type(unet).__name__, unet)
    return adapt_unet(model, options, factor=1) if unet is model else adapt_flax(model, options)


def _check_kernel(layer: str, module: Any, remedy: str = "") -> None:
    """Raises UserError for a kernel that was not read: of one that norms queries the scale can't be reached."""
    if module.attention_kernel not in KERNELS:
        raise UserError(
            f"the scale of {shown(layer)} can't be reached: its kernel {module.attention_kernel!r} is none of "
            f"{', '.join(KERNELS)}, and may norm queries itself; make the model with one of those{remedy}"
        )


def _adapt_nnx(model: nnx.Module, options: Options) -> Adapted:
    """NNX modules, MaxDiffusion's or the user's, that hold `NNXAttentionOp`."""
    copy = structural_copy(model)
    found = submodules(copy)
    operations = _operations(found, _NNX_OPERATION)
    if not operations:
        return adapt_nnx(model, options)
    name = type(model).__name__
    options.refuse(name, "arithmetic", "inputs", "key")
    if not any(_attends_alone(found, path, operation) for path, operation in operations.items()):
        options.refuse(name, "query")
    layers, left = _layers(name, found, operations, _roles(found, operations), options)
    for layer in layers:
        _set_scale(found, layer, operations[layer.path], options)
    return Adapted(copy, Report(name, options.scaling, layers, left, options.train_size, tokens=options.tokens))


def _set_scale(found: dict[str, Any], layer: AdaptedLayer, operation: str, options: Options) -> None:
    plan = LayerPlan(layer, options.scaling)
    if not _attends_alone(found, layer.path, operation):
        put(_multiplying, found[operation], plan, "apply_attention")
        if options.measure_entropy:
            put(_measuring, found[operation], plan, "apply_attention")
        return
    holder = found[layer.path]
    if options.measure_entropy:
        raise UserError(
            f"the entropy of {shown(layer.path)} can't be measured: {type(holder).__name__} has a kernel of its own, "
            "and what it does to queries and keys before can't be known"
        )
    names = (options.query,) if options.query else _OWN_KERNEL.get(type(holder).__name__, ())
    child = next((name for name in names if f"{layer.path}/{name}".removeprefix("/") in found), None)
    if child is None:
        raise UserError(
            f"the scale of {shown(layer.path)} can't be reached: {type(holder).__name__} has a kernel of its own, "
            f"{holder.attention_kernel!r}, beside its operation's; name what computes its queries last by query="
        )
    set_scale(found, layer, options.scaling, Reach(child))


def _attends_alone(found: Mapping[str, Any], path: str, operation: str) -> bool:
    """Whether an attention chooses a kernel by itself too, and so may never ask its operation."""
    return path != operation and hasattr(found[path], "attention_kernel")


def _multiplying(kind: type) -> Callable:
    """The query multiplied at the kernel's door, where norms and rotations are behind it."""

    def apply_attention(self: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        plan = plan_of(self)
        query = _scaled(plan.layer, plan.scaling, query, key)
        return kind.apply_attention(self, query, key, *args, **kwargs)

    return apply_attention


def _measuring(kind: type) -> Callable:
    def apply_attention(
        self: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        plan = plan_of(self)
        sow_nnx(self, _entropy(self, _scaled(plan.layer, plan.scaling, query, key), key, attention_mask))
        return kind.apply_attention(self, query, key, value, attention_mask, *args, **kwargs)

    return apply_attention


def _entropy(operation: Any, query: Any, key: Any, mask: Any) -> Any:
    """[B N] of what a kernel is given: queries multiplied, [B T D] or [B N T H], and a mask [B S] of keys to read."""
    query, key = (
        array.swapaxes(1, 2) if array.ndim == 4 else array.reshape(*array.shape[:2], operation.heads, -1)
        for array in (query, key)
    )
    own = operation.use_memory_efficient_attention
    scale = query.shape[-1] ** -0.5 if own else float(operation.scale)
    return mean_entropy(query, key, scale=scale, mask=None if mask is None else mask.astype(bool))


def _scaled(layer: AdaptedLayer, scaling: Scaling, query: Any, key: Any) -> Any:
    """A query [B T D] or [B N T H] of one call, multiplied. Raises UserError where keys are not its own."""
    tokens, keys = query.shape[-2], key.shape[-2]
    if tokens != keys:
        raise UserError(
            f"{shown(layer.path)} was given {keys} keys for {tokens} queries: it is cross-attention, whose scale "
            "stays; name it in leave="
        )
    return multiplied(query, layer.multiplier(scaling, tokens))


def _adapt_linen(model: linen.Module, options: Options) -> Adapted:
    """A linen module that holds `AttentionOp`: an attention alone, or a transformer, which is traced on `inputs`."""
    model = original(model)
    name = type(model).__name__
    found, roles = _found(model, options)
    operations = _operations(found, _OPERATION)
    if not operations:
        return adapt_linen(model, options)
    options.refuse(name, "arithmetic", "query", "key")
    layers, left = _layers(name, found, operations, roles, options)
    without = tuple((layer, operations[layer.path]) for layer in layers if not _is(found[layer.path], _ATTENTION))
    with_query = tuple((layer, Reach(_QUERY)) for layer in layers if _is(found[layer.path], _ATTENTION))
    arguments = options.scaling, without, options.measure_entropy
    plan = Plan(options.scaling, with_query, ((_Operations, arguments),), measurer(options, with_query))
    report = Report(name, options.scaling, layers, left, options.train_size, tokens=options.tokens)
    return Adapted(adapted(model, plan), report)


def _found(model: Any, options: Options) -> tuple[dict[str, Any], dict[str, bool]]:
    """Modules by path, those that are used uncalled too, and which attention is self-attention, by how it is called."""
    if _is(model, _OPERATION):
        return {"": model}, {"": True}
    if _is(model, _ATTENTION) or type(model).__name__ in _JOINT:
        return {"": model, "attention_op": model.clone().bind({}).attention_op}, {"": True}
    if options.inputs is None:
        raise UserError(
            f"inputs is missing: the layers of {type(model).__name__} are found by tracing it once; give arrays or "
            "shapes of one call, adapt(model, inputs=(x,), ...)"
        )
    holders: dict[str, Any] = {}
    roles: dict[str, bool] = {}

    def note(path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if _is(module, _ATTENTION):
            roles[path] = (args[1] if len(args) > 1 else kwargs.get("context")) is None
        elif _is(module, _OPERATION):
            holder = path.rpartition("/")[0]
            holders[holder] = module.parent
            if type(module.parent).__name__ in _JOINT:
                roles[holder] = True
        return proceed(*args, **kwargs)

    found = trace(model, *options.inputs, step=note, methods=("__call__", "apply_attention"))
    return holders | found, roles


class _Operations:
    """The step that multiplies the query of planned operations, and measures them if asked."""

    methods = ("apply_attention",)

    def __init__(self, scaling: Scaling, layers: tuple[tuple[AdaptedLayer, str], ...], measure: bool):
        self.scaling, self.measure = scaling, measure
        self.layers = {operation: layer for layer, operation in layers}

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The operation's output of a multiplied query."""
        if path not in self.layers:
            return proceed(*args, **kwargs)
        given = dict(zip(("query", "key", "value", "attention_mask"), args, strict=False)) | kwargs
        query = _scaled(self.layers[path], self.scaling, given["query"], given["key"])
        if self.measure and sows(module):
            sow(module, _entropy(module, query, given["key"], given.get("attention_mask")))
        return proceed(**{**given, "query": query})


def _operations(found: Mapping[str, Any], kind: str) -> dict[str, str]:
    """The path of each attention -> that of its operation; an operation alone is its own."""
    paths = [path for path, module in found.items() if _is(module, kind)]
    return {path.rpartition("/")[0] if path else path: path for path in paths}


def _roles(found: Mapping[str, Any], operations: dict[str, str]) -> dict[str, bool]:
    """Which NNX attention is self-attention of a picture, and which is not, where that is known."""
    roles = {}
    for path, operation in operations.items():
        axes = " ".join(axis or "" for axis in found[operation].axis_names_q)
        if "cross_attn" in axes or set(path.split("/")) & set(_NO_PICTURE):
            roles[path] = False
        elif "self_attn" in axes or type(found[path]).__name__ in _JOINT:
            roles[path] = True
    return roles


def _layers(
    model: str, found: dict[str, Any], operations: dict[str, str], roles: dict[str, bool], options: Options
) -> tuple[tuple[AdaptedLayer, ...], tuple[str, ...]]:
    """The layers to adapt, with the heads that their operation knows, and the paths of those to leave."""
    others = [path for path in attention_layers(found) if path not in (*operations, *operations.values())]
    candidates = {path: found[path] for path in (*operations, *others)}
    left = choose(options.leave, candidates, "leave")
    if options.layers is None:
        chosen = tuple(path for path, role in roles.items() if role and path not in left)
        left += tuple(path for path, role in roles.items() if not role and path not in left)
        for path in chosen:
            _check_kernel(path, found[operations[path]], ", or name the layer in layers= if it does not")
    else:
        chosen = choose(options.layers, candidates, "layers")
    _check_all(model, tuple(candidates), operations, chosen, left)
    layers = described(
        {path: found[operations[path]] for path in chosen}, chosen, options.train_tokens_of(model, chosen)
    )
    options.scaling.check_levels(len({layer.level for layer in layers}))
    return layers, left


def _check_all(
    model: str,
    candidates: tuple[str, ...],
    operations: dict[str, str],
    chosen: tuple[str, ...],
    left: tuple[str, ...],
) -> None:
    if missed := [path for path in candidates if path not in (*chosen, *left)]:
        raise UserError(
            f"attention of {model} can't be told self from cross: {', '.join(map(shown, missed))}; name each in "
            "layers= or in leave="
        )
    if foreign := [path for path in chosen if path not in operations]:
        raise UserError(
            f"{', '.join(map(shown, foreign))} of {model} has no operation of MaxDiffusion: name it in leave=, and "
            "adapt it by itself"
        )
    if not chosen:
        raise UserError(f"nothing matched: {model} has no self-attention, only {', '.join(map(shown, candidates))}")


def _is(module: Any, name: str | None = None) -> bool:
    """Whether a module is of a class of MaxDiffusion, of that name or any."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.split(".")[0] == _PACKAGE]
    return any(name is None or kind.__name__ == name for kind in kinds)
