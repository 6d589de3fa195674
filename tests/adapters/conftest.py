"""MaxDiffusion and PyTorch's models as their tests want them; see `maxdiffusion_library` and `torch_models`."""

import sys
import types
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from maxdiffusion_library import CudnnLayer, around, open_library
from torch_models import FAMILIES


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The models are so small that a second thread only waits for the first.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Family -> (the reference in float64, the same UNet with diffusers' own processors, the folder)."""

    @cache
    def of(family):
        reference, build = FAMILIES[family]
        folder = build(tmp_path_factory.mktemp("torch") / family)
        unet = UNet2DConditionModel.from_pretrained(str(folder), subfolder="unet").double().eval()
        right = reference(folder, float64=True)
        # Its sinusoids are in float64; diffusers' own are in float32 whatever the dtype.
        for name in ("time_proj", "add_time_proj"):
            if hasattr(unet, name):
                setattr(unet, name, getattr(right.unet, name))
        return right, unet, folder

    return of


@pytest.fixture(scope="session")
def library():
    """MaxDiffusion's classes, the stand-in's or the real ones."""
    return open_library()


@pytest.fixture
def surroundings(library, monkeypatch):
    """A layer of cuDNN for kernels that ask for one, and what the real kernels want around them."""
    layer = types.ModuleType("transformer_engine.jax.flax.transformer")
    layer.DotProductAttention = CudnnLayer
    for name in ("transformer_engine", "transformer_engine.jax", "transformer_engine.jax.flax"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, layer.__name__, layer)
    with ExitStack() as stack:
        if library.real:
            for context in around(library):
                stack.enter_context(context)
        yield
