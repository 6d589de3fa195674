"""What a sweep may say, as typed objects; a mistake is named with the nearest right word."""

from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationInfo,
    model_validator,
)

from ..baselines import METHODS as BASELINES
from ..baselines import Baseline, Method, Upscale, read_baseline
from ..buckets import parse_size
from ..errors import UserError
from ..scales import ScaleRule, Scaling
from ..train_entropy import TrainEntropy
from .spec_paths import input_path

_METHOD = ("rule", "multiplier", "train_entropy")


class Metric(StrEnum):
    """What is measured of each image."""

    ENTROPY = "entropy"
    """Mean entropy and logit gap of self-attention in nats, for every layer and step."""
    OBJECTS = "objects"
    """What a scene's caption asks for against what the image holds."""
    SCENES_FID = "scenes_fid"
    """Features of the scenes' extractor, for the Frechet distance from other pictures."""
    SCENES_KID = "scenes_kid"
    """The same features, for the kernel distance."""
    SCENES_PATCH_FID = "scenes_patch_fid"
    """Nothing while drawing: `entscale tables` cuts the kept pictures above the training size."""
    SCENES_CLIP = "scenes_clip"
    """The cosine of image and caption by the scenes' contrastive model."""
    FID = "fid"
    """Features of Inception, whose weights `extractors` names, for the Frechet distance."""
    KID = "kid"
    """The same features, for the kernel distance."""
    PATCH_FID = "patch_fid"
    """As `scenes_patch_fid`, by Inception."""
    CLIP = "clip"
    """The cosine of image and caption by the CLIP model that `extractors` names."""


class SpecError(UserError):
    """A value of the right form that does not fit the models: `item` is the entry of the list `key` that it is."""

    def __init__(self, message: str, key: str, item: object):
        super().__init__(message)
        self.key = key
        self.item = item


def nearest(word: object, known: "tuple[str, ...] | list[str]") -> str:
    """The end of an error's line: the known word that `word` was meant to be, or all of them."""
    close = get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean {str(close[0])!r}?" if close else f"use one of {', '.join(known)}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sampler(_Strict):
    """How an image is sampled. A guidance of 1 draws without the unconditional half."""

    name: Literal["ddim", "pndm", "euler", "euler_ancestral", "dpmsolver++"] = "ddim"
    steps: int = Field(default=25, ge=1, le=1000)
    guidance: float = Field(default=5.0, ge=0.0, allow_inf_nan=False)


def _no_more_than_differ(count: int) -> int:
    from ..scenes.captions import count_captions

    if count > (most := count_captions()):
        raise UserError(f"{count} captions are asked for, and {most} differ: give that many or fewer")
    return count


class ScenePrompts(_Strict):
    """So many balanced captions of the built-in scenes; of one seed, a shorter set begins a longer one.

    At most as many as differ, 6,852. Some come more than once long before.
    """

    scenes: Annotated[int, Field(ge=1), AfterValidator(_no_more_than_differ)]
    seed: int = Field(default=0, ge=0)


class ParquetPrompts(_Strict):
    """`count` captions drawn without replacement from a column of a Parquet file, or of all those in a folder."""

    parquet: str = Field(min_length=1)
    column: str = "caption"
    count: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class FolderPrompts(_Strict):
    """`count` captions drawn without replacement from a folder of pictures, each with a .txt of its name beside it."""

    folder: str = Field(min_length=1)
    count: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class SeedOfCaption(_Strict):
    """One seed a caption: the i-th of the sweep (from 0) is drawn with `first` + i alone."""

    first: int = Field(ge=0, lt=2**31)


def _tuple(value: object) -> object:
    if isinstance(value, list) and not value:
        raise UserError("this list is empty: give one entry or more")
    return tuple(value) if isinstance(value, list) else value


def _size(value: object) -> object:
    return value if isinstance(value, tuple) else parse_size(value)  # pyright: ignore[reportArgumentType]


def _method(value: object, info: ValidationInfo) -> Method:
    if isinstance(value, Mapping) and "baseline" in value:
        return read_baseline(value)
    if isinstance(value, Baseline) or (isinstance(value, str) and value in BASELINES):
        return read_baseline(value) if isinstance(value, str) else value
    return _scaling(value, info)


def _scaling(value: object, info: ValidationInfo) -> Scaling:
    name = value.get("rule") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping):
        for key in sorted(set(value) - set(_METHOD), key=str):
            hint = "write {baseline: upscale, upscaler: FOLDER}" if key == "upscaler" else ""
            raise UserError(f"unknown key {key!r} of a method: {hint or nearest(key, (*_METHOD, 'baseline'))}")
        if "train_entropy" in value:
            value = {**value, "train_entropy": _train_entropy(value["train_entropy"], info)}
    elif not isinstance(value, str | Scaling):
        raise UserError(
            f"method {value!r} is neither a rule's name nor a baseline's, nor {{rule: fixed, multiplier: 0.8}}"
        )
    if isinstance(name, str) and name in BASELINES:
        raise UserError(f"{name!r} is no rule but a baseline: write {name}, or {{baseline: {name}}}")
    if isinstance(name, str) and name not in list(ScaleRule):
        raise UserError(f"unknown rule {name!r}: {nearest(name, [*ScaleRule, *BASELINES])}")
    if name == ScaleRule.FIXED and not (isinstance(value, Mapping) and "multiplier" in value):
        raise UserError("rule 'fixed' needs its multiplier: write {rule: fixed, multiplier: 0.8}")
    return Scaling.of(value)  # pyright: ignore[reportArgumentType]


