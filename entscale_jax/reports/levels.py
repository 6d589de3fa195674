"""Tokens and multipliers per level of each size: from what the run measured, else from the model's configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..buckets import parse_size
from ..errors import UserError
from ..scales import LevelMultiplier
from ..weights.folder import describe
from .records import Run, Size


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Tokens of self-attention at each level of a model, finest first, and what they make of the scale."""

    tokens: tuple[int, ...]
    train_tokens: tuple[int, ...]
    multipliers: Mapping[str, tuple[LevelMultiplier, ...]]
    """Method -> the multiplier of `1 / sqrt(d)` at each level."""

    @property
    def is_control(self) -> bool:
        """Whether N = T at every level, so that rule `entropy` is rule `original`."""
        return self.tokens == self.train_tokens


def find_levels(run: Run) -> dict[Size, Levels]:
    """The levels of each size that can be told; where no entropy was measured, the model has to be at hand for that."""
    found = _from_entropy(run)
    for model in run.models:
        sizes = [size for size in run.sizes if size.model == model and size not in found]
        found.update(_from_model(run, model, sizes) if sizes else {})
    return found


def _from_model(run: Run, model: str, sizes: Sequence[Size]) -> dict[Size, Levels]:
    try:
        info = describe(model, train_size=chosen_train_size(run))
    except UserError:
        return {}
    if info.weights_hash != run.weights.get(model):
        return {}
    layers = info.unet.self_attention
    paths = tuple(tuple(path for path, own in layers.items() if own == level) for level in range(info.levels))
    return {
        size: _levels(run, model, info.tokens(info.bucket(size.height, size.width)), info.train_tokens, paths)
        for size in sizes
    }


def chosen_train_size(run: Run) -> tuple[int, int] | None:
    """(height, width) in pixels where the sweep overrides the model's own."""
    if "train_size" not in run.spec:
        return None
    width, height = parse_size(run.spec["train_size"])
    return height, width


def _from_entropy(run: Run) -> dict[Size, Levels]:
    counts: dict[Size, dict[tuple[int, int], dict[str, None]]] = {}
    for record in run.entropy:
        layers = counts.setdefault(record.size, {}).setdefault((record.train_tokens, record.tokens), {})
        layers[record.layer] = None
    found = {}
    for size, levels in counts.items():
        pairs = sorted(levels, reverse=True)
        train_tokens, tokens = zip(*pairs, strict=True)
        try:
            found[size] = _levels(run, size.model, tokens, train_tokens, [tuple(levels[pair]) for pair in pairs])
        except UserError:  # Multipliers one a level, of a model that has no attention at some level.
            continue
    return found


def _levels(
    run: Run, model: str, tokens: tuple[int, ...], train_tokens: tuple[int, ...], layers: Sequence[Sequence[str]]
) -> Levels:
    multipliers = {}
    for method in run.scalings:
        scaling = run.scaling(method, model)
        scaling.check_levels(len(tokens))
        counts = enumerate(zip(tokens, train_tokens, layers, strict=True))
        multipliers[method] = tuple(scaling.over_layers(level, *each) for level, each in counts)
    return Levels(tokens=tokens, train_tokens=train_tokens, multipliers=multipliers)
