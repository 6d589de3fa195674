"""Convolutions that keep the centre of their kernels alone, so that distant tokens know of each other by attention.

In the exported folder they are convolutions of 3x3 like the others, with zeros: diffusers opens it as ever.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..errors import UserError
from ..models import UNet2DConditionModel


def keep_centres(unet: UNet2DConditionModel, names: Sequence[str]) -> None:
    """Sets the kernels of the named convolutions to zero around their centres, in place.

    Args:
        unet: any.
        names: as in `up_blocks/0/resnets/1/conv2`.

    Raises UserError for a name that is no convolution of 3x3.
    """
    for name in names:
        try:
            kernel = _find(unet, name).kernel
        except (AttributeError, IndexError, TypeError):
            kernel = None
        if kernel is None or kernel.shape[:2] != (3, 3):
            raise UserError(
                f"pointwise: {name!r} is no convolution of 3x3 in the UNet: write `up_blocks/0/resnets/0/conv1`"
            )
        kernel[...] = jnp.zeros_like(kernel[...]).at[_CENTRE].set(kernel[_CENTRE])


def use_centres(unet: UNet2DConditionModel, names: Sequence[str]) -> None:
    """Lets the named convolutions multiply by their centres alone, in place: nothing else of them has a gradient."""
    for name in names:
        path, _, last = name.rpartition("/")
        block = _find(unet, path)
        setattr(block, last, _Pointwise(getattr(block, last)))


class _Pointwise(nnx.Module):
    def __init__(self, conv: nnx.Conv):
        self.conv = conv

    def __call__(self, hidden: Float[Array, "batch h w features"]) -> Float[Array, "batch h w more"]:
        assert self.conv.bias is not None
        return hidden @ self.conv.kernel[_CENTRE] + self.conv.bias[None, None, None]


_CENTRE = (1, 1)


def _find(module: Any, path: str) -> Any:
    for name in path.split("/"):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module
