"""Models of this package, adapted through the same call as everyone's."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import UserError
from ..models import SD3Transformer2DModel, UNet2DConditionModel
from ..pipeline import TextToImage
from .layers import attention_layers
from .nnx_classes import LayerPlan, put, structural_copy, submodules
from .nnx_entropy import sow
from .options import Options
from .report import Adapted, AdaptedLayer, Grids, Report

_REFUSED = ("layers", "leave", "train_tokens", "tokens", "query", "inputs", "arithmetic", "key")


def adapt_pipeline(pipe: TextToImage, options: Options) -> Adapted:
    """A pipeline that draws by the rule where a call names none."""
    if options.measure_entropy:
        raise UserError("a TextToImage measures by its call: leave it out of adapt, pipe(..., measure_entropy=True)")
    unet, report = _adapt(pipe.unet, options, factor=pipe.info.latent_factor, owner=type(pipe).__name__)
    info = replace(pipe.info, unet=unet.config)
    return Adapted(pipe.with_modules(unet=unet, info=info, rule=options.scaling), report)


def adapt_own(model: UNet2DConditionModel | SD3Transformer2DModel, options: Options) -> Adapted:
    """A UNet or transformer whose layers follow the rule where a call names none."""
    return _adapt(model, options, factor=1, owner=type(model).__name__)


def _adapt(model: Any, options: Options, *, factor: int, owner: str) -> Adapted:
    """`factor` is what sizes have to a cell of the model's input."""
    options.refuse(owner, *_REFUSED)
    config, levels = model.config, getattr(model.config, "levels", 1)
    grids = Grids(levels, factor, "cells" if factor == 1 else "pixels")
    options.scaling.check_levels(levels)
    if options.train_size is not None:
        config = replace(config, sample_size=grids.grid(*options.train_size))
    copy: Any = structural_copy(model)
    copy.config = config
    adapted, tokens = copy.attention_layers(), _tokens(copy, grids)
    height, width = (side * factor for side in config.train_grid)
    for layer in adapted.values():
        layer.rule, layer.train_tokens = options.scaling, tokens(height, width)[layer.level]
    layers = tuple(_layer(path, layer) for path, layer in adapted.items())
    if options.measure_entropy:
        for layer in layers:
            put(_recording, adapted[layer.path], LayerPlan(layer, options.scaling))
    left = tuple(path for path in attention_layers(submodules(copy)) if path not in adapted)
    return Adapted(copy, Report(owner, options.scaling, layers, left, (height, width), grids.unit, tokens))


def _tokens(model: Any, grids: Grids) -> Callable[[int, int], tuple[int, ...]]:
    """From a size to N of each level."""
    if isinstance(model, SD3Transformer2DModel):
        return lambda height, width: (model.config.tokens((height, width)),)
    return grids.tokens


def _recording(kind: type) -> Callable:
    """Attention of this package hands its entropy to `record`; the caller's own, if there is one, gets it too."""
    signature = inspect.signature(kind.__call__)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        theirs = call.arguments.get("record")

        def record(layer: str, entropy: Any, *more: Any) -> None:
            sow(self, entropy)
            if theirs is not None:
                theirs(layer, entropy, *more)

        call.arguments["record"] = record
        return kind.__call__(*call.args, **call.kwargs)

    return __call__


def _layer(path: str, layer: Any) -> AdaptedLayer:
    return AdaptedLayer(path, layer.level, layer.train_tokens, layer.heads, layer.head_dim)
