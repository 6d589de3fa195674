"""What is mended inside diffusers' Flax UNet while an adapted one runs: its grids, and on request its arithmetic."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen

from ..buckets import level_grids
from ..errors import UserError
from .layers import level_of

ATTENTION = "FlaxAttention"
_KEY_CHUNK = 4096 * 4
"""Keys that diffusers' memory-efficient attention reads at once."""
_TORCH_EPSILON = 1e-6
"""Of the group norm before PyTorch's transformer blocks, where Flax has 1e-5."""


class GridMender:
    """Cuts what an upsampler doubled to the size of the skip that follows, before its convolution, as PyTorch does.

    diffusers' Flax UNet concatenates 8 and 7 cells, and fails. Where the levels divide the grid nothing is cut.
    """

    def __init__(self, levels: int):
        self.levels = levels
        self.grids: tuple[tuple[int, int], ...] = ()

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Notes the grid of the UNet's input, and cuts the input of an upsampler's convolution."""
        if path == "conv_in":
            self.grids = level_grids(args[0].shape[1:3], self.levels)
        elif path.startswith("up_blocks_") and path.endswith("upsamplers_0/conv"):
            height, width = self.grids[level_of(path, self.levels) - 1]
            args = args[0][:, :height, :width], *args[1:]
        return proceed(*args, **kwargs)


class ChunkCheck:
    """Refuses tokens of which diffusers' memory-efficient attention reads some twice, in its last chunk of keys.

    At 16,640 tokens its output is off by 17%, adapted or not (measured with diffusers 0.39).
    """

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Raises UserError where the tokens are more than a chunk and no multiple of it."""
        if type(module).__name__ == ATTENTION and module.use_memory_efficient_attention:
            tokens = args[0].shape[-2]
            if tokens > _KEY_CHUNK and tokens % _KEY_CHUNK:
                raise UserError(
                    f"{path}: use_memory_efficient_attention of diffusers' Flax is wrong at {tokens} tokens, which are "
                    f"no multiple of {_KEY_CHUNK}; draw another size, or make the UNet without it"
                )
        return proceed(*args, **kwargs)


class TorchArithmetic:
    """What PyTorch's UNet computes where Flax's does not: the exact GELU, and the epsilon of the transformer's norm."""

    def __call__(self, path: str, module: Any, proceed: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Replaces the gate's activation, and sets the norm's epsilon in this call's own module."""
        if type(module).__name__ == "FlaxGEGLU":
            value, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
            deterministic = args[1] if len(args) > 1 else kwargs.get("deterministic", True)
            return module.dropout_layer(value * linen.gelu(gate, approximate=False), deterministic=deterministic)
        if isinstance(module, linen.GroupNorm) and type(module.parent).__name__ == "FlaxTransformer2DModel":
            # linen makes submodules anew in every call, so that this one is no one else's.
            object.__setattr__(module, "epsilon", _TORCH_EPSILON)
        return proceed(*args, **kwargs)
