"""A model's folder as diffusers lays it out: where it is, what its configs say, and what of it is needed to draw."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..buckets import Bucket, token_counts
from ..errors import UserError
from ..models import UNet2DConditionConfig, UNet2DConfig
from ..sampling import Sampler, choose_sampler
from ..scales import LevelMultiplier, ScaleRule, Scaling
from ..train_entropy import TrainEntropy, missing, read_shipped
from .checkpoint import load_checkpoint
from .families import FAMILIES, KINDS, Config, Families, Family, family_of
from .files import WeightFiles, find_weights
from .hub import find_folder
from .manifest import CHECKPOINT, Manifest, read_manifest
from .placement import Placement
from .tokenizer import Tokenizer
from .torch_format import AbstractRngs, load_parameters

BUILT_IN, BUILT_IN_GUIDANCE = "scenes", 2.0
DEFAULT_GUIDANCE = 7.5
"""What Stable Diffusion is usually drawn with."""
_BUILT_IN_FOLDER = Path(__file__).parents[1] / "scenes" / "model"
_SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class ModelInfo:
    """What a folder's configs say. Made without loading weights and without touching a device."""

    name: str
    """As the user gave it."""
    folder: Path
    family: Family
    unet: UNet2DConditionConfig | UNet2DConfig
    vae: Config
    """Of the first stage, an `AutoencoderKL` or what the family has in its place."""
    text_encoders: tuple[Config, ...]
    schedule: Sampler
    """Where a draw names no other."""
    kinds: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Part -> diffusers' or transformers' class."""
    scheduler: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """scheduler_config.json, with what the family's pipeline sets in it."""
    zeros_for_empty_prompt: bool = False
    """Whether guidance leads away from zeros where no negative prompt is given: SDXL's field of model_index.json."""
    variant: str | None = None
    """Of the weights, such as `fp16`."""
    allow_pickle: bool = False
    """Whether weights may be read from PyTorch's `.bin`."""
    manifest: Manifest | None = field(default=None, repr=False, compare=False)
    """Of a folder that `entscale convert` wrote."""

    @property
    def text(self) -> Config:
        """Of the first text encoder."""
        return self.text_encoders[0]

    @property
    def configs(self) -> dict[str, Config]:
        """Part -> its config, of the parts that hold weights."""
        return dict(zip(self.family.parts, (self.unet, self.vae, *self.text_encoders), strict=True))

    @property
    def guidance(self) -> float:
        """Strength of classifier-free guidance where the caller gives none."""
        return BUILT_IN_GUIDANCE if self.name == BUILT_IN else DEFAULT_GUIDANCE

    @property
    def latent_factor(self) -> int:
        """Pixels along the side of one latent cell."""
        return self.vae.factor

    @property
    def levels(self) -> int:
        """Resolutions of the UNet."""
        return self.unet.levels

    @property
    def train_grid(self) -> tuple[int, int]:
        """Latent cells (h, w) in training."""
        return self.unet.train_grid

    @property
    def train_size(self) -> tuple[int, int]:
        """Pixels (height, width) in training."""
        height, width = self.train_grid
        return height * self.latent_factor, width * self.latent_factor

    @property
    def train_tokens(self) -> tuple[int, ...]:
        """T of each level, finest first."""
        return self.unet.train_tokens

    def sampler(self, choice: str | Mapping[str, Any] | None = None) -> Sampler:
        """The model's sampler, or the one that `choose_sampler` takes from its noise schedule."""
        return self.schedule if choice is None else choose_sampler(self.scheduler, choice)

    def bucket(self, height: int, width: int) -> Bucket:
        """The bucket that a size is drawn in. Raises UserError where it is too small for the model."""
        Bucket(height, width).latent(self.latent_factor)
        bucket = Bucket.covering(height, width, self.latent_factor)
        self.tokens(bucket)
        return bucket

    def tokens(self, bucket: Bucket) -> tuple[int, ...]:
        """N of each level, finest first."""
        return token_counts(bucket.latent(self.latent_factor), self.levels)

    @cached_property
    def train_entropy(self) -> TrainEntropy | None:
        """E_T of each self-attention layer, where the folder ships them."""
        return read_shipped(self.folder)

    def scaling(self, rule: Any, multiplier: Any = 1.0, train_entropy: Any = None) -> Scaling:
        """What `Scaling.of` makes of these, for this model: `calibrated` with its E_T, the folder's own if None.

        Raises UserError where multipliers, layers, weights or training size are not this model's, and where
        `calibrated` has no E_T.
        """
        scaling = Scaling.of(rule, multiplier, train_entropy)
        scaling.check_levels(self.levels)
        if scaling.rule is not ScaleRule.CALIBRATED:
            return scaling
        known = scaling.train_entropy or self.train_entropy
        if known is None:
            raise missing(self.name)
        known.check_layers(self.name, self.unet.self_attention)
        if known.weights_hash is not None:
            height, width = self.train_size
            known.check_source(self.name, self.weights_hash, f"{width}x{height}")
        return replace(scaling, train_entropy=known)

    def multipliers(self, bucket: Bucket, scaling: Scaling) -> tuple[LevelMultiplier, ...]:
        """By what `1 / sqrt(d)` is multiplied at each level, finest first."""
        scaling.check_levels(self.levels)
        counts = enumerate(zip(self.tokens(bucket), self.train_tokens, strict=True))
        layers = self.unet.self_attention
        return tuple(
            scaling.over_layers(level, now, then, [path for path, own in layers.items() if own == level])
            for level, (now, then) in counts
        )

    def layer_multipliers(self, bucket: Bucket, scaling: Scaling) -> dict[str, float]:
        """By what `1 / sqrt(d)` is multiplied in each self-attention layer. Raises UndefinedScale."""
        now, then = self.tokens(bucket), self.train_tokens
        return {
            path: scaling.multiplier_at(level, now[level], then[level], path)
            for path, level in self.unet.self_attention.items()
        }

    @property
    def flax(self) -> bool:
        """Whether the pipeline is of Flax's classes, which PyTorch can't open."""
        return any(KINDS[self.kinds[part]].flax for part in self.family.parts)

    @property
    def takes_sizes(self) -> bool:
        """Whether the UNet is told sizes in pixels, as SDXL's is."""
        return self.unet.text_embeds_dim is not None

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Tokens that each text encoder reads."""
        return tuple(config.max_position_embeddings for config in self.text_encoders)

    def tokenizer(self, index: int = 0) -> Tokenizer:
        """That of the text encoder of this number."""
        folder, length = self.folder / self.family.tokenizers[index], self.text_encoders[index].max_position_embeddings
        return Tokenizer(folder, length, self.family.tokenizer_kind)

    def dtype(self, part: str, dtype: jnp.dtype | type) -> jnp.dtype | type:
        """What a part computes in where the model is asked for in `dtype`."""
        half = jnp.dtype(dtype).itemsize == 2
        return jnp.float32 if half and part == self.family.first_stage and self.family.float32_decoding else dtype

    def load(self, part: str, dtype: jnp.dtype | type | str = jnp.float32, *, sharding: Placement = None) -> Any:
        """The part's module with its weights."""
        build = self.builder(part, dtype)
        if self.manifest is not None:
            return load_checkpoint(build, self.folder / part / CHECKPOINT, dtype, sharding=sharding)
        return load_parameters(build, self.weight_files(part), dtype, sharding=sharding)

    def builder(self, part: str, dtype: jnp.dtype | type | str = jnp.float32) -> Callable[[], Any]:
        """Makes the part's module, to be traced and never run."""
        module, config = KINDS[self.kinds[part]].module, self.configs[part]
        return lambda: module(config, rngs=AbstractRngs(), dtype=dtype)

    def weights_stem(self, part: str) -> str:
        """How the name of a part's weights begins."""
        return KINDS[self.kinds[part]].weights

    def weight_files(self, part: str) -> WeightFiles:
        """The files of a part's weights. Raises UserError where they are missing or may not be read."""
        if self.manifest is not None:
            raise UserError(f"model {self.name!r} is a converted one: `entscale export` makes a diffusers folder of it")
        kind = KINDS[self.kinds[part]]
        options = {"variant": self.variant, "allow_pickle": self.allow_pickle, "flax": kind.flax}
        return find_weights(self.folder / part, kind.weights, **options)

    @property
    def noise_file(self) -> Path:
        """Where a model that enlarges pictures has the noise schedule of the small ones."""
        return self.folder / str(self.family.noises_pictures) / "scheduler_config.json"

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over weights, configs and tokenizers: everything in the folder that a picture depends on."""
        if self.manifest is not None:
            return self.manifest.source_hash
        digest = hashlib.sha256()
        parts = self.family.parts
        files = [file for part in parts for file in self.weight_files(part).all]
        files += [self.folder / part / "config.json" for part in parts] + [self.folder / _SCHEDULER]
        files += [] if self.family.noises_pictures is None else [self.noise_file]
        for name in self.family.tokenizers:
            files += sorted(file for file in (self.folder / name).glob("*") if file.is_file())
        for file in files:
            digest.update(file.relative_to(self.folder).as_posix().encode())
            with file.open("rb") as stream:
                while block := stream.read(2**22):
                    digest.update(block)
        return digest.hexdigest()


def describe(
    model: str | Path,
    *,
    train_size: tuple[int, int] | None = None,
    sampler: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    weights: bool = True,
    families: Families = FAMILIES,
) -> ModelInfo:
    """What the configs of `model` say.

    Args:
        model: a diffusers folder, one that `entscale convert` wrote, a hub id such as `org/name`, or `scenes`, the
            built-in model.
        train_size: (height, width) in pixels, where the config's `sample_size` is not the size of training.
        sampler: instead of the folder's own, as `choose_sampler` takes it.
        revision: of a hub id: a branch, a tag or a commit.
        token: of an account that may read it.
        variant: of the weights, such as `fp16`.
        allow_pickle: lets weights be read from PyTorch's `.bin` where there are neither safetensors nor msgpack.
        weights: False fetches none of a hub id's, which then can't be loaded.
        families: those that `model` may be of.

    Raises UserError where the folder is missing, incomplete, of another kind, or has an unsupported config value.
    """
    name = str(model)
    folder = _find(name, revision=revision, token=token, variant=variant, allow_pickle=allow_pickle, weights=weights)
    index = read_json(folder / "model_index.json", name)
    family = family_of(name, index, families)
    kinds = family.check(name, index)
    raw = {part: _read_config(name, folder / part / "config.json", kinds[part]) for part in family.parts}
    unet, vae, *text = (family.config(part, kinds[part], raw[part]) for part in family.parts)
    scheduler = {**read_json(folder / _SCHEDULER, name), **family.scheduler}
    info = ModelInfo(
        name,
        folder,
        family,
        unet,
        vae,
        tuple(text),
        choose_sampler(scheduler, sampler),
        kinds,
        scheduler,
        bool(index.get("force_zeros_for_empty_prompt", False)),
        variant,
        allow_pickle,
        _manifest(name, folder, variant),
    )
    if train_size is not None:
        grid = Bucket.covering(*train_size, info.latent_factor).latent(info.latent_factor)
        info = replace(info, unet=replace(info.unet, sample_size=grid))
    _check_parts(info)
    return info


def _check_parts(info: ModelInfo) -> None:
    """The parts must fit each other; what a single config can't say."""
    cells, beside = info.vae.latent_channels, info.family.picture_channels
    if (info.unet.in_channels, info.unet.out_channels) != (cells + beside, cells):
        picture = f" and a picture beside them {beside}: it is no model that enlarges pictures" if beside else ""
        raise UserError(
            f"model {info.name!r}: the UNet takes {info.unet.in_channels} channels and gives {info.unet.out_channels}, "
            f"latents have {cells}{picture or ': only plain text-to-image models are implemented'}"
        )
    width = sum(config.hidden_size for config in info.text_encoders)
    if info.unet.cross_attention_dim != width:
        raise UserError(
            f"model {info.name!r}: the UNet attends to text states of width {info.unet.cross_attention_dim}, "
            f"its text gives {width}"
        )
    pooled = getattr(info.text_encoders[-1], "projection_dim", None) if info.text_encoders else None
    if info.unet.text_embeds_dim != pooled:
        raise UserError(
            f"model {info.name!r}: the UNet takes pooled text of width {info.unet.text_embeds_dim}, "
            f"its text gives {pooled}"
        )
    _ = info.train_tokens  # raises where the training grid is too small for the levels


