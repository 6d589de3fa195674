"""Measures the entropy of self-attention of a model at many sizes, under several rules, from the same noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from .batches import check_limit
from .caption_file import captions_of
from .entropies import ORIGINAL, EntropyPoint, EntropyStudy, PixelSize, network_order, size_text
from .errors import UserError
from .inputs import read_seeds
from .pipeline import TextToImage
from .scales import Scaling
from .scenes.captions import balanced_captions
from .weights.folder import BUILT_IN, ModelInfo

COUNT = 32
"""Captions of the built-in model where no count is given."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is drawn. Picture i has caption i and the noise of seed + i at every size and under every rule."""

    sizes: tuple[PixelSize, ...]
    rules: tuple[Scaling, ...]
    captions: tuple[str, ...]
    steps: int
    guidance: float | None
    """The model's default if None."""
    seed: int
    batch: int
    """Pictures at once."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One size under one rule."""

    size: PixelSize
    method: str
    tokens: tuple[int, ...]
    """N of each layer."""
    entropy: Float32[np.ndarray, "layers steps images"]
    """Means over heads and rows; with guidance of the caption's half of the batch."""


def read_prompts(given: Sequence[str], count: int | None, model: str) -> tuple[str, ...]:
    """The captions.

    Args:
        given: captions, or files with one a line; none for the balanced captions of the built-in model.
        count: how many; None is all, and of balanced captions `COUNT`.
        model: that they are for.

    Raises UserError for a file that can't be read, for no captions or fewer than `count`.
    """
    if count is not None and count < 1:
        raise UserError(f"count is {count}: give 1 or more")
    if not given:
        if model != BUILT_IN:
            raise UserError(f"prompts are missing: give --prompts, captions such as model {model!r} is used with")
        return tuple(balanced_captions(COUNT if count is None else count))
    found = [caption for source in given for caption in captions_of(source)]
    if count is not None and count > len(found):
        raise UserError(f"prompts have {len(found)} captions and count is {count}: lower --count")
    return tuple(found[:count])


def complete(plan: Plan, info: ModelInfo) -> list[tuple[PixelSize, Scaling]]:
    """What has to be drawn: each size under rule `original` and `plan.rules`, and the training size under the first.

    A rule that has no value in some layer at a size is left out there. Raises UserError for what can't be drawn, and
    for sizes that all have the same number of tokens.
    """
    check_limit(plan.batch, "batch")
    read_seeds(plan.seed, len(plan.captions))
    info.sampler().table(plan.steps)  # raises for a number of steps that can't be
    counts = {max(_tokens(info, size)) for size in plan.sizes}
    if len(counts) < 2:
        raise UserError(
            f"sizes {', '.join(map(size_text, plan.sizes))} have {len(counts)} token count: no line against log N can "
            "be fitted; give sizes of two token counts or more"
        )
    original = Scaling.of(ORIGINAL)
    height, width = info.train_size
    rules = list(dict.fromkeys([original, *map(info.scaling, plan.rules)]))
    cells = [(size, scaling) for size in plan.sizes for scaling in rules if _is_defined(info, size, scaling)]
    return list(dict.fromkeys([((width, height), original), *cells]))


def _is_defined(info: ModelInfo, size: PixelSize, scaling: Scaling) -> bool:
    """Whether the rule has a value in every layer at this size."""
    return None not in info.multipliers(info.bucket(size[1], size[0]), scaling)


def find_undefined(plan: Plan, info: ModelInfo) -> frozenset[tuple[PixelSize, str]]:
    """The sizes and rules of a plan that are not drawn, as the rule has no value in some layer there."""
    rules = list(map(info.scaling, plan.rules))
    return frozenset(
        (size, scaling.label) for size in plan.sizes for scaling in rules if not _is_defined(info, size, scaling)
    )


def measure(
    pipe: TextToImage, plan: Plan, say: Callable[[PixelSize, Scaling], None] = lambda *_: None
) -> list[Measurement]:
    """All measurements of a plan; `say` hears of each before it begins. Raises UserError as `complete` does."""
    found = []
    for size, scaling in complete(plan, pipe.info):
        say(size, scaling)
        found.append(_measured(pipe, plan, size, scaling))
    return found


def make_study(info: ModelInfo, layers: Sequence[str], plan: Plan, found: Sequence[Measurement]) -> EntropyStudy:
    """The means of what `measure` found; `layers` in the order of the network."""
    height, width = info.train_size
    pairs = [(caption, plan.seed + index) for index, caption in enumerate(plan.captions)]
    trained = next(one for one in found if one.size == (width, height))
    return EntropyStudy(
        model=info.name,
        layers=tuple(layers),
        train_tokens=trained.tokens,
        train_size=(width, height),
        points=tuple(_point(one, pairs) for one in found),
        undefined=find_undefined(plan, info),
    )


def layers_in_order(pipe: TextToImage) -> list[str]:
    """Self-attention layers in the order of the network."""
    return sorted(pipe.layers, key=network_order)


def _measured(pipe: TextToImage, plan: Plan, size: PixelSize, scaling: Scaling) -> Measurement:
    width, height = size
    out = pipe(
        plan.captions,
        height=height,
        width=width,
        rule=scaling,
        steps=plan.steps,
        guidance=plan.guidance,
        seed=plan.seed,
        decode=False,
        max_batch=plan.batch,
        measure_entropy=True,
    )
    if out.entropy is None:
        raise ValueError("the pipeline measured no entropy")
    names, tokens = layers_in_order(pipe), pipe.info.tokens(pipe.info.bucket(height, width))
    entropy = np.stack([out.entropy[name].mean(axis=-1) for name in names])
    return Measurement(
        size=size,
        method=scaling.label,
        tokens=tuple(tokens[pipe.layers[name][0]] for name in names),
        entropy=entropy,
    )


def _point(found: Measurement, pairs: Sequence[tuple[str, int]]) -> EntropyPoint:
    values = found.entropy.mean(axis=1, dtype=np.float64)
    return EntropyPoint(
        size=found.size,
        method=found.method,
        tokens=found.tokens,
        images=dict(zip(pairs, map(tuple, values.T.tolist()), strict=True)),
    )


def _tokens(info: ModelInfo, size: PixelSize) -> tuple[int, ...]:
    """N of the levels that have self-attention."""
    width, height = size
    tokens = info.tokens(info.bucket(height, width))
    return tuple(tokens[level] for level in info.unet.attention_levels)
