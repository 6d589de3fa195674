"""One call for every framework: which adapter takes a model, and what it is told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import linen, nnx

from ..errors import UserError
from ..models import SD3Transformer2DModel, UNet2DConditionModel
from ..pipeline import TextToImage
from ..scales import ScaleRule, Scaling
from ..train_entropy import TrainEntropy
from ..weights.flax_format import Arithmetic
from . import diffusers_flax, linen_modules, maxdiffusion, nnx_modules, own_models
from .options import Chosen, Options, TrainTokens
from .report import Adapted, Tokens

_KNOWN = (
    "diffusers' FlaxUNet2DConditionModel and Flax pipelines, MaxDiffusion's UNet and attention, modules of flax.linen "
    "and flax.nnx, TextToImage and the UNet and SD3 transformer of this package, and PyTorch diffusers' "
    "UNet2DConditionModel and its pipelines"
)


def adapt(
    model: Any,
    *,
    train_size: tuple[int, int] | None = None,
    rule: Scaling | ScaleRule | str | Mapping[str, object] = ScaleRule.ENTROPY,
    train_entropy: TrainEntropy | Mapping[str, float] | str | Path | None = None,
    layers: Chosen | None = None,
    leave: Chosen = (),
    train_tokens: TrainTokens | None = None,
    tokens: Tokens | None = None,
    query: str | None = None,
    inputs: tuple[Any, ...] | None = None,
    arithmetic: Arithmetic | str | None = None,
    measure_entropy: bool = False,
    key: str | None = None,
) -> Adapted:
    """A copy of `model` whose self-attention has the scale of `rule` at every size, and a report of its layers.

    The original is not touched and parameters are shared, not copied. Two adaptations with equal arguments are equal
    to `jit`, two with different ones are not, so a program compiled for one never runs for another.

    Args:
        model: a model or pipeline of diffusers' Flax, MaxDiffusion, PyTorch diffusers or this package, or any module
            of linen or NNX.
        train_size: (height, width) of training, in pixels for a pipeline and in input cells for a bare UNet, where the
            config's `sample_size` does not say it right.
        rule: `entropy`, `original`, `calibrated`, or `{"rule": "fixed", "multiplier": 0.8}`. `original` changes no
            number; in a UNet it mends grids that its levels do not divide.
        train_entropy: for rule `calibrated`, E_T by the paths that the report has: a mapping to nats, or the file of
            `entscale calibrate`, whose paths are those of this package and of PyTorch diffusers. For a TextToImage None
            is what it ships.
        layers: for modules of your own, which attention is self-attention: a predicate of path and module, or paths.
        leave: for modules of your own, which attention stays as it is; what is in neither is an error.
        train_tokens: T for modules of your own: a number, one a path, or a function of the path.
        tokens: for modules of your own, from (height, width) to N of each level, for the report, and for T where only
            `train_size` is given.
        query: for modules of your own, the child of each attention whose output is multiplied, such as `to_q`, or the
            norm behind it; None takes the `scale` argument of the attention where it has one, or else a known name.
        inputs: for linen modules of your own, arrays or shapes of one call, by which layers are found.
        arithmetic: for diffusers' Flax UNet, `torch` computes PyTorch's GELU and epsilon, which differ; None or `flax`
            what the class computes.
        measure_entropy: makes a model of JAX sow the entropy of each layer it adapts, which `report.entropy` reads;
            without it programs are as they were. In PyTorch the function `measure_entropy` does this.
        key: for modules of your own that measure, the child whose output is the keys, as `query` is that of queries.

    Raises UserError where nothing matches, an attention layer is in neither list, a training size can't be derived,
    a kernel's scale can't be reached, or the class is not known.

    Source: Eq. 7 of the paper; only self-attention changes.
    """
    options = Options(
        train_size=train_size,
        scaling=_scaling(model, Scaling.of(rule, train_entropy=train_entropy)),
        layers=layers,
        leave=leave,
        train_tokens=train_tokens,
        tokens=tokens,
        query=query,
        inputs=inputs,
        arithmetic=_arithmetic(arithmetic),
        measure_entropy=measure_entropy,
        key=key,
    )
    adapted = _adapter(model)(model, options)
    if options.scaling.train_entropy is not None:
        report = adapted.report
        options.scaling.train_entropy.check_layers(report.model, [layer.path for layer in report.layers])
    return adapted


def _scaling(model: Any, scaling: Scaling) -> Scaling:
    """The rule, with E_T where it needs them. Raises UserError where there are none."""
    if scaling.rule is not ScaleRule.CALIBRATED or scaling.train_entropy is not None:
        return scaling
    if isinstance(model, TextToImage):
        return model.info.scaling(scaling)
    raise UserError(
        f"rule 'calibrated' needs E_T of each layer of {type(model).__name__}: give train_entropy=, layer -> nats by "
        "the paths that a report has, or the file of `entscale calibrate`"
    )


def _arithmetic(name: Arithmetic | str | None) -> Arithmetic | None:
    try:
        return None if name is None else Arithmetic(name)
    except ValueError:
        raise UserError(f"arithmetic is {name!r}: give one of {', '.join(Arithmetic)}") from None


def _adapter(model: Any) -> Callable[[Any, Options], Adapted]:
    if isinstance(model, type):
        diffusers_flax.check_installed(model)
        raise UserError(f"{model.__name__} is a class: give a model, made or loaded")
    modules = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(model).__mro__}
    if any(package == "diffusers" and name.startswith("Flax") for package, name in modules):
        return diffusers_flax.adapt_flax
    if isinstance(model, TextToImage):
        return own_models.adapt_pipeline
    if isinstance(model, UNet2DConditionModel | SD3Transformer2DModel):
        return own_models.adapt_own
    if maxdiffusion.is_maxdiffusion(model):
        return maxdiffusion.adapt_maxdiffusion
    if isinstance(model, linen.Module):
        return linen_modules.adapt_linen
    if isinstance(model, nnx.Module):
        return nnx_modules.adapt_nnx
    if ("torch", "Module") in modules or ("diffusers", "DiffusionPipeline") in modules:
        from .diffusers_torch import adapt_torch

        return adapt_torch
    raise UserError(f"{type(model).__module__}.{type(model).__name__} is not known: adapt takes {_KNOWN}")
