"""Tensors of PyTorch's `.bin`, a pickle, read by PyTorch with everything refused that is not a tensor."""

import pickle
import re
import zipfile
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from .safetensors_file import WORDS, StoredTensor

_REOPEN_BYTES = 2**28
"""What is read of one mapping before its pages are let go."""


def open_pickled(file: Path) -> dict[str, StoredTensor]:
    """Key -> tensor. Raises UserError for a file that holds anything else, or where PyTorch is not installed."""
    pickled = _Pickled(file)
    return {
        key: StoredTensor(file, key, _word(tensor), tuple(tensor.shape), partial(pickled.read, key))
        for key, tensor in pickled.load().items()
    }


class _Pickled:
    """One file, mapped anew when much of it was read: PyTorch keeps the pages of a mapping as long as it lives."""

    def __init__(self, file: Path):
        self._file, self._lock = file, Lock()
        self._tensors: dict[str, Any] = {}
        self._bytes = 0
        # Only the format since 1.6, a zip archive, can be mapped; an older file is held in memory whole.
        self._mapped = file.is_file() and zipfile.is_zipfile(file)

    def load(self) -> dict[str, Any]:
        """The tensors by key, PyTorch's."""
        content = _load(self._file, mapped=self._mapped)
        if not isinstance(content, dict) or not all(hasattr(value, "untyped_storage") for value in content.values()):
            raise UserError(f"{self._file} holds something else than tensors by name: is it a part's weights?")
        self._tensors, self._bytes = content, 0
        return content

    def read(self, key: str) -> np.ndarray:
        """One of them as numpy has it."""
        with self._lock:
            if self._mapped and self._bytes > _REOPEN_BYTES:
                self.load()
            tensor = self._tensors[key].detach()
            self._bytes += tensor.nbytes
        return _to_numpy(tensor)


def _load(file: Path, *, mapped: bool) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is a pickle, which PyTorch reads, and PyTorch is not installed: pip install 'entscale-jax[parity]'"
        ) from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} is refused: its pickle asks for {asked[1].rstrip('.')}, which is no tensor and could run code"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} can't be read as weights of PyTorch ({reason}): fetch it again") from None


def _word(tensor: Any) -> str:
    """safetensors' word for the dtype, or PyTorch's own where that has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        return WORDS[jnp.dtype(name)]
    except (TypeError, KeyError):
        return name


def _to_numpy(tensor: Any) -> np.ndarray:
    # numpy has no bfloat16 of its own, so PyTorch hands on its bits.
    if tensor.element_size() == 2 and str(tensor.dtype).endswith("bfloat16"):
        import torch

        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()
