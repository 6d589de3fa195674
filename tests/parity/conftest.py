"""Folders of random weights for the parity tests, and both sides opened on them, each once a session."""

from functools import cache

import pytest
import torch
from parity_cases import SCENES, TRAINING
from transformers.utils import logging

from entscale_jax.parity import random_models
from entscale_jax.parity.compare import Pair, precision
from entscale_jax.parity.reference import Reference


@pytest.fixture(scope="session", autouse=True)
def _quiet_torch():
    # The models are so small that a second thread only waits for the first.
    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Family -> folder."""
    root = tmp_path_factory.mktemp("random_models")
    return {
        family: random_models.build(root / family, family, sample_size=size, seed=seed)
        for seed, (family, size) in enumerate(TRAINING.items())
    }


@pytest.fixture(scope="session")
def references(folders):
    """(family, "float32" or "float64") -> the folder in PyTorch."""
    return {
        (family, dtype): Reference(folder, float64=dtype == "float64")
        for family, folder in folders.items()
        for dtype in ("float32", "float64")
    }


@pytest.fixture(scope="session")
def open_pair(folders):
    """(model, float64) -> its `Pair`, opened once; to be used within `precision(float64)`."""

    @cache
    def opened(model: str, float64: bool) -> Pair:
        if model == "scenes" and not SCENES.is_dir():
            pytest.skip("entscale_jax/scenes/model is not in this checkout")
        with precision(float64):
            return Pair(folders.get(model, model), float64=float64)

    return opened
