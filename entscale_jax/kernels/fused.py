"""Kernels of others in which no logit is seen from outside: cuDNN's on CUDA, Pallas' splash attention on TPU.

They give the output and each row's log-sum-exp. Mean entropy follows from these by an identity; see `mean_entropy`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LANES = 128
"""The TPU's kernel takes blocks of a multiple of so many tokens, and values of such a width."""


def has_cudnn() -> bool:
    """Whether JAX found the cuDNN that its kernel needs."""
    from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

    try:
        check_cudnn_version()
    except RuntimeError:
        return False
    return True


def cudnn(query: Array, key: Array, value: Array, *, scale: float) -> Float[Array, "B T N H"]:
    """cuDNN's flash attention, by `jax.nn`."""
    return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation="cudnn")


def cudnn_with_log_sum_exp(
    query: Array, key: Array, value: Array, *, scale: float
) -> tuple[Array, Float[Array, "B T N"]]:
    """The same, with each row's log-sum-exp in float32."""
    # The public function rounds it to the inputs' dtype. In bfloat16 that is up to 0.03 nats, and where attention is
    # even all rows are off alike, so their mean is too.
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    found: Any = dot_product_attention(query, key, value, scale=scale, return_residual=True)
    out, log_sum_exp = found
    return out, jnp.moveaxis(log_sum_exp, 1, 2)


def splash(query: Array, key: Array, value: Array, *, scale: float, interpret: bool = False) -> Array:
    """Pallas' splash attention for TPUs, [B T N H]; with `interpret`, emulated on any device."""
    return _splash(query, key, value, scale, interpret=interpret, save_residuals=False)


def splash_with_log_sum_exp(
    query: Array, key: Array, value: Array, *, scale: float, interpret: bool = False
) -> tuple[Array, Float[Array, "B T N"]]:
    """The same, with each row's log-sum-exp in float32. It has no gradient."""
    out, (log_sum_exp, *_) = _splash(query, key, value, scale, interpret=interpret, save_residuals=True)
    return out, jnp.moveaxis(log_sum_exp, 1, 2)[:, : query.shape[1]]


WithLogSumExp = Callable[..., tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]]


def mean_entropy(kernel: WithLogSumExp, query: Array, key: Array, *, scale: float) -> Float[Array, "B N"]:
    """Mean entropy over rows, in nats, by a kernel that shows no logits.

    `H_i = lse_i - scale q_i . sum_j A_ij k_j`: keys stand in for values. Two large numbers cancel, so in bfloat16 a row
    is off by 4e-2 nats and more; over rows these errors average out.
    """
    mixed, log_sum_exp = kernel(query, key, key, scale=scale)
    wide = (array.astype(jnp.float32) for array in (query, mixed))
    expected = scale * jnp.einsum("BTNH,BTNH->BTN", *wide)
    return (log_sum_exp.astype(jnp.float32) - expected).mean(axis=1)


def fill_blocks(array: Float[Array, "B N T H"]) -> Float[Array, "B N rows H"]:
    """Tokens filled up to whole blocks."""
    length = array.shape[2]
    return jnp.pad(array, ((0, 0), (0, 0), (0, -length % block_size(length)), (0, 0)))


def block_size(length: int) -> int:
    """The largest block that fills up `length` tokens by no more than an eighth, or else the least. Not measured."""
    return next((size for size in (512, 256) if -length % size <= length // 8), LANES)


def _splash(query: Array, key: Array, value: Array, scale: float, *, interpret: bool, save_residuals: bool) -> Any:
    """The kernel takes whole blocks and no scale.

    So tokens are filled up, and those that fill are another segment, whose keys the softmax of a true token does not
    see; queries are scaled in float32.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    length, heads, total = query.shape[1], query.shape[2], key.shape[1]
    scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)
    # Up to JAX 0.7 the kernel refuses values whose width is no multiple of 128, which a TPU's registers hold anyway.
    arrays = [fill_blocks(jnp.moveaxis(array, 2, 1)) for array in (scaled, key, _widened(value))]
    rows, columns = arrays[0].shape[2], arrays[1].shape[2]
    attend = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([pallas.FullMask((rows, columns))] * heads),  # pyright: ignore[reportArgumentType]
        block_sizes=_block_sizes(block_size(length), block_size(total)),
        save_residuals=save_residuals,
        interpret=interpret,
    )
    segments = pallas.SegmentIds(q=_segments(length, rows), kv=_segments(total, columns))
    found: Any = jax.vmap(attend, in_axes=(0, 0, 0, None))(*arrays, segments)
    out, residuals = found if save_residuals else (found, None)
    out = jnp.moveaxis(out, 1, 2)[:, :length, :, : value.shape[3]]
    return (out, residuals) if save_residuals else out


def _block_sizes(rows: int, columns: int) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    return pallas.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )


def _widened(value: Array) -> Array:
    return jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, -value.shape[3] % LANES)))


def _segments(true: int, rows: int) -> Array:
    return jnp.asarray(np.arange(rows) >= true, jnp.int32)