def _read_config(model: str, file: Path, kind: str) -> Mapping[str, Any]:
    """A part's config.json, which must be of the class that model_index.json names.

    diffusers writes `_class_name`, transformers a list. Of a Flax class either may name PyTorch's.
    """
    config = read_json(file, model)
    named = config.get("_class_name") or config.get("architectures") or kind
    if not {kind, kind.removeprefix("Flax")} & set(map(str, named if isinstance(named, list) else [named])):
        raise UserError(f"model {model!r}: {file} is of {named}, and model_index.json says {kind}")
    return config


def _find(model: str, *, revision: str | None, **options: Any) -> Path:
    if model != BUILT_IN:
        return find_folder(model, revision=revision, **options)
    if revision is not None:
        raise UserError(f"model {model!r} is the built-in one, which has no revision {revision!r}")
    return _BUILT_IN_FOLDER


def _manifest(model: str, folder: Path, variant: str | None) -> Manifest | None:
    manifest = read_manifest(folder)
    if manifest is not None and variant not in (None, manifest.variant):
        raise UserError(f"model {model!r} was converted from variant={manifest.variant!r} and holds no {variant!r}")
    return manifest


def read_json(file: Path, model: str) -> Mapping[str, Any]:
    """The object in a file of the model that a message calls `model`. Raises UserError where there is none."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"model {model!r}: {file} is missing; is this a diffusers folder?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"model {model!r}: {file} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"model {model!r}: {file} holds no JSON object")
    return content
