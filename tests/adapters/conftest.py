"""MaxDiffusion as its tests want it; see `maxdiffusion_library`."""

import sys
import types
from contextlib import ExitStack

import pytest
from maxdiffusion_library import CudnnLayer, around, open_library


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
