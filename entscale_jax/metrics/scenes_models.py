"""The networks trained on scenes, as they ship: for `scenes_fid` and `scenes_kid`, and for `scenes_clip`.

They stand in for Inception and CLIP where pictures are of scenes: small, so that a few hundred pictures suffice, and
read at the size that they were drawn at, without a resize that would change what an object's size in pixels means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from ..weights.tokenizer import Tokenizer
from ..weights.torch_format import AbstractRngs, load_parameters
from .clip_score import Cosines, check_captions
from .extractor import Extractor, check_pictures, file_hash, filled_batches
from .scenes_networks import ContrastConfig, ExtractorConfig, ScenesContrast, ScenesExtractor

FOLDER = Path(__file__).parent / "scenes"
EXTRACTOR, CONTRAST = "extractor.safetensors", "contrast.safetensors"
_TOKENIZER = Path(__file__).parents[1] / "scenes" / "model" / "tokenizer"
RESIZE = "none"


def load_extractor(file: Path = FOLDER / EXTRACTOR, config: ExtractorConfig | None = None) -> ScenesExtractor:
    """The network with its weights. Raises UserError where the file holds others."""
    module = load_parameters(lambda: ScenesExtractor(config or ExtractorConfig(), rngs=AbstractRngs()), file)
    assert isinstance(module, ScenesExtractor)
    return module


def scenes_extractor(file: Path = FOLDER / EXTRACTOR) -> Extractor:
    """32 features of pictures of scenes of any size."""
    module = load_extractor(file)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(_extract(module, jnp.asarray(images)))

    return Extractor("scenes", file_hash(file), module.config.features, RESIZE, run)


@dataclass(frozen=True)
class ScenesScorer:
    """The contrastive model with the built-in model's tokenizer."""

    model: ScenesContrast
    tokenizer: Tokenizer
    hash: str
    """Of weights and tokenizer."""

    @property
    def identity(self) -> str:
        """Names weights and resize: cosines of equal identities compare."""
        return f"scenes_clip {self.hash[:16]}, resize {RESIZE}"

    @classmethod
    def load(cls, file: Path = FOLDER / CONTRAST, tokenizer: Path = _TOKENIZER) -> "ScenesScorer":
        """As it ships. Raises UserError where the file holds other weights."""
        module = load_parameters(lambda: ScenesContrast(ContrastConfig(), rngs=AbstractRngs()), file)
        assert isinstance(module, ScenesContrast)
        length = module.config.text.max_position_embeddings
        return cls(module, Tokenizer(tokenizer, length), file_hash(file, *sorted(tokenizer.glob("*"))))

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
        for alike in _by_size(images):
            found += [
                np.asarray(_see(self.model, jnp.asarray(part)))[:count] for part, count in filled_batches(alike, batch)
            ]
        return np.concatenate(found) if found else self._nothing

    def read(self, captions: Sequence[str], *, batch: int = 32) -> Float[np.ndarray, "_count _width"]:
        """A vector of length 1 for each caption."""
        if not captions:
            return self._nothing
        tokens = self.tokenizer(captions)
        found = [
            np.asarray(_read(self.model, jnp.asarray(part)))[:count] for part, count in filled_batches(tokens, batch)
        ]
        return np.concatenate(found)

    @property
    def _nothing(self) -> np.ndarray:
        return np.zeros((0, self.model.config.text.projection_dim), np.float32)


def _by_size(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of neighbours of one size."""
    for _, alike in groupby(images, key=np.shape):
        pictures = np.stack(list(alike))
        check_pictures(pictures)
        yield pictures


@nnx.jit
def _extract(model: ScenesExtractor, images: jax.Array) -> jax.Array:
    return model(images)


@nnx.jit
def _see(model: ScenesContrast, images: jax.Array) -> jax.Array:
    return model.see(images)


@nnx.jit
def _read(model: ScenesContrast, tokens: jax.Array) -> jax.Array:
    return model.read(tokens)
