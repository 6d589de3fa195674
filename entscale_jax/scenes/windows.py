"""A UNet in which one kind of layer sees no further than a window: what then goes wrong was that layer's doing."""

from collections.abc import Iterable
from enum import StrEnum

from flax import nnx
from jaxtyping import Array, Float

from ..attention import EntropyScaledAttention, Record
from ..buckets import level_grids
from ..errors import UserError
from ..models import UNet2DConditionModel
from ..models.layers import Images, Mapped
from ..scales import Scaling

Grid = tuple[int, int]
"""Cells (h, w)."""


class Part(StrEnum):
    """The layers through which distant places of a picture know of each other."""

    ATTENTION = "attention"
    GROUP_NORM = "GroupNorm"
    CONVOLUTIONS = "convolutions"


class WindowedMap(nnx.Module):
    """A convolution or a GroupNorm on each window alone, with its own zero padding or its own statistics."""

    def __init__(self, inner: nnx.Conv | nnx.GroupNorm, window: Grid):
        self.inner, self.window = inner, window

    @property
    def kernel(self) -> nnx.Param:
        """The inner one's: the sampler asks the first convolution for its dtype."""
        return self.inner.kernel  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, hidden: Images) -> Mapped:
        """What `inner` makes of each window, put together again."""
        return _join(self.inner(_split(hidden, self.window)), _windows(hidden.shape[1:3], self.window))


class WindowedAttention(nnx.Module):
    """Self-attention in which a token sees only its own window, and N is the window's."""

    def __init__(self, inner: EntropyScaledAttention, grid: Grid, window: Grid):
        self.inner, self.grid, self.window = inner, grid, window

    def __call__(
        self, hidden: Float[Array, "B T D"], rule: Scaling | None = None, record: Record | None = None
    ) -> Float[Array, "B T D"]:
        """As `EntropyScaledAttention`. Raises UserError for a `record`, whose shape it can't keep."""
        if record is not None:
            raise UserError("attention in windows has no entropy to measure: draw without measure_entropy")
        batch, _, features = hidden.shape
        tiles = _split(hidden.reshape(batch, *self.grid, features), self.window)
        attended = self.inner(tiles.reshape(len(tiles), -1, features), rule)
        return _join(attended.reshape(tiles.shape), _windows(self.grid, self.window)).reshape(hidden.shape)


def confine(unet: UNet2DConditionModel, parts: Iterable[Part], *, grid: Grid, window: Grid) -> UNet2DConditionModel:
    """A copy of `unet`, for latents of `grid` cells alone, whose `parts` see no further than windows of `window` cells.

    With all parts confined it draws every window as a picture of its own.

    Raises UserError unless whole windows fill every level.
    """
    parts, levels = frozenset(parts), unet.config.levels
    grids, windows = level_grids(grid, levels), level_grids(window, levels)
    counts = {(h // y, w // x) if h % y == w % x == 0 else None for (h, w), (y, x) in zip(grids, windows, strict=True)}
    if len(counts) != 1 or None in counts:
        raise UserError(
            f"windows of {window[1]}x{window[0]} cells do not fill {grid[1]}x{grid[0]} at all {levels} levels"
        )
    confined = nnx.clone(unet)
    for path, module in list(nnx.iter_modules(confined)):
        level = _level(path, levels)
        for name, child in list(vars(module).items()):
            match child:
                case nnx.GroupNorm() if Part.GROUP_NORM in parts:
                    setattr(module, name, WindowedMap(child, windows[level]))
                case nnx.Conv() if Part.CONVOLUTIONS in parts:
                    setattr(module, name, WindowedMap(child, windows[level]))
                case EntropyScaledAttention() if Part.ATTENTION in parts:
                    setattr(module, name, WindowedAttention(child, grids[level], windows[level]))
    return confined


def _level(path: tuple, levels: int) -> int:
    """The level of the map that the layers of the module at `path` work on, 0 the finest."""
    match path:
        case ("down_blocks", index, *_):
            return index
        case ("mid_block", *_):
            return levels - 1
        case ("up_blocks", index, "upsamplers", *_):
            return levels - 2 - index
        case ("up_blocks", index, *_):
            return levels - 1 - index
    return 0


def _windows(grid: tuple[int, ...], window: Grid) -> Grid:
    return grid[0] // window[0], grid[1] // window[1]


def _split(hidden: Images, window: Grid) -> Float[Array, "tiles h w channels"]:
    """Every window as a picture of its own."""
    batch, *grid, features = hidden.shape
    rows, columns = _windows(tuple(grid), window)
    tiles = hidden.reshape(batch, rows, window[0], columns, window[1], features).swapaxes(2, 3)
    return tiles.reshape(-1, *window, features)


def _join(tiles: Float[Array, "tiles h w channels"], windows: Grid) -> Mapped:
    """The reverse of `_split`, whatever size the windows have now."""
    _, height, width, features = tiles.shape
    rows, columns = windows
    grid = tiles.reshape(-1, rows, columns, height, width, features).swapaxes(2, 3)
    return grid.reshape(-1, rows * height, columns * width, features)
