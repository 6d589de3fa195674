"""The same weights in PyTorch and here, module by module: what differs, by how much, and whether that is too much."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..buckets import Bucket
from ..errors import UserError
from ..models import AddedConditions
from ..models.time_embedding import timestep_embedding
from ..pipeline import EntropyChoice, TextToImage
from ..scales import ScaleRule, Scaling
from ..weights.files import Format
from ..weights.folder import ModelInfo, describe
from . import reference
from .bounds import BOUNDS, CONTROL, CONTROL_DDIM, CONTROL_MULTIPLIER, IMAGE_QUANTILE
from .reference import DiffusersFolder, Drawing, Reference
from .reference_ldm import ReferenceLDM
from .reference_sdxl import ReferenceSDXL

REFERENCES: dict[str, Any] = {
    "StableDiffusionPipeline": Reference,
    "LDMTextToImagePipeline": ReferenceLDM,
    "StableDiffusionXLPipeline": ReferenceSDXL,
}
CAPTIONS = ("a red circle", "a blue square")
TIMESTEP = 481

Rule = Scaling | ScaleRule | str | Mapping[str, object]


@dataclass(frozen=True)
class Row:
    """One figure of the table."""

    module: str
    size: str
    rule: str
    error: float
    bound: float
    control: bool = False
    """A control has to be at least at its bound: something was made wrong on purpose."""

    @property
    def passed(self) -> bool:
        """False for an error that is no number, too."""
        return bool(self.error >= self.bound) if self.control else bool(self.error <= self.bound)


def compare(
    model: str | Path,
    *,
    size: tuple[int, int],
    rules: Sequence[Rule] = (ScaleRule.ORIGINAL, ScaleRule.ENTROPY),
    steps: int | None = None,
    guidance: float = 5.0,
    float64: bool = False,
    train_entropy: EntropyChoice | None = None,
    train_size: tuple[int, int] | None = None,
    allow_pickle: bool = False,
) -> list[Row]:
    """Every module of `model` at one size, in PyTorch diffusers and here.

    Args:
        model: a diffusers folder, a hub id, or `scenes`.
        size: (width, height) in pixels; what the latent grid does not divide is compared at the next bucket up.
        rules: of self-attention, one row each.
        steps: of DDIM, whose latents and pictures are compared too; None leaves it out.
        guidance: of DDIM.
        float64: computes both sides in float64.
        train_entropy: E_T for rule `calibrated`, as the pipeline takes it; None is what the model ships.
        train_size: (height, width) in pixels, where the config's `sample_size` is not the size of training.
        allow_pickle: reads PyTorch's `.bin` where there are no safetensors.

    Raises UserError for a model that can't be opened, a size that can't be drawn, no rules, a wrong number of steps.
    """
    width, height = size
    if not rules:
        raise UserError("rules is empty: give original, entropy, or both")
    known = [Scaling.of(rule) for rule in rules]
    info = describe(model, train_size=train_size, allow_pickle=allow_pickle)
    bucket = info.bucket(height, width)
    scalings = [info.scaling(rule, train_entropy=_entropy_for(rule, train_entropy)) for rule in known]
    for scaling in scalings:
        info.layer_multipliers(bucket, scaling)  # raises where the rule has no value
    if steps is not None:
        info.sampler("ddim").table(steps)
    with precision(float64):
        pair = Pair(model, float64=float64, train_size=train_size, allow_pickle=allow_pickle)
        rows = [*pair.text(), pair.time_embedding(), *pair.encode(bucket), *pair.decode(bucket)]
        for scaling in scalings:
            rows += pair.unet_rows(bucket, scaling)
        if steps is not None:
            for scaling in scalings:
                rows += pair.ddim_rows(bucket, scaling, steps=steps, guidance=guidance)
    return rows


@contextmanager
def precision(float64: bool) -> Iterator[None]:
    """Matrix products as exact as their dtype; with `float64`, 64-bit types, on the CPU, which has them everywhere."""
    with ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        if float64:
            stack.enter_context(jax.enable_x64(True))
            stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        yield


def relative_error(got: Any, expected: np.ndarray) -> float:
    """The largest difference over the largest value of the reference: max |got - expected| / max |expected|."""
    got = np.asarray(got)
    if got.shape != expected.shape:
        raise ValueError(f"shapes differ: {got.shape} here, {expected.shape} in PyTorch")
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def image_error(images: np.ndarray, expected: np.ndarray) -> float:
    """In steps of 1/255: what `IMAGE_QUANTILE` of the values stay below. `images` are bytes, `expected` from 0 to 1."""
    if images.shape != expected.shape:
        raise ValueError(f"shapes differ: {images.shape} here, {expected.shape} in PyTorch")
    return float(np.quantile(np.abs(images.astype(np.float64) - 255 * expected.astype(np.float64)), IMAGE_QUANTILE))


@dataclass(frozen=True)
class Drawn:
    """DDIM here and in PyTorch, from the same noise."""

    images: np.ndarray
    latents: np.ndarray
    entropy: dict[str, np.ndarray] | None
    expected: Drawing


class Pair:
    """One folder opened on both sides, at one precision. Use it within `precision`."""

    def __init__(
        self,
        model: str | Path,
        *,
        float64: bool = False,
        train_size: tuple[int, int] | None = None,
        allow_pickle: bool = False,
    ):
        self.dtype = np.dtype(np.float64 if float64 else np.float32)
        self.pipe = TextToImage.from_pretrained(
            model, dtype=jnp.dtype(self.dtype), train_size=train_size, allow_pickle=allow_pickle
        )
        self.info = self.pipe.info
        _check_torch_opens(self.info)
        grid = None if train_size is None else Bucket(*train_size).latent(self.info.latent_factor)
        opened = REFERENCES[self.info.family.pipeline]
        self.reference: DiffusersFolder = opened(self.info.folder, float64=float64, train_grid=grid)

    @cached_property
    def context(self) -> Any:
        """What PyTorch's UNet is told of `CAPTIONS`. Ours is told the same, so that no module inherits another's error.

        An array of text states, or for SDXL a tuple of them, the pooled text, and sizes.
        """
        return self.reference.conditions(CAPTIONS)

    def noise(self, bucket: Bucket, seed: int = 0) -> np.ndarray:
        """Unit noise for `CAPTIONS` [B, h, w, c]."""
        shape = (len(CAPTIONS), *bucket.latent(self.info.latent_factor), self.info.vae.latent_channels)
        return np.random.default_rng(seed).standard_normal(shape).astype(self.dtype)

    def text(self) -> list[Row]:
        """The text encoders, each with its own tokenizers; for SDXL the pooled text too. Control: captions swapped."""
        tokens = tuple(tokenizer(CAPTIONS) for tokenizer in self.pipe.tokenizers)
        found, expected = call(self.pipe.text, tokens), self.reference.conditions(CAPTIONS)
        if found.pooled is None:
            return self._rows("text encoder", "-", found.states, expected, expected[::-1])
        states, pooled = expected.text_states, expected.text_embeds
        return [
            *self._rows("text encoder", "-", found.states, states, states[::-1]),
            *self._rows("pooled text", "-", found.pooled, pooled, pooled[::-1]),
        ]

    def time_embedding(self) -> Row:
        """The sinusoids of all timesteps against diffusers' own; the error is absolute."""
        config = self.info.unet
        timesteps = np.arange(self.info.schedule.num_train_timesteps)
        width, flip, shift = config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
        expected = reference.time_embedding(timesteps, width, flip_sin_to_cos=flip, shift=shift)
        got = timestep_embedding(jnp.asarray(timesteps, self.dtype), width, flip, shift)
        return self._row("time embedding", "-", "-", float(np.abs(np.asarray(got) - expected).max()))

    def encode(self, bucket: Bucket) -> list[Row]:
        """The first stage's encoder, before anything is drawn, on random pixels. Control: height and width swapped."""
        shape = (len(CAPTIONS), bucket.height, bucket.width, 3)
        pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(self.dtype)
        got = call(self.pipe.vae, pixels, method="moments")
        encode = self.reference.encode
        return self._rows("VAE encode", str(bucket), got, encode(pixels), _swapped(encode, pixels))

    def decode(self, bucket: Bucket) -> list[Row]:
        """The first stage's decoder on unit noise. Control: height and width swapped."""
        latents = self.noise(bucket)
        got = call(self.pipe.vae, latents / self.dtype.type(self.info.vae.scaling_factor), method="decode")
        decode = self.reference.decode
        return self._rows("VAE decode", str(bucket), got, decode(latents), _swapped(decode, latents))

    def unet(self, bucket: Bucket, scaling: Scaling, *against: Scaling) -> list[float]:
        """Errors of one call of the UNet under `scaling`, held against the reference under each of `against`."""
        latents = self.noise(bucket)
        timesteps = np.full(len(CAPTIONS), TIMESTEP, self.dtype)
        states, *added = (self.context,) if isinstance(self.context, np.ndarray) else self.context
        extra = {"added": AddedConditions(*added)} if added else {}
        got = call(self.pipe.unet, latents, timesteps, states, traced=extra, rule=scaling)
        expected = [self.reference.unet_once(latents, TIMESTEP, self.context, **_told(other)) for other in against]
        return [relative_error(got, each) for each in expected]

    def unet_rows(self, bucket: Bucket, scaling: Scaling) -> list[Row]:
        """The UNet's error and, in float64 where the rules are apart, its error against the other rule."""
        error, swapped = self.unet(bucket, scaling, scaling, _other(scaling))
        row = self._row("UNet", str(bucket), scaling.label, error)
        if self.dtype != np.float64 or not self.rules_differ(bucket, scaling):
            return [row]
        return [row, Row("UNet, other rule", row.size, row.rule, swapped, CONTROL * row.bound, control=True)]

    def draw(
        self, bucket: Bucket, scaling: Scaling, *, steps: int, guidance: float, measure_entropy: bool = False
    ) -> Drawn:
        """The whole pipeline on both sides."""
        noise = self.noise(bucket)
        options: dict[str, Any] = {"steps": steps, "guidance": guidance, "measure_entropy": measure_entropy}
        out = self.pipe(
            list(CAPTIONS),
            height=bucket.height,
            width=bucket.width,
            rule=scaling,
            sampler="ddim",
            latents=noise,
            **options,
        )
        expected = self.reference.ddim(noise, CAPTIONS, **_told(scaling), **options)
        if out.images is None:
            raise ValueError("the pipeline returned no images")
        return Drawn(out.images, out.latents, out.entropy, expected)

    def ddim_rows(self, bucket: Bucket, scaling: Scaling, *, steps: int, guidance: float) -> list[Row]:
        """Latents and pictures of DDIM and, where the rules are apart, how far away the other rule ends."""
        drawn = self.draw(bucket, scaling, steps=steps, guidance=guidance)
        error = relative_error(drawn.latents, drawn.expected.latents)
        rows = [
            self._row("DDIM latents", str(bucket), scaling.label, error),
            self._row("DDIM images", str(bucket), scaling.label, image_error(drawn.images, drawn.expected.images)),
        ]
        if self.rules_differ(bucket, scaling):
            other = _other(scaling)
            swapped = self.reference.ddim(
                self.noise(bucket),
                CAPTIONS,
                steps=steps,
                guidance=guidance,
                **_told(other),
            )
            distance = relative_error(drawn.latents, swapped.latents)
            rows.append(
                Row("DDIM, other rule", str(bucket), scaling.label, distance, CONTROL_DDIM * error, control=True)
            )
        return rows

    def rules_differ(self, bucket: Bucket, scaling: Scaling) -> bool:
        """Whether each layer's multiplier is far enough from the other rule's for a control."""
        one, other = (self.info.layer_multipliers(bucket, each) for each in (scaling, _other(scaling)))
        return all(abs(one[layer] - other[layer]) >= CONTROL_MULTIPLIER for layer in one)

    def _rows(self, module: str, size: str, got: Any, expected: np.ndarray, wrong: np.ndarray) -> list[Row]:
        row = self._row(module, size, "-", relative_error(got, expected))
        return [
            row,
            Row(f"{module}, swapped", size, "-", relative_error(got, wrong), CONTROL * row.bound, control=True),
        ]

    def _row(self, module: str, size: str, rule: str, error: float) -> Row:
        return Row(module, size, rule, error, BOUNDS[module, self.dtype.name].limit)