def _train_entropy(value: object, info: ValidationInfo) -> TrainEntropy:
    """E_T of a method: a file, looked for in the folder of the sweep's own, or layer -> nats."""
    if isinstance(value, str):
        return TrainEntropy.of(input_path((info.context or {}).get("folder", Path()), value))
    return TrainEntropy.of(value)  # pyright: ignore[reportArgumentType]


def _metric(value: object) -> Metric:
    if value not in list(Metric):
        raise UserError(f"unknown metric {value!r}: {nearest(value, [*Metric])}")
    return Metric(str(value))


def _prompts_kind(value: object) -> str:
    if isinstance(value, Mapping):
        return _described_kind([str(key) for key in value])
    if isinstance(value, BaseModel):
        return next(kind for kind, model in TABLES.items() if isinstance(value, model))  # pyright: ignore[reportReturnType]
    return "<file>" if isinstance(value, str) else "<list>"


def _described_kind(keys: list[str]) -> str:
    """Of what a table of prompts was meant to be, by the key that is nearest to one of a kind's own."""
    shared = {"seed", "count", "column"} & set(keys)
    for kind in ("scenes", "folder", "parquet"):
        if get_close_matches(kind, set(keys) - shared, n=1):
            return f"<{kind}>"
    return "<parquet>" if shared - {"seed"} else "<scenes>"


def _seeds_kind(value: object) -> str:
    return "<first>" if isinstance(value, Mapping | BaseModel) else "<list>"


def _write_size(size: tuple[int, int] | None) -> str | None:
    return None if size is None else f"{size[0]}x{size[1]}"


def _write_method(method: Method) -> object:
    if isinstance(method, Baseline):
        return {"baseline": method.name, **method.options} if method.options else method.name
    scaling = method
    if scaling.train_entropy is not None:
        return {"rule": scaling.rule.value, "train_entropy": dict(scaling.train_entropy.layers)}
    if scaling.rule is not ScaleRule.FIXED:
        return scaling.rule.value
    multiplier = scaling.multiplier
    return {"rule": "fixed", "multiplier": list(multiplier) if isinstance(multiplier, tuple) else multiplier}


Size = Annotated[tuple[int, int], BeforeValidator(_size), PlainSerializer(_write_size)]
MethodField = Annotated[Any, BeforeValidator(_method), PlainSerializer(_write_method)]
Caption = Annotated[str, Field(min_length=1)]
Prompts = Annotated[
    Annotated[ScenePrompts, Tag("<scenes>")]
    | Annotated[ParquetPrompts, Tag("<parquet>")]
    | Annotated[FolderPrompts, Tag("<folder>")]
    | Annotated[Caption, Tag("<file>")]
    | Annotated[Annotated[tuple[Caption, ...], BeforeValidator(_tuple)], Tag("<list>")],
    Discriminator(_prompts_kind),
]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[
    Annotated[SeedOfCaption, Tag("<first>")]
    | Annotated[Annotated[tuple[Seed, ...], BeforeValidator(_tuple)], Tag("<list>")],
    Discriminator(_seeds_kind),
]
Count = Annotated[int, Field(ge=1)]


class Device(_Strict):
    """What a worker draws on. As a rule that is found at run time: TPUs, else GPUs, else each node's CPUs."""

    kind: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    per_worker: float | None = Field(default=None, gt=0, le=256, allow_inf_nan=False)
    """Devices of one worker: whole ones, or a share of a GPU. On CPUs, of the devices that JAX makes of a host."""
    memory_fraction: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Share of a GPU's memory that JAX takes beforehand for one worker."""

    @model_validator(mode="after")
    def _fits_kind(self) -> "Device":
        count = self.per_worker
        if count is not None and self.kind in ("auto", "gpu") and count > 1 and count != int(count):
            raise UserError(f"per_worker is {count:g}: give whole devices, or a share below 1 of a GPU")
        if count is not None and self.kind == "tpu" and count not in TPU_CHIPS:
            raise UserError(f"per_worker is {count:g}: a worker can have {', '.join(map(str, TPU_CHIPS))} TPU chips")
        if count is not None and self.kind == "cpu" and count != int(count):
            raise UserError(f"per_worker is {count:g}: give a whole number, as shares are of GPUs alone")
        if self.memory_fraction is not None and self.kind in ("tpu", "cpu"):
            raise UserError("memory_fraction is of a GPU's memory: leave it out, or write kind: gpu")
        return self


TPU_CHIPS = (1, 2, 4, 8)
"""How many chips of a host Ray gives to one process."""


