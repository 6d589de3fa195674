"""Folders of random weights for the parity tests, and both sides opened on them, each once a session."""

from functools import cache

import pytest
import torch
from parity_cases import SCENES, TRAINING
from transformers.utils import logging

from entscale_jax.parity import random_ldm, random_ldm_upscaler, random_models, random_sdxl, random_upscaler
from entscale_jax.parity.compare import Pair, precision
from entscale_jax.parity.reference import Reference

BUILDERS = {
    "sd1": lambda folder: random_models.build(folder, "sd1", sample_size=TRAINING["sd1"], seed=0),
    "sd2": lambda folder: random_models.build(folder, "sd2", sample_size=TRAINING["sd2"], seed=1),
    "sd2-base": lambda folder: random_models.build(folder, "sd2-base", sample_size=TRAINING["sd2-base"], seed=2),
    "ldm-kl": lambda folder: random_ldm.build(folder, "kl", sample_size=TRAINING["ldm-kl"], seed=0),
    "ldm-vq": lambda folder: random_ldm.build(folder, "vq", sample_size=TRAINING["ldm-vq"], seed=1),
    "upscaler": lambda folder: random_upscaler.build(folder),
    "ldm-upscaler": lambda folder: random_ldm_upscaler.build(folder),
    "sdxl": lambda folder: random_sdxl.build(folder, sample_size=TRAINING["sdxl"]),
}


@pytest.fixture(scope="session", autouse=True)
def _quiet_torch():
    # The models are so small that a second thread only waits for the first.
    torch.set_num_threads(1)
    logging.disable_progress_bar()


class Folders:
    """Model -> its folder, built when it is first asked for."""

    def __init__(self, root):
        self.root = root

    @cache  # noqa: B019
    def __getitem__(self, model):
        return BUILDERS[model](self.root / model)

    def get(self, model, default):
        """As a dict's."""
        return self[model] if model in BUILDERS else default


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The random models."""
    return Folders(tmp_path_factory.mktemp("random_models"))


@pytest.fixture(scope="session")
def references(folders):
    """(family, "float32" or "float64") -> the folder in PyTorch."""
    return {
        (family, dtype): Reference(folders[family], float64=dtype == "float64")
        for family in ("sd1", "sd2")
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
