"""What looks at pictures: a function of batches with a name and a hash, so that a figure can say who looked."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import UserError

Features = Float[np.ndarray, "_count _features"]


@dataclass(frozen=True)
class Extractor:
    """Pictures to features."""

    name: str
    """How its columns begin: `scenes`, or nothing for Inception."""
    hash: str
    """Of its weights."""
    width: int
    """Of a feature."""
    resize: str
    """How pictures are brought to its size; `none` where it takes any."""
    run: Callable[[np.ndarray], np.ndarray]
    """A batch of one size to features. Batches are filled up, so it meets few shapes."""

    @property
    def identity(self) -> str:
        """Names weights and resize: features of equal identities compare."""
        return f"{self.name or 'inception'} {self.hash[:16]}, resize {self.resize}"

    def __call__(self, images: np.ndarray, *, batch: int = 32) -> Features:
        """Features of pictures of one size, uint8 [batch, height, width, 3], `batch` at a time.

        Raises UserError for pictures of another type.
        """
        check_pictures(images)
        found = [self.run(part)[:count] for part, count in filled_batches(images, batch)]
        return np.concatenate(found) if found else np.zeros((0, self.width), np.float32)


def check_pictures(images: np.ndarray) -> None:
    """Raises UserError for what is no batch of pictures."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        what = f"{images.dtype}{list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UserError(f"pictures are {what}: give a NumPy array uint8[batch, height, width, 3]")


def filled_batches(rows: np.ndarray, batch: int) -> Iterable[tuple[np.ndarray, int]]:
    """Pieces of `batch` rows, the last filled up with its last row; beside each how many of its rows are its own."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        count = len(part)
        spare = np.broadcast_to(part[-1:], (batch - count, *part.shape[1:]))
        yield (np.concatenate([part, spare]) if count < batch else part), count


def file_hash(*files: Path) -> str:
    """SHA-256 over files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()
