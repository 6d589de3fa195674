"""Models of this package, adapted through the same call as everyone's."""

import math
from dataclasses import replace
from typing import Any

from ..models import SD3Transformer2DModel, UNet2DConditionModel
from ..pipeline import TextToImage
from .layers import attention_layers
from .nnx_modules import structural_copy, submodules
from .options import Options
from .report import Adapted, AdaptedLayer, Grids, Report

_KNOWN = ("layers", "leave", "train_tokens", "tokens", "query", "inputs", "arithmetic")


def adapt_pipeline(pipe: TextToImage, options: Options) -> Adapted:
    """A pipeline that draws by the rule where a call names none."""
    unet, report = _adapt(pipe.unet, options, factor=pipe.info.latent_factor, owner=type(pipe).__name__)
    info = replace(pipe.info, unet=unet.config)
    return Adapted(pipe.with_modules(unet=unet, info=info, rule=options.scaling), report)


def adapt_own(model: UNet2DConditionModel | SD3Transformer2DModel, options: Options) -> Adapted:
    """A UNet or transformer whose layers follow the rule where a call names none."""
    return _adapt(model, options, factor=1, owner=type(model).__name__)


def _adapt(model: Any, options: Options, *, factor: int, owner: str) -> Adapted:
    """`factor` is what sizes have to a cell of the model's input."""
    options.refuse(owner, *_KNOWN)
    config, grids = model.config, Grids(model.config.levels, factor, "cells" if factor == 1 else "pixels")
    options.scaling.check_levels(config.levels)
    if options.train_size is not None:
        config = replace(config, sample_size=grids.grid(*options.train_size))
    copy: Any = structural_copy(model)
    copy.config = config
    adapted = copy.attention_layers()
    for layer in adapted.values():
        layer.rule, layer.train_tokens = options.scaling, config.train_tokens[layer.level]
    layers = tuple(_layer(path, layer) for path, layer in adapted.items())
    left = tuple(path for path in attention_layers(submodules(copy)) if path not in adapted)
    height, width = (side * factor for side in config.train_grid)
    return Adapted(
        copy, Report(owner, options.scaling, layers, left, (height, width), grids.unit, _tokens(model, grids))
    )


def _tokens(model: Any, grids: Grids) -> Any:
    """From a size to N of each level."""
    if isinstance(model, SD3Transformer2DModel):
        return lambda height, width: (math.prod(model.config.patches(grids.grid(height, width))),)
    return grids.tokens


def _layer(path: str, layer: Any) -> AdaptedLayer:
    return AdaptedLayer(path, layer.level, layer.train_tokens, layer.heads, layer.head_dim)
