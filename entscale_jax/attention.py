"""Attention with a static scale, its kernels, and its exact entropy.

Letters are those of `jax.nn`: B batch, T query positions, S key and value positions, N heads, H width of one head.
The paper's N and T, token counts at the size drawn and in training, are the words `tokens` and `train_tokens`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .errors import UserError
from .kernels import fused, plain
from .kernels.plain import Statistics, accumulator
from .scales import ScaleRule, Scaling

__all__ = [
    "IMPLEMENTATIONS",
    "EntropyScaledAttention",
    "Record",
    "Statistics",
    "accumulator",
    "attention_entropy",
    "attention_mean_entropy",
    "attention_statistics",
    "attention_with_statistics",
    "dot_product_attention",
]

Record = Callable[[str, Float[Array, "B N"], Float[Array, "B N"]], None]
"""Takes a layer's name, its mean entropy and its mean logit gap per image and head, in nats, while tracing."""


@dataclass(frozen=True)
class _Call:
    """What a kernel is chosen by, all of it known while tracing."""

    platform: str
    """`cpu`, `cuda`, `tpu` or another of JAX's."""
    capability: float
    """Of a CUDA device: 9.0 is Hopper; 0 elsewhere."""
    has_cudnn: bool
    """Whether JAX found cuDNN, which a CUDA device can be without."""
    dtype: jnp.dtype
    head_dim: int
    tokens: int
    """Keys of a row."""
    logits: int
    """Of the whole call."""


def _always(call: _Call) -> str | None:
    return None


def _cudnn_refuses(call: _Call) -> str | None:
    """Source: `check_is_flash_attention` of jax 0.10's cuDNN bindings."""
    widest = 256 if call.capability >= 9.0 else 128
    if call.platform != "cuda":
        return f"it needs a CUDA device, and this is {call.platform}"
    if not call.has_cudnn:
        return "it needs cuDNN, which JAX did not find"
    if call.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, not {call.dtype.name}"
    if call.head_dim % 8 or call.head_dim > widest:
        return f"it takes head widths that 8 divides, up to {widest} on this device, not {call.head_dim}"
    return None


def _splash_refuses(call: _Call) -> str | None:
    if call.platform != "tpu":
        return f"it needs a TPU, and this is {call.platform}"
    if call.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it takes bfloat16 and float32, not {call.dtype.name}"
    return None


def _chunks_pay(call: _Call) -> bool:
    """Whether all logits at once leave a CPU's cache, or are 1 GiB elsewhere. Measured: benchmarks/attention.py."""
    return call.logits > (2**21 if call.platform == "cpu" else 2**28)


@dataclass(frozen=True)
class _Kernel:
    refuses: Callable[[_Call], str | None]
    """Why it can't run, None where it can."""
    pays: Callable[[_Call], bool]
    """Whether it is the one to take where it can run and no kernel above it does."""
    rows: bool = True
    """Whether it shows the logits of rows."""


_KERNELS = {
    "cudnn": _Kernel(_cudnn_refuses, lambda call: True, rows=False),
    # Below one block of keys, such as a caption's, filling up to it costs more than one product of all.
    "tpu_splash": _Kernel(_splash_refuses, lambda call: call.tokens >= fused.LANES, rows=False),
    "chunked": _Kernel(_always, _chunks_pay),
    "xla": _Kernel(_always, lambda call: True),
}
"""The table of kernels; `implementation=None` takes the first that runs and pays."""
IMPLEMENTATIONS = tuple(_KERNELS)


