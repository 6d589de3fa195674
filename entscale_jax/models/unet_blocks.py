"""The levels of a UNet: residual blocks, an attention after each where a level has it, the step to the next size."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from .layers import Downsample2D, Images, Layers, Mapped, ResnetBlock2D, Upsample2D
from .time_embedding import Time

MakeAttention = Callable[[], nnx.Module]
Attend = Callable[[Any, Images], Mapped]
"""(an attention that a UNet's blocks were made with, hidden) -> hidden."""


@runtime_checkable
class Widths(Protocol):
    """What a level takes of a UNet's config."""

    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def norm_num_groups(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...


class DownBlock(nnx.Module):
    """diffusers' `DownBlock2D`, and what is made of it with attention, as `CrossAttnDownBlock2D`."""

    def __init__(self, config: Widths, level: int, make: Layers, attention: MakeAttention | None):
        widths, count = config.block_out_channels, config.layers_per_block
        inputs = [widths[max(level - 1, 0)]] + [widths[level]] * (count - 1)
        self.resnets = nnx.List(_resnet(config, size, level, make) for size in inputs)
        if attention is not None:
            self.attentions = nnx.List(attention() for _ in range(count))
        if level < len(widths) - 1:
            self.downsamplers = nnx.List([Downsample2D(widths[level], 1, make)])

    def __call__(self, hidden: Images, time: Time, attend: Attend) -> tuple[Mapped, list[Array]]:
        """The output and all that the up-sampling side will want of this level."""
        skips = []
        for index, resnet in enumerate(self.resnets):
            hidden = resnet(hidden, time)
            if hasattr(self, "attentions"):
                hidden = attend(self.attentions[index], hidden)
            skips.append(hidden)
        if hasattr(self, "downsamplers"):
            hidden = self.downsamplers[0](hidden)
            skips.append(hidden)
        return hidden, skips


class MidBlock(nnx.Module):
    """diffusers' `UNetMidBlock2D` of one attention between two residual blocks, at the deepest level."""

    def __init__(self, config: Widths, make: Layers, attention: MakeAttention):
        widths = config.block_out_channels
        self.resnets = nnx.List(_resnet(config, widths[-1], len(widths) - 1, make) for _ in range(2))
        self.attentions = nnx.List([attention()])

    def __call__(self, hidden: Images, time: Time, attend: Attend) -> Images:
        """[batch height width channels], unchanged in shape."""
        return self.resnets[1](attend(self.attentions[0], self.resnets[0](hidden, time)), time)


class UpBlock(nnx.Module):
    """diffusers' `UpBlock2D`, and what is made of it with attention, as `CrossAttnUpBlock2D`."""

    def __init__(self, config: Widths, level: int, make: Layers, attention: MakeAttention | None):
        widths, count = config.block_out_channels, config.layers_per_block + 1
        inputs = [widths[min(level + 1, len(widths) - 1)]] + [widths[level]] * (count - 1)
        skips = [widths[level]] * (count - 1) + [widths[max(level - 1, 0)]]
        self.resnets = nnx.List(
            _resnet(config, size + skip, level, make) for size, skip in zip(inputs, skips, strict=True)
        )
        if attention is not None:
            self.attentions = nnx.List(attention() for _ in range(count))
        if level > 0:
            self.upsamplers = nnx.List([Upsample2D(widths[level], make)])

    def __call__(self, hidden: Images, skips: list[Array], time: Time, attend: Attend) -> Mapped:
        """Takes its skip connections from the end of `skips`, and up-samples to the size of the next one."""
        for index, resnet in enumerate(self.resnets):
            hidden = resnet(jnp.concatenate([hidden, skips.pop()], axis=-1), time)
            if hasattr(self, "attentions"):
                hidden = attend(self.attentions[index], hidden)
        if hasattr(self, "upsamplers"):
            _, height, width, _ = skips[-1].shape
            hidden = self.upsamplers[0](hidden, (height, width))
        return hidden


def _resnet(config: Widths, size_in: int, level: int, make: Layers) -> ResnetBlock2D:
    return ResnetBlock2D(
        size_in,
        config.block_out_channels[level],
        groups=config.norm_num_groups,
        epsilon=config.norm_eps,
        time_features=4 * config.block_out_channels[0],
        make=make,
    )