class Sharding(StrEnum):
    """How a worker with several devices uses them."""

    NONE = "none"
    ROWS = "rows"
    """The rows of every image are split over them, so that one large image has the memory of all."""


def _sharding(value: object) -> Sharding:
    if value not in list(Sharding):
        raise UserError(f"unknown sharding {value!r}: {nearest(value, [*Sharding])}")
    return Sharding(str(value))


def _count_or_auto(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{value!r} is neither auto nor a whole number above 0")
    return value


class Extractors(_Strict):
    """Networks that metrics need and this package lacks; every node has them at the same place."""

    inception: str | None = Field(default=None, min_length=1)
    """File of the weights that FID is computed with, of PyTorch."""
    clip: str | None = Field(default=None, min_length=1)
    """Folder or hub id of a CLIP model of transformers."""


EXTRACTOR_OF = {Metric.FID: "inception", Metric.KID: "inception", Metric.PATCH_FID: "inception", Metric.CLIP: "clip"}
"""Metric -> the key of `extractors` that it needs."""


class SweepSpec(_Strict):
    """A sweep as its author wrote it. Sizes are (width, height) in pixels."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run, whose folder is `runs/NAME` where none is given."""
    models: Annotated[tuple[Caption, ...], BeforeValidator(_tuple)]
    """Folders, hub ids or `scenes`; in YAML `model:` for a single one."""
    sizes: Annotated[tuple[Size, ...], BeforeValidator(_tuple)]
    """Each WIDTHxHEIGHT in YAML."""
    methods: Annotated[tuple[MethodField, ...], BeforeValidator(_tuple)]
    """A rule's name or a baseline's, `{rule: fixed, multiplier: 0.8}`, or `{baseline: NAME}` with its options."""
    prompts: Prompts
    """A list of captions, a file with one a line, or a table that says where to take them from."""
    seeds: Seeds = (0,)
    """Every caption is drawn with each, or with one of its own: `{first: 0}`."""
    limits: dict[str, Count] | None = None
    """Method -> how many pairs of caption and seed, the first ones, are drawn by it; the others draw all."""
    sampler: Sampler = Sampler()
    """`{name: ddim, steps: 25, guidance: 2.0}`."""
    batch: Annotated[Literal["auto"] | int, BeforeValidator(_count_or_auto)] = "auto"
    """Pictures of a call."""
    metrics: Annotated[
        tuple[Annotated[Metric, BeforeValidator(_metric)], ...],
        BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    ] = ()
    """What is measured of each picture."""
    extractors: Extractors | None = None
    train_size: Size | None = None
    """Where a model's config does not say it right."""
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_count_or_auto)] = "auto"
    device: Device = Device()
    sharding: Annotated[Sharding, BeforeValidator(_sharding)] = Sharding.NONE

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "model" not in value:
            return value
        if "models" in value:
            raise UserError("both model and models are given: keep one")
        rest = {key: item for key, item in value.items() if key != "model"}
        return {**rest, "models": [value["model"]]}

    @model_validator(mode="after")
    def _upscalers_are_told_apart(self) -> "SweepSpec":
        seen: dict[str, Method] = {}
        for method in self.methods:
            if isinstance(method, Upscale) and seen.setdefault(method.label, method) != method:
                raise SpecError(
                    f"two upscalers are both called {method.label!r} in rows: rename a folder", "methods", method
                )
        return self

    @model_validator(mode="after")
    def _limits_are_of_methods(self) -> "SweepSpec":
        labels = [method.label for method in self.methods]
        for label in self.limits or ():
            if label not in labels:
                raise SpecError(f"limits names {label!r}, no method here: {nearest(label, labels)}", "limits", label)
        return self

    @model_validator(mode="after")
    def _extractors_are_there(self) -> "SweepSpec":
        for metric in self.metrics:
            name = EXTRACTOR_OF.get(metric)
            if name is not None and getattr(self.extractors, name, None) is None:
                what = "the file of Inception's weights" if name == "inception" else "a CLIP model"
                raise SpecError(f"metric {metric} needs {what}: write extractors: {{{name}: ...}}", "metrics", metric)
        return self

    @model_validator(mode="after")
    def _devices_are_used(self) -> "SweepSpec":
        count = self.device.per_worker or 1
        if count > 1 and self.sharding is Sharding.NONE:
            raise SpecError(
                f"device.per_worker is {count:g} and sharding is none, so all but one would idle: write sharding: rows "
                "to split each image over them, or leave per_worker out for one worker a device",
                "device",
                count,
            )
        if count <= 1 and self.sharding is not Sharding.NONE:
            raise SpecError(
                f"sharding is {self.sharding} and a worker has one device: give device.per_worker", "sharding", count
            )
        return self


TABLES: dict[str | int, type[BaseModel]] = {
    "sampler": Sampler,
    "device": Device,
    "extractors": Extractors,
    "<scenes>": ScenePrompts,
    "<parquet>": ParquetPrompts,
    "<folder>": FolderPrompts,
    "<first>": SeedOfCaption,
}
"""Key, or kind of prompts and seeds -> the table that may stand there."""