def _swapped(module: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """What the module gives where it takes height for width, and back."""
    return module(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def _other(scaling: Scaling) -> Scaling:
    """A rule that a control takes for `scaling`: the paper's, and for that and any multiplier `original`."""
    papers = scaling.rule in (ScaleRule.ORIGINAL, ScaleRule.CALIBRATED)
    return Scaling(ScaleRule.ENTROPY if papers else ScaleRule.ORIGINAL)


def _told(scaling: Scaling) -> dict[str, Any]:
    """What the reference is told of a rule: its name and its numbers, of which it makes lambda itself."""
    entropy = None if scaling.train_entropy is None else dict(scaling.train_entropy.layers)
    return {"rule": scaling.rule.value, "multiplier": scaling.multiplier, "train_entropy": entropy}


def _entropy_for(scaling: Scaling, train_entropy: EntropyChoice | None) -> EntropyChoice | None:
    """`train_entropy` where the rule is the one that takes it."""
    return train_entropy if scaling.rule is ScaleRule.CALIBRATED else None


def call(
    module: nnx.Module, *arrays: Any, method: str = "__call__", traced: Mapping[str, Any] | None = None, **static: Any
) -> Any:
    """The module's method on arrays or trees of them, compiled with its weights as arguments; NumPy in and out.

    `traced` are arrays by name, `static` everything else by name.
    """
    graph, weights = nnx.split(module)

    def call(weights: nnx.State, arrays: Any, named: Any) -> Any:
        return getattr(nnx.merge(graph, weights), method)(*arrays, **named, **static)

    inputs = jax.tree.map(jnp.asarray, (arrays, dict(traced or {})))
    return jax.tree.map(np.asarray, jax.jit(call)(weights, *inputs))


def _check_torch_opens(info: ModelInfo) -> None:
    """Raises UserError for a converted model, and for one whose weights are Flax's."""
    formats = {part: info.weight_files(part).format for part in info.family.parts}
    if Format.MSGPACK in formats.values():
        raise UserError(f"model {info.name!r} has weights in Flax's msgpack, which PyTorch can't open to compare with")
