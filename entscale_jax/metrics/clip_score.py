"""CLIP score: how well pictures fit their captions, by the cosine of their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from ..errors import UserError
from ..models.clip import CLIPConfig, CLIPModel, unit
from ..weights.files import TRANSFORMERS, WeightFiles, find_weights
from ..weights.folder import read_json
from ..weights.hub import find_single_model
from ..weights.tokenizer import Tokenizer
from ..weights.torch_format import AbstractRngs, Match, load_match, match_parameters
from .clip_images import ClipImages
from .extractor import file_hash, filled_batches
from .figure import Figure, bootstrap_interval

Cosines = Float[np.ndarray, "_count"]


@dataclass(frozen=True)
class ClipFolder:
    """What a CLIP's folder holds, all but the values of its weights."""

    images: ClipImages
    tokenizer: Tokenizer
    files: WeightFiles
    match: Match
    others: tuple[Path, ...]
    """Configs and the tokenizer's files."""


def open_clip(model: str | Path, *, dtype: jnp.dtype | type = jnp.float32, allow_pickle: bool = False) -> ClipFolder:
    """A folder that transformers' `CLIPModel` and `CLIPProcessor` saved, or a hub id of one; touches no device.

    Raises UserError for a folder that is incomplete or of another model.
    """
    folder = find_single_model(model, allow_pickle=allow_pickle)
    config = CLIPConfig.from_json(read_json(folder / "config.json", str(model)))
    images = ClipImages.from_folder(folder)
    if images.crop != (config.vision.image_size,) * 2:
        raise UserError(
            f"{folder}: preprocessor_config.json crops to {images.crop[1]}x{images.crop[0]}, the model takes "
            f"{config.vision.image_size}x{config.vision.image_size}"
        )
    files = find_weights(folder, TRANSFORMERS, allow_pickle=allow_pickle)
    match = match_parameters(lambda: CLIPModel(config, rngs=AbstractRngs(), dtype=dtype), files)
    others = sorted(file for file in folder.glob("*") if file.suffix in (".json", ".txt"))
    return ClipFolder(images, Tokenizer(folder, config.text.max_position_embeddings), files, match, tuple(others))


@dataclass(frozen=True)
class ClipScorer:
    """A CLIP model with its tokenizer and its preprocessing."""

    model: CLIPModel
    images: ClipImages
    tokenizer: Tokenizer
    hash: str
    """Of weights, configs and tokenizer."""

    @property
    def identity(self) -> str:
        """Names weights, resize and crop: cosines of equal identities compare."""
        return f"clip {self.hash[:16]}, resize {self.images.resize}, crop {self.images.crop[1]}x{self.images.crop[0]}"

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, dtype: jnp.dtype | type = jnp.float32, allow_pickle: bool = False
    ) -> "ClipScorer":
        """Of what `open_clip` opens. Raises UserError as that does."""
        found = open_clip(model, dtype=dtype, allow_pickle=allow_pickle)
        module = load_match(found.match, dtype)
        assert isinstance(module, CLIPModel)
        return cls(module, found.images, found.tokenizer, file_hash(*found.files.files, *found.others))

    def __call__(self, images: Sequence[np.ndarray], captions: Sequence[str], *, batch: int = 32) -> Cosines:
        """The cosine of each picture, uint8 [height, width, 3] of any size, with its caption.

        Raises UserError for unequal counts.
        """
        check_captions(images, captions)
        seen = self.see(images, batch=batch)
        return np.einsum("id,id->i", seen, self.read(captions, batch=batch)).astype(np.float64)

    def see(self, images: Sequence[np.ndarray], *, batch: int = 32) -> Float[np.ndarray, "_count _width"]:
        """A vector of length 1 for each picture."""
        found = []
        for start in range(0, len(images), batch):
            pixels = np.stack([self.images(image) for image in images[start : start + batch]])
            found += [np.asarray(_see(self.model, part))[:count] for part, count in filled_batches(pixels, batch)]
        return np.concatenate(found) if found else np.zeros((0, self.model.config.projection_dim), np.float32)

    def read(self, captions: Sequence[str], *, batch: int = 32) -> Float[np.ndarray, "_count _width"]:
        """A vector of length 1 for each caption."""
        tokens = self.tokenizer(captions)
        found = [np.asarray(_read(self.model, part))[:count] for part, count in filled_batches(tokens, batch)]
        return np.concatenate(found) if found else np.zeros((0, self.model.config.projection_dim), np.float32)


@nnx.jit
def _see(model: CLIPModel, pixels):
    return unit(model.see(pixels.astype(model.logit_scale.get_value().dtype)))


@nnx.jit
def _read(model: CLIPModel, tokens):
    return unit(model.read(tokens))


def clip_scores(cosines: Cosines) -> Cosines:
    """100 max(cos, 0) for each picture, of which the mean is the score.

    Source: Hessel et al. 2021 (arXiv 2104.08718), equation 1, with the weight 100 of the tools in use for its 2.5.
    """
    return 100 * np.maximum(cosines, 0)


def clip_figure(cosines: Cosines, *, extractor: str, resize: str, name: str = "clip", clipped: bool = True) -> Figure:
    """The mean score with its interval; of plain cosines where `clipped` is False. Raises UserError for no pictures."""
    if not len(cosines):
        raise UserError("a CLIP score of no pictures: give one or more")
    interval = bootstrap_interval(clip_scores(cosines) if clipped else np.asarray(cosines))
    return Figure(
        name=name if clipped else f"{name}_cosine",
        value=interval.mean,
        count=len(cosines),
        resize=resize,
        extractor=extractor,
        interval=interval,
    )


def check_captions(images: Sequence[np.ndarray], captions: Sequence[str]) -> None:
    """Raises UserError where pictures and captions are not as many."""
    if len(images) != len(captions):
        raise UserError(f"{len(images)} pictures and {len(captions)} captions: give one caption a picture")
