"""diffusers' Flax UNets and their pipelines, of the last versions that had them, at any grid."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import UserError
from ..weights.flax_format import Arithmetic
from .flax_mends import ATTENTION, ChunkCheck, GridMender, TorchArithmetic
from .layers import Reach, attention_layers, level_of
from .linen_entropy import measurer
from .linen_modules import Plan, adapted, original, trace
from .options import Options
from .report import Adapted, AdaptedLayer, Grids, Report

INSTALL = "pip install 'entscale-jax[legacy]'"
_UNET = "FlaxUNet2DConditionModel"
_PIPELINES = (
    "FlaxStableDiffusionPipeline",
    "FlaxStableDiffusionImg2ImgPipeline",
    "FlaxStableDiffusionInpaintPipeline",
    "FlaxStableDiffusionXLPipeline",
)
_QUERY = "to_q"


def adapt_flax(model: Any, options: Options) -> Adapted:
    """A UNet or a pipeline. The pipeline's copy shares every part but the UNet, and its parameters are the same."""
    name = type(model).__name__
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if _UNET in kinds:
        return adapt_unet(model, options, factor=1)
    if not kinds & set(_PIPELINES):
        raise UserError(f"{name} is not known: of diffusers' Flax, adapt takes {', '.join((_UNET, *_PIPELINES))}")
    if options.measure_entropy:
        raise UserError(f"a {name} hands nothing on that its UNet sows: measure adapt(pipe.unet, measure_entropy=True)")
    unet, report = adapt_unet(model.unet, options, factor=model.vae_scale_factor, owner=name)
    pipeline = copy.copy(model)
    pipeline.unet = unet
    return Adapted(pipeline, report)


def adapt_unet(model: Any, options: Options, *, factor: int, owner: str = _UNET) -> Adapted:
    """A UNet of diffusers' Flax, or one that is built like it. `factor` is what sizes have to a cell."""
    options.refuse(owner, "layers", "leave", "train_tokens", "tokens", "query", "inputs", "key")
    model = original(model)
    grids = Grids(len(model.block_out_channels), factor, "cells" if factor == 1 else "pixels")
    options.scaling.check_levels(grids.levels)
    # Of the config: diffusers' pipelines mend what old folders say there, and not the field.
    config = getattr(model, "config", model)
    train_size = options.train_size or grids.train_size(getattr(config, "sample_size", None), owner)
    train_tokens = grids.tokens(*train_size)
    modules, left = _attention(model, grids.grid(*train_size))
    layers = tuple(_layer(path, module, train_tokens) for path, module in modules.items())
    arithmetic = ((TorchArithmetic, ()),) if options.arithmetic is Arithmetic.TORCH else ()
    mends = ((GridMender, (grids.levels,)), (ChunkCheck, ()), *arithmetic)
    reaches = tuple((layer, Reach(_QUERY)) for layer in layers)
    plan = Plan(options.scaling, reaches, mends, measurer(options, reaches))
    report = Report(owner, options.scaling, layers, left, train_size, grids.unit, grids.tokens)
    return Adapted(adapted(model, plan), report)


def check_installed(kind: type) -> None:
    """Raises UserError for a class that only stands for diffusers' Flax, which is not installed."""
    if kind.__module__.startswith("diffusers") and "dummy" in kind.__module__:
        raise UserError(f"{kind.__name__} is not installed: diffusers had Flax up to 0.39; {INSTALL}")


def _attention(model: Any, grid: tuple[int, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Self-attention of a UNet by path, and the paths of its cross-attention, from an abstract call at `grid`."""
    calls: dict[str, bool] = {}
    mender = GridMender(len(model.block_out_channels))

    def note(path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if type(module).__name__ == ATTENTION:
            context = args[1] if len(args) > 1 else kwargs.get("context")
            calls[path] = context is None
        return mender(path, module, proceed, args, kwargs)

    found = trace(model, *unet_inputs(model, grid), step=note)
    unknown = [path for path in attention_layers(found) if path not in calls]
    if unknown:
        raise UserError(
            f"attention of {type(model).__name__} is of no known class: {', '.join(unknown)}; known is {ATTENTION}"
        )
    selves = {path: found[path] for path, alone in calls.items() if alone}
    if not selves:
        raise UserError(
            f"nothing matched: {type(model).__name__} has no self-attention, only {', '.join(calls) or 'none'}"
        )
    return selves, tuple(path for path, alone in calls.items() if not alone)


def unet_inputs(model: Any, grid: tuple[int, int]) -> tuple[Any, ...]:
    """Shapes of one call at a grid of (h, w) cells."""
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    inputs = shape((1, model.in_channels, *grid)), shape((1,)), shape((1, 1, model.cross_attention_dim))
    if model.addition_embed_type is None:
        return inputs
    times = model.addition_time_embed_dim
    # SDXL's base is told six numbers about sizes, its refiner five, in place of the text's width.
    numbers = 5 if 5 * times + model.cross_attention_dim == model.projection_class_embeddings_input_dim else 6
    text = model.projection_class_embeddings_input_dim - numbers * times
    return *inputs, {"text_embeds": shape((1, text)), "time_ids": shape((1, numbers))}


def _layer(path: str, module: Any, train_tokens: tuple[int, ...]) -> AdaptedLayer:
    level = level_of(path, len(train_tokens))
    return AdaptedLayer(path, level, train_tokens[level], module.heads, module.dim_head)
