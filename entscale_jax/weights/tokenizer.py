"""Captions to token ids, by the tokenizer files in a model's folder."""

import logging
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Int32

from ..errors import UserError


class TokenizerKind(StrEnum):
    """transformers' class."""

    CLIP = "CLIPTokenizer"
    BERT = "BertTokenizer"


_VOCABULARIES = {TokenizerKind.CLIP: "vocab.json", TokenizerKind.BERT: "vocab.txt"}


class Tokenizer:
    """A tokenizer as diffusers' pipelines use it: a fixed length, padded, and cut with a warning where too long."""

    def __init__(self, folder: Path, length: int, kind: TokenizerKind = TokenizerKind.CLIP):
        transformers = _transformers()
        # transformers makes a tokenizer that knows no word of a folder that holds none.
        names = ("tokenizer.json", _VOCABULARIES[kind])
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{folder} holds no {kind}: it has neither {' nor '.join(names)}")
        try:
            self._tokenizer = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
        except Exception as error:  # what tokenizers raises is of no narrower class
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{folder} holds no {kind} that can be read ({reason}): fetch it again") from None
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
        for caption, whole in zip(captions, self._tokenizer(list(captions), verbose=False)["input_ids"], strict=True):
            self._warn_if_cut(caption, whole)
        return np.asarray(encoded, np.int32)

    def _warn_if_cut(self, caption: str, whole: list[int]) -> None:
        if len(whole) > self.length:
            # The last id is the end's, which a caption keeps when it is cut; BERT marks the middle of a word by ##.
            rest = self._tokenizer.decode(whole[self.length - 1 : -1]).strip().removeprefix("##")
            warnings.warn(
                f"the text encoder reads {self.length} tokens, the rest is cut: {rest!r} of {caption!r}", stacklevel=4
            )


def _transformers() -> ModuleType:
    """The library, of which only tokenizers are used: that it has no models without PyTorch goes unsaid."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_other_than_of_models)
    try:
        import transformers  # takes a second or two
    finally:
        logger.removeFilter(_other_than_of_models)
    return transformers


def _other_than_of_models(record: logging.LogRecord) -> bool:
    return "Models won't be available" not in record.getMessage()
