"""Models of this package, adapted through the same call as everyone's."""

from dataclasses import replace
from typing import Any

from ..attention import EntropyScaledAttention
from ..models import UNet2DConditionModel
from ..pipeline import TextToImage
from .nnx_modules import structural_copy, submodules
from .options import Options
from .report import Adapted, AdaptedLayer, Grids, Report

_KNOWN = ("layers", "leave", "train_tokens", "tokens", "query", "inputs", "torch_numerics")


def adapt_pipeline(pipe: TextToImage, options: Options) -> Adapted:
    """A pipeline that draws by the rule where a call names none."""
    unet, report = _adapt(pipe.unet, options, factor=pipe.info.latent_factor, owner=type(pipe).__name__)
    info = replace(pipe.info, unet=unet.config)
    return Adapted(pipe.with_modules(unet=unet, info=info, rule=options.scaling), report)


def adapt_unet(model: UNet2DConditionModel, options: Options) -> Adapted:
    """A UNet whose layers follow the rule where a call names none."""
    return _adapt(model, options, factor=1, owner=type(model).__name__)


def _adapt(model: UNet2DConditionModel, options: Options, *, factor: int, owner: str) -> Adapted:
    options.refuse(owner, *_KNOWN)
    config = model.config
    grids = Grids(config.levels, factor)
    options.scaling.check_levels(config.levels)
    if options.train_size is not None:
        config = replace(config, sample_size=grids.grid(*options.train_size))
    copy: Any = structural_copy(model)
    copy.config = config
    for layer in copy.attention_layers().values():
        layer.rule, layer.train_tokens = options.scaling, config.train_tokens[layer.level]
    layers = tuple(_layer(path, layer) for path, layer in copy.attention_layers().items())
    height, width = config.train_grid
    left = tuple(path for path in submodules(copy) if path.endswith("/attn2"))
    return Adapted(
        copy,
        Report(owner, options.scaling, layers, left, (height * factor, width * factor), grids.unit, grids.tokens),
    )


def _layer(path: str, layer: EntropyScaledAttention) -> AdaptedLayer:
    return AdaptedLayer(path, layer.level, layer.train_tokens, layer.heads, layer.head_dim)
