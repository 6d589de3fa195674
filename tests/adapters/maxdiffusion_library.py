"""What the tests of MaxDiffusion share: its classes, the stand-in's or the real ones, and attention by hand."""

import math
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from entscale_jax.errors import UserError

PATH = os.environ.get("MAXDIFFUSION_PATH")
HEADS, WIDTH, N, T = 2, 8, 24, 64
CONTEXT = 384
"""Tokens of cross-attention: the flash kernels want a multiple of 128 and of N."""
BOUND = 2e-5
"""On outputs of order one, float32 against float64. Measured on the real package: 8.1e-6 at most."""
MULTIPLIER = math.sqrt(math.log(N) / math.log(T))
FIXED = {"rule": "fixed", "multiplier": 1.3}


DISTINCT = ("dot_product", "flash", "tokamax_ring", "ulysses_ring_custom_fixed_m", "cudnn_flash_te")
"""Kernels of which the stand-in has functions that differ."""


def quick(kernels):
    """Of the stand-in, one kernel a function; all of them in the full tests, and of the real package."""
    return [
        kernel if PATH or kernel in DISTINCT else pytest.param(kernel, marks=pytest.mark.full) for kernel in kernels
    ]


class Library(SimpleNamespace):
    """Hashed by identity."""

    __hash__ = object.__hash__


def open_library() -> "Library":
    """The classes, the stand-in's or the real ones."""
    if not PATH:
        import maxdiffusion_stand_in as stand_in
        import maxdiffusion_unet_stand_in as unet_stand_in

        classes = {**vars(stand_in), **vars(unet_stand_in)}
        return Library(**classes, mesh=None, blocks=None, real=False)
    sys.path.insert(0, PATH)
    from maxdiffusion.models import attention_flax, unet_2d_condition_flax
    from maxdiffusion.models.flux.transformers import transformer_flux_flax as flux
    from maxdiffusion.models.wan.transformers.transformer_wan import WanModel
    from maxdiffusion.models.z_image.transformer_z_image import ZImageAttention

    sides = dict.fromkeys(("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"), 128)
    blocks = attention_flax.splash_attention_kernel.BlockSizes(
        **sides, block_kv_dkv_compute=128, block_q_dq=128, block_kv_dq=128
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), ("data", "fsdp", "context", "tensor"))
    return Library(
        **vars(attention_flax),
        FlaxUNet2DConditionModel=unet_2d_condition_flax.FlaxUNet2DConditionModel,
        NNXFluxAttention=flux.NNXFluxAttention,
        FluxSingleTransformerBlock=flux.FluxSingleTransformerBlock,
        ZImageAttention=ZImageAttention,
        WanModel=WanModel,
        mesh=mesh,
        blocks=blocks,
        real=True,
    )


def around(library):
    """What the real kernels want around them: TPU kernels interpreted, a mesh, and JAX's own rules of dtypes."""
    from jax.experimental.pallas import tpu

    shardy = jax.config.jax_use_shardy_partitioner
    yield _restored("jax_use_shardy_partitioner", shardy)
    yield jax.numpy_dtype_promotion("standard")
    yield jax.numpy_rank_promotion("allow")
    yield tpu.force_tpu_interpret_mode()
    yield nn.logical_axis_rules((("activation_batch", "data"),))
    yield library.mesh


@contextmanager
def _restored(name, value):
    yield
    jax.config.update(name, value)


class CudnnLayer:
    """Stands for the layer of Transformer Engine, which takes its scale when it is made: [B T N H] in and out."""

    def __init__(self, scale_factor, **_):
        self.scale_factor = scale_factor

    def apply(self, variables, query, key, value, mask=None):
        logits = jnp.einsum("btnh,bsnh->bnts", query, key) * self.scale_factor
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits, axis=-1), value)


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def plain(query, key, value, scale):
    """softmax(scale q k) v in float64, of [B T D]."""
    split = (np.asarray(array, np.float64).reshape(*array.shape[:2], HEADS, WIDTH) for array in (query, key, value))
    query, key, value = split
    logits = scale * np.einsum("btnh,bsnh->bnts", query, key)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights, value).reshape(*value.shape[:1], -1, HEADS * WIDTH)


def scale(tokens=N, train_tokens=T):
    """The paper's Eq. 7."""
    return math.sqrt(math.log(tokens) / math.log(train_tokens) / WIDTH)


def check(adapted, original, rule):
    """`adapted` is `rule` to BOUND, and the scale of training misses by 100 times that; `pytest -s` shows both."""
    error, control = np.abs(adapted - rule).max(), np.abs(adapted - original).max()
    print(f"error {error:.1e}, the scale of training {control:.1e}", end=" ")
    assert error <= BOUND
    assert control >= 100 * max(error, BOUND)


def linen_operation(library, kernel, **options):
    return library.AttentionOp(
        mesh=library.mesh,
        attention_kernel=kernel,
        scale=WIDTH**-0.5,
        heads=HEADS,
        dim_head=WIDTH,
        flash_min_seq_length=0,
        flash_block_sizes=library.blocks,
        ulysses_shards=1,
        **options,
    )


def attention(library, kernel, **options):
    """A `FlaxAttention` with its parameters."""
    module = library.FlaxAttention(
        HEADS * WIDTH,
        HEADS,
        WIDTH,
        attention_kernel=kernel,
        flash_min_seq_length=0,
        flash_block_sizes=library.blocks,
        mesh=library.mesh,
        **options,
    )
    return module, nn.meta.unbox(module.init(jax.random.key(0), random(1, 1, N, HEADS * WIDTH)))


def expected(params, hidden, context, scale):
    """What `FlaxAttention` computes, in float64."""
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), params["params"])
    query, key, value = (
        np.asarray(array, np.float64) @ params[name]["kernel"]
        for array, name in ((hidden, "to_q"), (context, "to_k"), (context, "to_v"))
    )
    return plain(query, key, value, scale) @ params["to_out_0"]["kernel"] + params["to_out_0"]["bias"]


def hidden_states(tokens=N):
    """Large enough for attention to have structure, and a batch of one: JAX interprets no vmapped splash kernel."""
    return 3.0 * random(2, 1, tokens, HEADS * WIDTH)


def nnx_operation(library, kernel, **options):
    return library.NNXAttentionOp(
        mesh=library.mesh,
        attention_kernel=kernel,
        scale=WIDTH**-0.5,
        heads=HEADS,
        dim_head=WIDTH,
        flash_block_sizes=library.blocks,
        ulysses_shards=1,
        **options,
    )


def is_query(path, attention=""):
    """Whether a parameter is of a query projection, of that attention or any."""
    names = [part.key for part in path]
    return "to_q" in names and (not attention or attention in names)


def message(call):
    """The one line that is said."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)
