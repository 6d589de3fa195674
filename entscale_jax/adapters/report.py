"""What `adapt` found in a model: each self-attention layer with its T, and its N and multiplier at any size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array

from ..buckets import Bucket, token_counts
from ..errors import UserError
from ..scales import Scaling, UndefinedScale
from .sown import read


@dataclass(frozen=True)
class AdaptedLayer:
    """One self-attention layer whose scale follows its token count."""

    path: str
    """As the framework names its modules, with `/` between: `down_blocks_0/attentions_0/transformer_blocks_0/attn1`."""
    level: int
    """Of the resolution, 0 the finest."""
    train_tokens: int
    """T."""
    heads: int | None
    """None where the module does not say."""
    head_dim: int | None
    """d, the width of one head."""

    def __post_init__(self):
        if not isinstance(self.train_tokens, int) or self.train_tokens < 2:
            raise UserError(
                f"train_tokens of {self.path} is {self.train_tokens!r}: log_T needs a whole number, 2 or more"
            )

    def multiplier(self, scaling: Scaling, tokens: int) -> float:
        """`lambda sqrt(d)` at N `tokens`: a Python float, 1.0 where nothing changes. Raises UndefinedScale."""
        return scaling.multiplier_at(self.level, tokens, self.train_tokens, self.path)

    def scale(self, scaling: Scaling, tokens: int) -> float:
        """lambda itself. Raises UserError where the width of a head is not known."""
        if self.head_dim is None:
            raise UserError(
                f"the scale of {self.path} can't be derived: its module has no head_dim; give query= instead"
            )
        return scaling.scale_at(self.level, tokens, self.train_tokens, self.head_dim, self.path)


class LayerAtSize(NamedTuple):
    """A layer at one size."""

    path: str
    level: int
    tokens: int
    """N."""
    train_tokens: int
    """T."""
    heads: int | None
    head_dim: int | None
    multiplier: float | None
    """Of `1 / sqrt(d)`; None where rule `calibrated` has no value."""


@dataclass(frozen=True)
class Grids:
    """From a size to the tokens of each level, as a UNet halves its grid, with ceiling."""

    levels: int
    factor: int = 1
    """Units of a size along the side of one cell of the finest grid."""
    unit: str = "cells"
    """What sizes are counted in: the input's cells, or for a pipeline pixels."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Cells (h, w) of the finest level."""
        return Bucket.covering(height, width, self.factor).latent(self.factor)

    def train_size(self, sample_size: object, owner: str) -> tuple[int, int]:
        """(height, width) of training, of a config's `sample_size`. Raises UserError where that says none."""
        match sample_size if isinstance(sample_size, list | tuple) else (sample_size, sample_size):
            case [int(height), int(width)] if height > 0 and width > 0:
                return height * self.factor, width * self.factor
        raise UserError(
            f"the training size of {owner} can't be derived: sample_size={sample_size!r}; give "
            "train_size=(height, width)"
        )

    def tokens(self, height: int, width: int) -> tuple[int, ...]:
        """N of each level, finest first. Raises UserError for what is no size, or leaves one token at the deepest."""
        return token_counts(self.grid(height, width), self.levels)


Tokens = Callable[[int, int], Sequence[int]]
"""From (height, width) to N of each level."""


@dataclass(frozen=True)
class Report:
    """What was adapted, and what was left."""

    model: str
    """The class that was given."""
    scaling: Scaling
    layers: tuple[AdaptedLayer, ...]
    left: tuple[str, ...]
    """Attention that stays as it is: cross-attention, and what the caller said to leave."""
    train_size: tuple[int, int] | None
    """(height, width) in `unit`; None where T was given as tokens."""
    unit: str = ""
    """What sizes are counted in, pixels or cells."""
    tokens: Tokens | None = None

    def at(self, height: int, width: int) -> tuple[LayerAtSize, ...]:
        """Every layer's N and multiplier at a size. Raises UserError where the size's tokens can't be derived."""
        if self.tokens is None:
            raise UserError(
                f"tokens of {self.model} at {width}x{height} can't be derived: its grids aren't known; "
                "give adapt(..., tokens=lambda height, width: [N of each level])"
            )
        counts = tuple(self.tokens(height, width))
        return tuple(self._at(layer, counts, f"{width}x{height}") for layer in self.layers)

    def _at(self, layer: AdaptedLayer, counts: tuple[int, ...], size: str) -> LayerAtSize:
        if layer.level >= len(counts):
            raise UserError(
                f"tokens of {layer.path} at {size} can't be derived: it is at level {layer.level}, and tokens= gave "
                f"{len(counts)} levels"
            )
        tokens = counts[layer.level]
        try:
            multiplier = layer.multiplier(self.scaling, tokens)
        except UndefinedScale:
            multiplier = None
        return LayerAtSize(layer.path, layer.level, tokens, layer.train_tokens, layer.heads, layer.head_dim, multiplier)

    def table(self, height: int, width: int) -> str:
        """`at` as a Markdown table."""
        head = ("layer", "level", "N", "T", "heads", "head width", "multiplier")
        rows = [
            (
                row.path,
                row.level,
                row.tokens,
                row.train_tokens,
                _or_dash(row.heads),
                _or_dash(row.head_dim),
                "undefined" if row.multiplier is None else f"{row.multiplier:.4f}",
            )
            for row in self.at(height, width)
        ]
        lines = [head, ("---",) * len(head), *rows]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

    def entropy(self, intermediates: Any) -> dict[str, Array]:
        """Layer -> [calls, batch, heads] in nats, mean over rows, of what an adapted model of JAX sowed.

        Args:
            intermediates: linen's collection of that name, or the state of `nnx.capture` or `nnx.pop`.

        Raises UserError for a layer without one.
        """
        return read(intermediates, tuple(layer.path for layer in self.layers))

    def __str__(self) -> str:
        size = "" if self.train_size is None else f" trained at {self.train_size[1]}x{self.train_size[0]} {self.unit}"
        return (
            f"{self.model}{size.rstrip()}: rule {self.scaling.label} in {len(self.layers)} self-attention layers, "
            f"{len(self.left)} other attention layers left as they are"
        )


class Adapted(NamedTuple):
    """What `adapt` returns."""

    model: Any
    """The adapted copy."""
    report: Report


def _or_dash(value: int | None) -> int | str:
    return "-" if value is None else value
