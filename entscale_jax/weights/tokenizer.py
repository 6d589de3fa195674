"""Captions to token ids, by the tokenizer files in a model's folder."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from ..errors import UserError


class Tokenizer:
    """CLIP's tokenizer as Stable Diffusion uses it: a fixed length, padded, and cut with a warning where too long."""

    def __init__(self, folder: Path, length: int):
        from transformers import CLIPTokenizer  # takes a second or two

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder} holds no CLIP tokenizer that can be read: {error}".splitlines()[0]) from None
        self.length = length

    def __call__(self, captions: Sequence[str]) -> Int32[np.ndarray, "batch length"]:
        """Ids of each caption, between start and end, padded to `length`."""
        encoded = self._tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_overflowing_tokens=False,
        )["input_ids"]
        ids = np.asarray(encoded, np.int32)
        for caption, row in zip(captions, ids, strict=True):
            self._warn_if_cut(caption, row)
        return ids

    def _warn_if_cut(self, caption: str, row: Int32[np.ndarray, "length"]) -> None:
        # Only a full row can have been cut; a caption of exactly this length is looked at once more.
        if row[-2] != self._tokenizer.pad_token_id and len(self._tokenizer(caption)["input_ids"]) > self.length:
            warnings.warn(f"the text encoder reads {self.length} tokens, the rest is cut: {caption!r}", stacklevel=4)
