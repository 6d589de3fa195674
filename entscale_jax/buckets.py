"""From a size in pixels to the token counts of each level of a UNet, the static numbers that the scale is made of."""

import re
from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels that a model draws natively. Every bucket has its own compiled programs."""

    height: int
    width: int

    def __post_init__(self):
        for name, value in (("height", self.height), ("width", self.width)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"{name} is {value!r}: give a whole number of pixels")
            if value < 1:
                raise UserError(
                    f"{name} is {value}: a size below one latent cell can't be drawn; give a positive number"
                )

    @classmethod
    def covering(cls, height: int, width: int, multiple: int) -> "Bucket":
        """The smallest bucket whose sides are multiples of `multiple` pixels and that holds `height` x `width`."""
        exact = cls(height, width)
        return cls(_ceil_div(exact.height, multiple) * multiple, _ceil_div(exact.width, multiple) * multiple)

    def latent(self, factor: int) -> tuple[int, int]:
        """Latent cells (h, w) for an autoencoder that shrinks by `factor`. Raises UserError below one cell."""
        if self.height < factor or self.width < factor:
            raise UserError(f"size {self} is below one latent cell of {factor}x{factor} pixels: draw a larger one")
        return _ceil_div(self.height, factor), _ceil_div(self.width, factor)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def level_grids(grid: tuple[int, int], levels: int) -> tuple[tuple[int, int], ...]:
    """The grid (h, w) of each level, finest first. A stride-2 convolution with padding 1 halves with ceiling."""
    if levels < 1:
        raise UserError(f"levels is {levels}: a UNet has 1 or more")
    height, width = grid
    if height < 1 or width < 1:
        raise UserError(f"grid {height}x{width} has no cells: give a positive height and width")
    return tuple((_ceil_div(height, 2**level), _ceil_div(width, 2**level)) for level in range(levels))


def token_counts(grid: tuple[int, int], levels: int) -> tuple[int, ...]:
    """Tokens of self-attention at each level, finest first, for a latent `grid` of (h, w) cells.

    Raises UserError where the deepest level has fewer than 2 tokens, of which no attention can be taken.
    """
    counts = tuple(height * width for height, width in level_grids(grid, levels))
    if counts[-1] < 2:
        raise UserError(
            f"a latent grid of {grid[1]}x{grid[0]} leaves {counts[-1]} token at the deepest of {levels} levels: "
            "2 are needed; draw a larger size"
        )
    return counts


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels from `WIDTHxHEIGHT`. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text) if isinstance(text, str) else None
    if match is None:
        raise UserError(f"size {text!r} is not WIDTHxHEIGHT: write for example 224x160")
    width, height = int(match[1]), int(match[2])
    if width < 1 or height < 1:
        raise UserError(f"size {text!r} has no pixels: give a positive width and height")
    return width, height


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)
