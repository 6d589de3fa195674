"""What a run folder holds, as typed objects: images with their counts, entropy of layers, seconds of buckets."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..baselines import Method, read_method
from ..buckets import parse_size
from ..scales import ScaleRule, Scaling

T = TypeVar("T")
Pair = tuple[str, int]
"""A caption and a seed: what the images of all methods that are compared share."""


@dataclass(frozen=True, order=True)
class Size:
    """A model at a size in pixels: what the tables have a line for."""

    model: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A cell's row: the image, or the error that it ended in."""

    cell: str
    size: Size
    method: str
    prompt: str
    seed: int
    image: str | None
    objects: tuple[float, float, float] | None
    """1 where the image holds exactly what its caption says, else 0; missing objects; extra objects."""
    entropy: float | None
    error: str | None
    seconds: float | None = None
    clip: Mapping[str, float] = field(default_factory=dict)
    """Cosines of image and caption by column: `clip`, `scenes_clip`."""
    scorers: Mapping[str, str] = field(default_factory=dict)
    """What named the scorer of each (weights, resize and crop); nothing in a run that was drawn before it was kept."""
    sha256: str | None = None
    """Of the image's file."""

    @property
    def pair(self) -> Pair:
        return self.prompt, self.seed


@dataclass(frozen=True, kw_only=True)
class LayerEntropy:
    """Mean entropy and logit gap of a self-attention layer in nats, over the steps and images of a size and method."""

    size: Size
    method: str
    layer: str
    tokens: int
    train_tokens: int
    entropy: float
    logit_gap: float | None
    """None in a run that was drawn before it was measured."""
    images: Mapping[str, float] = field(default_factory=dict)
    """Cell -> mean entropy of the layer in its image, over the steps."""


@dataclass(frozen=True, kw_only=True)
class BucketSeconds:
    """Where the time of a bucket and method went, all workers together."""

    size: Size
    method: str
    batch: int
    images: int
    compile_seconds: float
    steady_seconds: float


@dataclass(frozen=True, kw_only=True)
class Undefined:
    """A size and method that were not drawn, as the rule has no value there."""

    size: Size
    method: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder's contents."""

    folder: Path
    spec: Mapping[str, Any]
    """The part of `spec.yaml` below `sweep:`, its captions written out."""
    weights: Mapping[str, str]
    """Model -> the hash of the weights that it was drawn with."""
    spec_text: str
    environment: Mapping[str, Any]
    """Commit, versions and devices; empty where no worker ever started."""
    samples: tuple[Sample, ...]
    entropy: tuple[LayerEntropy, ...]
    seconds: tuple[BucketSeconds, ...]
    programs: tuple[Mapping[str, Any], ...]
    """One entry a worker process: what it compiled, and what it read from the cache."""
    train_entropy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Model -> the E_T of its layers that it shipped, where rule `calibrated` was drawn with them."""
    undefined: tuple[Undefined, ...] = ()
    memory: tuple[Mapping[str, Any], ...] = ()
    """Entries of buckets and methods with the `memory` of their programs, as `sweep.programs.note_memory` writes them.
    """
    memory_made: Mapping[str, Any] = field(default_factory=dict)
    """What compiled them again, where any was not recorded by the workers that drew."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Cell -> the name of the part that holds its row, where it is in one."""

    @property
    def name(self) -> str:
        return str(self.spec.get("name", self.folder.name))

    @property
    def planned(self) -> int:
        """Cells that the sweep has, drawn or not."""
        left_out = Counter(one.method for one in self.undefined)
        places = math.prod(len({str(value) for value in self.spec[name]}) for name in ("models", "sizes"))
        pairs, limits = len(self._wanted_pairs), self.spec.get("limits") or {}
        methods = {read_method(value).label for value in self.spec["methods"]}
        return sum((places - left_out[label]) * min(pairs, limits.get(label, pairs)) for label in methods)

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(sample.size.model for sample in self.samples))

    @cached_property
    def sizes(self) -> list[Size]:
        """Of each model, in the order of the sweep's file."""
        wanted = [Size(model, *parse_size(text)) for model in self.models for text in self.spec["sizes"]]
        return _in_order(wanted, (sample.size for sample in self.samples))

    @cached_property
    def scalings(self) -> dict[str, Scaling]:
        """Name of a method -> the scaling that it stands for; of baselines there is none."""
        return {label: method for label, method in self._methods.items() if isinstance(method, Scaling)}

    @cached_property
    def _methods(self) -> dict[str, Method]:
        return {method.label: method for method in map(read_method, self.spec["methods"])}

    def scaling(self, method: str, model: str) -> Scaling:
        """A method's scaling, for rule `calibrated` with what the model shipped unless the sweep names other E_T."""
        scaling = self.scalings[method]
        if scaling.rule is not ScaleRule.CALIBRATED or scaling.train_entropy or model not in self.train_entropy:
            return scaling
        return Scaling.of(scaling, train_entropy=self.train_entropy[model])

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the sweep's file; the others are compared with the first."""
        return _in_order(self._methods, (sample.method for sample in self.samples))

    @cached_property
    def pairs(self) -> list[Pair]:
        """Captions with their seeds, in the order of the sweep's file."""
        return _in_order(self._wanted_pairs, (sample.pair for sample in self.samples))

    @cached_property
    def _wanted_pairs(self) -> list[Pair]:
        prompts, seeds = self.spec["prompts"], self.spec["seeds"]
        if isinstance(seeds, Mapping):
            return [(prompt, seed) for seed, prompt in enumerate(prompts, seeds["first"])]
        return list(dict.fromkeys((prompt, seed) for prompt in prompts for seed in seeds))

    def wants(self, method: str, pair: Pair) -> bool:
        """Whether the sweep draws a method for a caption and seed: `limits` may leave the later ones out."""
        limit = (self.spec.get("limits") or {}).get(method)
        return limit is None or self._numbers.get(pair, limit) < limit

    @cached_property
    def _numbers(self) -> dict[Pair, int]:
        return {pair: number for number, pair in enumerate(self._wanted_pairs)}

    def of(self, size: Size, method: str) -> dict[Pair, Sample]:
        """The cells of a size and method, the failed ones too."""
        return self._groups.get((size, method), {})

    @cached_property
    def _groups(self) -> dict[tuple[Size, str], dict[Pair, Sample]]:
        groups: dict[tuple[Size, str], dict[Pair, Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.size, sample.method), {})[sample.pair] = sample
        return groups

    def label(self, size: Size) -> str:
        """The size, with its model where the run has several."""
        return f"{size.model} {size}" if len(self.models) > 1 else str(size)


def _in_order(wanted: Iterable[T], found: Iterable[T]) -> list[T]:
    """Each value of `found` once: those that are `wanted` in that order, then the others."""
    present = dict.fromkeys(found)
    return list(dict.fromkeys([value for value in wanted if value in present] + list(present)))
