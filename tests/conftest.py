"""The switches of every test: strict shapes and dtypes, warnings as errors, and one host of several CPU devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiling is most of what tests do, and takes half the time without XLA's optimisations; `make test-full` has them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from tiny_model import write_tiny_ldm_upscaler, write_tiny_model, write_tiny_upscaler

from entscale_jax import TextToImage

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A small untrained model: two levels, trained (were it trained) at 32x32 pixels with 4 to a latent cell."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """That model, opened."""
    return TextToImage.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory):
    """A small untrained CLIP of pictures of 32x32, of transformers."""
    from tiny_clip import write_tiny_clip

    folder = tmp_path_factory.mktemp("tiny_clip")
    write_tiny_clip(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_upscaler_folder(tmp_path_factory):
    """A small untrained model that enlarges pictures by four."""
    return write_tiny_upscaler(tmp_path_factory.mktemp("tiny_upscaler"))


@pytest.fixture(scope="session")
def tiny_ldm_upscaler_folder(tmp_path_factory):
    """Another, without text."""
    return write_tiny_ldm_upscaler(tmp_path_factory.mktemp("tiny_ldm_upscaler"))
