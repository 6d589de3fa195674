"""The scale inside PyTorch diffusers' UNets, for people who stay there: an attention processor, and a copy that has it.

diffusers' own processors ignore `attn.scale` on PyTorch 2, so the scale is handed to `scaled_dot_product_attention`.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import UserError
from ..scales import ScaleRule, Scaling
from .layers import attention_layers, level_of, shown
from .options import Options
from .report import Adapted, AdaptedLayer, Grids, Report

try:
    import torch
    import torch.nn.functional as F
    from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor, nn
except ImportError as error:
    raise UserError(
        f"adapting PyTorch diffusers needs torch and diffusers ({error}): pip install 'entscale-jax[parity]'"
    ) from None

_UNET = "UNet2DConditionModel"
_FIRST_STAGES = ("vae", "vqvae")
_BLOCK_LOGITS, _BLOCK_ROWS = 2**22, 16
"""So many logits are measured at once, 16 MiB in float32, or so many rows of all heads where those are more."""
_IMAGE_ADAPTER = "encoder_hid_proj/"
"""Whose attention is over the embedding of an image that is given, and not over the picture's tokens."""


class EntropyScaledAttnProcessor:
    """diffusers' processor of self-attention whose scale follows the tokens of each call.

    The scale is a Python float from the shape, so that each size is a program of its own under `torch.compile`, with no
    break in its graph. Otherwise this computes what `AttnProcessor2_0` does, or `FusedAttnProcessor2_0`.
    Source: Eq. 7 of the paper.

    Args:
        train_tokens: T, the tokens of the layer in training.
        rule: as `Scaling.of` takes it.
        level: of the UNet, 0 the finest, for a rule with one multiplier a level.
        path: what to call the layer in a message.
        fused: whether queries, keys and values are those of `to_qkv`, which `fuse_qkv_projections` makes.

    Raises UserError without `train_tokens`, as where diffusers makes every processor anew.
    """

    def __init__(
        self,
        train_tokens: int | None = None,
        *,
        rule: Scaling | ScaleRule | str | Mapping[str, object] = ScaleRule.ENTROPY,
        level: int = 0,
        path: str = "attn1",
        fused: bool = False,
    ):
        if train_tokens is None:
            raise UserError(
                "train_tokens is missing: if diffusers makes its processors anew here, as for an IP-Adapter, load or "
                "unload that in the original model, and adapt it then"
            )
        self.layer, self.scaling = AdaptedLayer(path, level, train_tokens, None, None), Scaling.of(rule)
        self.fused = fused
        self.entropy: list[Tensor] | None = None
        """[B N] of each call, while it is measured."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[B T D] -> [B T D]. Raises UserError for a context, and for an attention with more than projections."""
        if extras := _extras(attn):
            raise UserError(f"{self.layer.path} has {', '.join(extras)}, which this processor does not compute")
        if encoder_hidden_states is not None:
            raise UserError(
                f"{self.layer.path} was given encoder_hidden_states: it is cross-attention, whose scale stays"
            )
        batch, tokens, _ = hidden_states.shape
        query, key, value = (_split(states, attn.heads) for states in self._projected(attn, hidden_states))
        mask = None
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, tokens, batch).view(batch, attn.heads, -1, tokens)
        path = self.layer.path
        scale = self.scaling.scale_at(self.layer.level, int(tokens), self.layer.train_tokens, query.shape[-1], path)
        if self.entropy is not None:
            self.entropy.append(_entropy(query, key, scale, mask))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](mixed))

    def _projected(self, attn: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
        if self.fused:
            return torch.chunk(attn.to_qkv(hidden_states), 3, dim=-1)
        return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


class _Guard:
    """Before each call of an adapted UNet: raises UserError where a layer has lost its processor.

    diffusers sets other processors for fused projections, slicing, xFormers and perturbed attention, after which the
    scale would be gone in silence. It runs under `torch.compile` too, in the same graph.
    """

    def __init__(self, paths: tuple[str, ...]):
        self.paths = paths

    def __call__(self, unet: Any, _: Any) -> None:
        for path in self.paths:
            processor = getattr(unet.get_submodule(path.replace("/", ".")), "processor", None)
            if type(processor) is not EntropyScaledAttnProcessor:
                raise UserError(
                    f"{path} has lost its scale: its processor is now {type(processor).__name__}; leave slicing, "
                    "xFormers and perturbed attention off, fuse projections before adapt, and adapt the model again"
                )


@contextmanager
def measure(model: Any) -> Iterator[dict[str, Tensor]]:
    """What `measure_entropy` does for a model or pipeline of PyTorch."""
    unet = getattr(model, "unet", model)
    if not isinstance(unet, UNet2DConditionModel) or unet._compiled_call_impl is not None:
        raise UserError(f"{type(unet).__name__} can't be measured: give what adapt returned, before torch.compile")
    ours = [each for each in unet.attn_processors.values() if isinstance(each, EntropyScaledAttnProcessor)]
    if not ours or any(each.entropy is not None for each in ours):
        raise UserError(
            f"this {type(unet).__name__} is {'measured already' if ours else 'not adapted: adapt it first'}"
        )
    found: dict[str, Tensor] = {}
    calls = {each.layer.path: [] for each in ours}
    for each in ours:
        each.entropy = calls[each.layer.path]
    try:
        yield found
    finally:
        for each in ours:
            each.entropy = None
    if len({call.shape[0] for each in calls.values() for call in each}) > 1:
        raise UserError("batches of different sizes were measured together: measure each by itself")
    found |= {path: torch.stack(each) for path, each in calls.items() if each}


def _entropy(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """[B N] nats, mean over rows, in float32 or wider, without holding more than a block of rows."""
    batch, heads, tokens, _ = query.shape
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = max(_BLOCK_ROWS, _BLOCK_LOGITS // (batch * heads * key.shape[2]))
    total = torch.zeros(batch, heads, dtype=dtype, device=query.device)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        for block in range(0, tokens, rows):
            part = slice(block, block + rows)
            logits = scale * query[:, :, part].to(dtype) @ key.to(dtype).mT
            if mask is not None and mask.dtype == torch.bool:
                logits = logits.masked_fill(~(mask if mask.shape[2] == 1 else mask[:, :, part]), -torch.inf)
            elif mask is not None:
                logits = logits + (mask if mask.shape[2] == 1 else mask[:, :, part])
            total += torch.special.entr(logits.softmax(-1)).sum((-1, -2))
    return total / tokens


def adapt_torch(model: Any, options: Options) -> Adapted:
    """A UNet, or a pipeline with one. A copy shares every parameter: moving or training one does it to the other."""
    name = type(model).__name__
    if isinstance(model, UNet2DConditionModel):
        return _adapt_unet(model, options, factor=1, owner=name)
    unet = getattr(model, "unet", None)
    if isinstance(model, nn.Module) or not isinstance(unet, UNet2DConditionModel):
        raise UserError(
            f"{name} is not known: of PyTorch diffusers, adapt takes {_UNET} and pipelines with one as `unet`; "
            "one that torch.compile has made is adapted before"
        )
    _check_parts(model)
    adapted, report = _adapt_unet(unet, options, factor=_factor(model), owner=name)
    pipeline = copy.copy(model)
    pipeline.unet = adapted
    # It holds the state of a drawing, so that two pipelines with one could not draw at the same time.
    pipeline.scheduler = copy.deepcopy(model.scheduler)
    return Adapted(pipeline, report)


def _adapt_unet(unet: UNet2DConditionModel, options: Options, *, factor: int, owner: str) -> Adapted:
    options.refuse(owner, "layers", "leave", "train_tokens", "tokens", "query", "inputs", "arithmetic", "key")
    if options.measure_entropy:
        raise UserError("in PyTorch, `with measure_entropy(adapted) as entropy:` measures: leave it out of adapt")
    config: Any = unet.config
    grids = Grids(len(config.block_out_channels), factor, "cells" if factor == 1 else "pixels")
    options.scaling.check_levels(grids.levels)
    train_size = options.train_size or grids.train_size(config.get("sample_size"), owner)
    train_tokens = grids.tokens(*train_size)
    selves, left = _attention(unet)
    layers = tuple(_layer(path, module, train_tokens) for path, module in selves.items())
    adapted = _structural_copy(unet)
    modules = dict(adapted.named_modules())
    for layer in layers:
        attention: Any = modules[layer.path.replace("/", ".")]
        attention.set_processor(_processor(layer, options.scaling, attention.processor))
    adapted.register_forward_pre_hook(_Guard(tuple(layer.path for layer in layers)))
    return Adapted(adapted, Report(owner, options.scaling, layers, left, train_size, grids.unit, grids.tokens))


def _attention(unet: UNet2DConditionModel) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Self-attention by path, and the paths of cross-attention. Raises UserError for any that is neither."""
    found = {name.replace(".", "/"): module for name, module in unet.named_modules()}
    layers = {path: found[path] for path in attention_layers(found)}
    selves = {path: module for path, module in layers.items() if _is_self(path, module)}
    left = tuple(path for path, module in layers.items() if _is_cross(module) or path.startswith(_IMAGE_ADAPTER))
    if unknown := [path for path in layers if path not in selves and path not in left]:
        raise UserError(
            f"attention of {_UNET} is neither plain self- nor cross-attention: {', '.join(unknown)}; such a UNet can't "
            "be adapted"
        )
    if not selves:
        raise UserError(f"nothing matched: {_UNET} has no self-attention, only {', '.join(left) or 'none'}")
    known = (AttnProcessor2_0, FusedAttnProcessor2_0, EntropyScaledAttnProcessor)
    if others := [path for path, module in selves.items() if type(module.processor) not in known]:
        kinds = sorted({type(selves[path].processor).__name__ for path in others})
        raise UserError(
            f"the scale of {', '.join(others)} can't be reached: the processor is {', '.join(kinds)}; call "
            "unet.set_attn_processor(AttnProcessor2_0()) first"
        )
    return selves, left


def _is_self(path: str, module: Any) -> bool:
    """Whether it is the self-attention of a transformer block, with nothing beside projections."""
    cross = getattr(module, "is_cross_attention", True)
    return path.endswith("/attn1") and not cross and not _extras(module)


def _extras(module: Any) -> list[str]:
    """What an attention computes beside projections, by the names of its fields."""
    names = ("group_norm", "spatial_norm", "norm_q", "norm_k", "added_kv_proj_dim", "residual_connection")
    found = [name for name in names if getattr(module, name, None)]
    return found if getattr(module, "rescale_output_factor", 1.0) == 1.0 else [*found, "rescale_output_factor"]


def _is_cross(module: Any) -> bool:
    """Whether keys are of the context alone: with projections added they are of the picture too."""
    return getattr(module, "is_cross_attention", False) and getattr(module, "added_kv_proj_dim", None) is None


def _layer(path: str, module: Any, train_tokens: tuple[int, ...]) -> AdaptedLayer:
    level = level_of(path, len(train_tokens))
    return AdaptedLayer(path, level, train_tokens[level], module.heads, module.inner_dim // module.heads)


def _processor(layer: AdaptedLayer, scaling: Scaling, replaced: Any) -> EntropyScaledAttnProcessor:
    fused = isinstance(replaced, FusedAttnProcessor2_0) or getattr(replaced, "fused", False)
    return EntropyScaledAttnProcessor(layer.train_tokens, rule=scaling, level=layer.level, path=layer.path, fused=fused)


def _structural_copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Modules anew around the same parameters and buffers. Raises UserError where a copy would run the original."""
    if hooked := [name for name, module in unet.named_modules() if hasattr(module, "_hf_hook")]:
        raise UserError(
            f"{_UNET} has hooks of accelerate, for offloading, at {shown(hooked[0])}: adapt before enabling it"
        )
    if replaced := [name for name, module in unet.named_modules() if "forward" in vars(module)]:
        raise UserError(
            f"{_UNET} has another forward at {shown(replaced[0])}, as torch.compile or diffusers' hooks put there, and "
            "a copy would still run the original's: adapt before that"
        )
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    adapted = copy.deepcopy(unet, shared)
    for key in [key for key, hook in adapted._forward_pre_hooks.items() if isinstance(hook, _Guard)]:
        del adapted._forward_pre_hooks[key]
    return adapted


def _check_parts(pipeline: Any) -> None:
    """Raises UserError for a second denoiser in the pipeline, whose self-attention would be missed in silence."""
    parts = {name: part for name, part in pipeline.components.items() if name not in ("unet", *_FIRST_STAGES)}
    if others := [name for name, part in parts.items() if hasattr(part, "attn_processors") or "controlnet" in name]:
        raise UserError(
            f"{type(pipeline).__name__} has attention beside its UNet's, in {', '.join(others)}, which adapt does not "
            "know: adapt(pipeline.unet) adapts the UNet alone"
        )


def _factor(pipeline: Any) -> int:
    """Pixels along the side of a latent cell."""
    stage = next((part for name in _FIRST_STAGES if (part := getattr(pipeline, name, None)) is not None), None)
    if stage is None:
        raise UserError(
            f"the training size of {type(pipeline).__name__} can't be derived: it has no vae; adapt its unet"
        )
    return 2 ** (len(stage.config.block_out_channels) - 1)


def _split(states: Tensor, heads: int) -> Tensor:
    """[B T D] -> [B N T H]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)
