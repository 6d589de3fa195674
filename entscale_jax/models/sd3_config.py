"""What the config of an SD3 or SD3.5 transformer says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .config import read_config

_NORMS = (None, "rms_norm")
_MODEL = "SD3Transformer2DModel"


@dataclass(frozen=True, kw_only=True)
class SD3TransformerConfig:
    """The fields of diffusers' `SD3Transformer2DModel`, with its defaults."""

    sample_size: int | tuple[int, int] = 128
    """Latent cells in training."""
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    """The width of one head; here the name says what it is."""
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    """Width of the text states."""
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 96
    """Patches along a side of the table of positions, of which a grid takes the centre."""
    dual_attention_layers: tuple[int, ...] = ()
    """Blocks with an attention over the picture alone beside the joint one, as SD3.5 medium has."""
    qk_norm: str | None = None
    """`rms_norm` in SD3.5."""

    def __post_init__(self):
        if self.caption_projection_dim != self.features:
            raise UserError(
                f"{_MODEL}: caption_projection_dim={self.caption_projection_dim} must be the width of the picture's "
                f"tokens, num_attention_heads * attention_head_dim = {self.features}: both attend as one sequence"
            )
        if self.qk_norm not in _NORMS:
            raise UserError(f"{_MODEL}: qk_norm={self.qk_norm!r}: implemented are {_NORMS}")
        if wrong := [index for index in self.dual_attention_layers if not 0 <= index < self.num_layers]:
            raise UserError(f"{_MODEL}: dual_attention_layers has {wrong[0]}: num_layers is {self.num_layers}")
        _ = self.train_tokens  # raises for a grid that patches do not divide

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "SD3TransformerConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model=_MODEL, fixed={}, inert=frozenset())

    @property
    def features(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def levels(self) -> int:
        """All blocks see the same tokens."""
        return 1

    @property
    def train_grid(self) -> tuple[int, int]:
        """Latent cells (h, w) in training."""
        return self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)

    @property
    def train_tokens(self) -> tuple[int, ...]:
        """T, of the one level: patches of the training grid."""
        height, width = self.patches(self.train_grid)
        return (height * width,)

    def patches(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Patches (h, w) of a latent grid. Raises UserError where they don't divide it, or positions run out."""
        patch, most = self.patch_size, self.pos_embed_max_size
        if any(side < patch or side % patch for side in grid):
            raise UserError(f"a latent grid of {grid[1]}x{grid[0]} is not divided by patches of {patch}x{patch}")
        height, width = grid[0] // patch, grid[1] // patch
        if max(height, width) > most:
            raise UserError(
                f"a latent grid of {grid[1]}x{grid[0]} has {width}x{height} patches: the model knows {most}x{most} "
                "positions (pos_embed_max_size)"
            )
        return height, width