def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """`softmax(scale * query . key) value`, the softmax in float32 or, for float64 inputs, in float64.

    Args:
        query: queries, one row a token.
        key: keys.
        value: values.
        scale: a Python float, so that it is a literal of the compiled program; anything else is a TypeError.
        implementation: `"xla"` forms all logits at once, `"chunked"` a block of them at a time; `"cudnn"` is that of
            CUDA, for half precision, `"tpu_splash"` that of TPUs. None chooses by device, dtype, head width and tokens.

    Source: Eq. 1 and 2 of the paper; layout and letters of `jax.nn.dot_product_attention`.
    Raises UserError for an implementation that is unknown or can't run here.
    """
    check_scale(scale)
    match _choose(implementation, query, key):
        case "cudnn":
            return fused.cudnn(query, key, value, scale=scale)
        case "tpu_splash":
            return fused.splash(query, key, value, scale=scale)
        case kernel:
            return plain.attend(query, key, value, scale=scale, blocks=kernel == "chunked")


def attention_with_statistics(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N H"], Statistics]:
    """What `dot_product_attention` and `attention_statistics` return, in one pass where the kernel shows its rows."""
    check_scale(scale)
    kernel = _choose(implementation, query, key)
    if _KERNELS[kernel].rows:
        return plain.attend_and_measure(query, key, value, scale=scale, blocks=kernel == "chunked")
    out = dot_product_attention(query, key, value, scale=scale, implementation=kernel)
    return out, attention_statistics(query, key, scale=scale)


def attention_entropy(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "B N T"]:
    """`-sum_j A_ij log A_ij` of every attention row, in nats, without holding more than a block of rows.

    Computed as `log sum exp(l) - sum A l` with l the logits less their maximum, in float32 or, for float64 inputs, in
    float64. Source: the paper's Ent(A_i), Eq. 2. Raises UserError for a kernel that shows no rows: see
    `attention_mean_entropy`.
    """
    return attention_statistics(query, key, scale=scale, implementation=implementation).entropy


def attention_statistics(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> Statistics:
    """Entropy and logit gap of every attention row, in nats, without holding more than a block of rows."""
    check_scale(scale)
    kernel = _choose(implementation, query, key, rows=True)
    return plain.measure(query, key, scale=scale, blocks=kernel == "chunked")


def attention_mean_entropy(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "B N"]:
    """The mean over rows of `attention_entropy`, by any kernel.

    Kernels that show no rows give it by `fused.mean_entropy`, within 1e-2 nats in bfloat16; None takes no such kernel.
    """
    check_scale(scale)
    if implementation is None or _KERNELS[_choose(implementation, query, key)].rows:
        return attention_entropy(query, key, scale=scale, implementation=implementation).mean(axis=-1)
    kernel = fused.cudnn_with_log_sum_exp if implementation == "cudnn" else fused.splash_with_log_sum_exp
    return fused.mean_entropy(kernel, query, key, scale=scale)


class EntropyScaledAttention(nnx.Module):
    """Multi-head self-attention whose scale follows its token count; `train_tokens` and `rule` are static.

    Children are named as in diffusers (`to_q`, `to_k`, `to_v`, `to_out.0`), so its weights load unchanged.
    Inputs and outputs are [B T D].
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_dim: int,
        *,
        train_tokens: int,
        rule: Scaling | ScaleRule | str = ScaleRule.ENTROPY,
        level: int = 0,
        dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_dim = heads, head_dim
        self.train_tokens, self.rule, self.level = train_tokens, Scaling.of(rule), level
        self.layer = "attn1"
        self.recorded: int | None = None
        self.to_q, self.to_k, self.to_v, self.to_out = projections(features, features, heads * head_dim, dtype, rngs)

    def scale(self, tokens: int, rule: Scaling | None = None) -> float:
        """The scale at `tokens` tokens, under `rule` or else the module's own."""
        return (rule or self.rule).scale_at(self.level, tokens, self.train_tokens, self.head_dim, self.layer)

    def __call__(
        self, hidden: Float[Array, "B T D"], rule: Scaling | None = None, record: Record | None = None
    ) -> Float[Array, "B T D"]:
        """Attends over all tokens of `hidden`; hands each head's mean entropy and logit gap to `record`.

        Of the batch's first `recorded` pictures only, where that is set.
        """
        query, key, value = (split_heads(to(hidden), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        scale = self.scale(hidden.shape[1], rule)
        out = attend_and_record(query, key, value, scale=scale, layer=self.layer, record=record, first=self.recorded)
        return self.to_out[0](merge_heads(out))


def attend_and_record(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    scale: float,
    layer: str,
    record: Record | None,
    first: int | None = None,
) -> Float[Array, "B T N H"]:
    """`dot_product_attention`; hands `record` the means over rows of the first so many pictures, or of all."""
    if record is None:
        return dot_product_attention(query, key, value, scale=scale)
    if first is None:
        out, statistics = attention_with_statistics(query, key, value, scale=scale)
    else:
        out = dot_product_attention(query, key, value, scale=scale)
        statistics = attention_statistics(query[:first], key[:first], scale=scale)
    record(layer, *(values.mean(axis=-1) for values in statistics))
    return out


def projections(
    features: int, context_features: int, inner: int, dtype: jnp.dtype | type, rngs: nnx.Rngs, *, use_bias: bool = False
) -> tuple[nnx.Linear, nnx.Linear, nnx.Linear, nnx.List]:
    """diffusers' `to_q`, `to_k`, `to_v` and `to_out`, whose first element alone has weights (the second is dropout)."""

    def linear(size_in: int, size_out: int, use_bias: bool) -> nnx.Linear:
        return nnx.Linear(size_in, size_out, use_bias=use_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)

    to_q = linear(features, inner, use_bias)
    to_k, to_v = (linear(context_features, inner, use_bias) for _ in range(2))
    return to_q, to_k, to_v, nnx.List([linear(inner, features, True)])


def split_heads(hidden: Float[Array, "B T D"], heads: int) -> Float[Array, "B T N H"]:
    """[B T D] -> [B T N H]."""
    return hidden.reshape(*hidden.shape[:2], heads, -1)


def merge_heads(hidden: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
    """[B T N H] -> [B T D]."""
    return hidden.reshape(*hidden.shape[:2], -1)


def check_scale(scale: object) -> None:
    """Raises TypeError unless `scale` is a Python float: an array would be an input of the program, no constant."""
    if type(scale) is not float:
        raise TypeError(
            f"scale is {scale!r} of type {type(scale).__name__}: give a Python float, computed before tracing by "
            "attention_scale(...)"
        )


def _choose(implementation: str | None, query: Array, key: Array, *, rows: bool = False) -> str:
    """The kernel asked for, or the first of the table that runs and pays; with `rows`, one that shows its rows."""
    call = _describe(query, key)
    if implementation is None:
        fitting = {name: kernel for name, kernel in _KERNELS.items() if kernel.rows or not rows}
        return next(name for name, kernel in fitting.items() if kernel.refuses(call) is None and kernel.pays(call))
    if implementation not in _KERNELS:
        raise UserError(f"unknown attention implementation {implementation!r}: use one of {', '.join(_KERNELS)}")
    kernel = _KERNELS[implementation]
    if rows and not kernel.rows:
        raise UserError(
            f"implementation {implementation!r} shows no rows, whose entropy cancels to 0.1 nats there: use "
            "attention_mean_entropy, or leave implementation out"
        )
    reason = kernel.refuses(call)
    if reason is not None:
        raise UserError(f"attention implementation {implementation!r} can't run: {reason}; leave it out to choose")
    return implementation


def _describe(query: Array, key: Array) -> _Call:
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    platform = device if isinstance(device, str) else device.platform
    capability = str(getattr(device, "compute_capability", ""))
    if platform == "gpu" and capability.replace(".", "").isdigit():  # ROCm's are names
        platform = "cuda"
    return _Call(
        platform=platform,
        capability=float(capability) if platform == "cuda" else 0.0,
        has_cudnn=platform == "cuda" and fused.has_cudnn(),
        dtype=jnp.dtype(query.dtype),
        head_dim=query.shape[3],
        tokens=key.shape[1],
        logits=query.shape[0] * query.shape[1] * query.shape[2] * key.shape[1],
    )
