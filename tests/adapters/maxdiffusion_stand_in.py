"""A small stand-in for MaxDiffusion's attention: its module names, call signatures, child names and kernels.

Every class names the module that it stands in for, so it is recognised as the real one would be. The kernels compute
the same attention, each applying the scale in the manner of the kernel whose name it has.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

_ATTENTION = "maxdiffusion.models.attention_flax"
_FLUX = "maxdiffusion.models.flux.transformers.transformer_flux_flax"
_SELF = ("activation_batch", "activation_self_attn_heads", "activation_self_attn_q_length", "activation_kv")
_CROSS = ("activation_batch", "activation_cross_attn_heads", "activation_cross_attn_q_length", "activation_kv")
_UNSAID = ("activation_batch", "activation_heads", "activation_length", "activation_kv")

KERNEL_REGISTRY: dict[str, Callable] = {}


def _heads(array, heads):
    """[B T D] -> [B N T H]; what has heads already stays."""
    if array.ndim == 4:
        return array
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def _merged(array):
    return array.swapaxes(1, 2).reshape(array.shape[0], array.shape[2], -1)


def _weights(logits):
    exponentials = jnp.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _dot_product(query, key, value, context):
    query, key, value = (_heads(array, context["heads"]) for array in (query, key, value))
    if context["use_memory_efficient_attention"]:
        logits = (query / math.sqrt(query.shape[-1])) @ key.swapaxes(-1, -2)  # its own scale, not the one given
    else:
        logits = query @ key.swapaxes(-1, -2) * context["scale"]
    if context["attention_mask"] is not None:
        logits = jnp.where(context["attention_mask"][:, None, None], logits, -1e9)
    return _merged(_weights(logits) @ value)


def _flash(query, key, value, context, *, parts=1, smooth=False):
    """The scale on the keys; base 2 if asked for; keys in parts, merged by their running maximum or a fixed bound."""
    query, key, value = (_heads(array, context["heads"]) for array in (query, key * context["scale"], value))
    power = jnp.exp2 if context["use_base2_exp"] else jnp.exp
    query = query * math.log2(math.e) if context["use_base2_exp"] else query
    if smooth:
        key = key - key.mean(-2, keepdims=True)
    bound = jnp.linalg.norm(query, axis=-1, keepdims=True) * jnp.linalg.norm(key, axis=-1).max(-1)[..., None, None]
    total = normaliser = 0.0
    for keys, values in zip(jnp.split(key, parts, 2), jnp.split(value, parts, 2), strict=True):
        logits = query @ keys.swapaxes(-1, -2)
        exponentials = power(logits - bound)
        total += exponentials @ values
        normaliser += exponentials.sum(-1, keepdims=True)
    return _merged(total / normaliser)


def _ring(query, key, value, context, **how):
    if context["kernel"].startswith("ulysses_ring") and context["ulysses_shards"] < 1:
        raise ValueError(f"{context['kernel']} requires ulysses_shards")
    return _flash(query, key, value, context, parts=2, **how)


def _cudnn(query, key, value, context):
    heads = (_heads(array, context["heads"]).swapaxes(1, 2) for array in (query, key, value))
    out = context["dpa_layer"](*heads, mask=None)
    return out.reshape(*out.shape[:2], -1)


KERNEL_REGISTRY["dot_product"] = _dot_product
for _name in ("flash", "tokamax_flash", "ulysses", "ulysses_custom"):
    KERNEL_REGISTRY[_name] = _flash
for _name in (
    "tokamax_ring",
    "tokamax_ring_custom",
    "ulysses_ring",
    "ulysses_ring_custom",
    "ulysses_ring_custom_bidir",
):
    KERNEL_REGISTRY[_name] = _ring
KERNEL_REGISTRY["ulysses_custom_fixed_m"] = partial(_flash, smooth=True)
KERNEL_REGISTRY["ulysses_ring_custom_fixed_m"] = partial(_ring, smooth=True)
KERNEL_REGISTRY["cudnn_flash_te"] = _cudnn


def _baked(kernel, scale):
    """What cuDNN's layer is made of: it takes its scale when it is made, and `scale` of the operation no more."""
    if kernel != "cudnn_flash_te":
        return None
    from transformer_engine.jax.flax.transformer import DotProductAttention

    return partial(DotProductAttention(scale_factor=scale).apply, {})


def _apply(operation, query, key, value, attention_mask):
    long = min(query.shape[-2], key.shape[-2]) >= operation.flash_min_seq_length
    kernel = operation.attention_kernel if long and not operation.use_memory_efficient_attention else "dot_product"
    names = ("heads", "scale", "use_memory_efficient_attention", "use_base2_exp", "ulysses_shards", "dpa_layer")
    context = {name: getattr(operation, name) for name in names}
    return KERNEL_REGISTRY[kernel](query, key, value, {**context, "kernel": kernel, "attention_mask": attention_mask})


class AttentionOp(nn.Module):
    __module__ = _ATTENTION

    mesh: Any
    attention_kernel: str
    scale: float
    heads: int
    dim_head: int
    use_memory_efficient_attention: bool = False
    split_head_dim: bool = False
    flash_min_seq_length: int = 4096
    flash_block_sizes: Any = None
    dtype: Any = jnp.float32
    use_base2_exp: bool = False
    ulysses_shards: int = -1

    def setup(self):
        self.dpa_layer = _baked(self.attention_kernel, self.scale)

    def apply_attention(self, query, key, value, attention_mask=None):
        return _apply(self, query, key, value, attention_mask)


class NNXAttentionOp(nnx.Module):
    __module__ = _ATTENTION

    def __init__(
        self,
        mesh,
        attention_kernel,
        scale,
        heads,
        dim_head,
        use_memory_efficient_attention=False,
        split_head_dim=True,
        axis_names_q=_UNSAID,
        flash_min_seq_length=0,
        flash_block_sizes=None,
        dtype=jnp.float32,
        use_base2_exp=False,
        ulysses_shards=-1,
    ):
        self.dpa_layer = _baked(attention_kernel, scale)
        self.attention_kernel, self.scale, self.heads, self.dim_head = attention_kernel, scale, heads, dim_head
        self.use_memory_efficient_attention = use_memory_efficient_attention
        self.axis_names_q = axis_names_q
        self.flash_min_seq_length = flash_min_seq_length
        self.use_base2_exp, self.ulysses_shards = use_base2_exp, ulysses_shards

    def apply_attention(self, query, key, value, attention_mask=None):
        return _apply(self, query, key, value, attention_mask)


class FlaxAttention(nn.Module):
    __module__ = _ATTENTION

    query_dim: int
    heads: int = 8
    dim_head: int = 64
    dropout: float = 0.0
    use_memory_efficient_attention: bool = False
    split_head_dim: bool = False
    attention_kernel: str = "dot_product"
    flash_min_seq_length: int = 4096
    flash_block_sizes: Any = None
    mesh: Any = None
    dtype: Any = jnp.float32

    def setup(self):
        self.attention_op = AttentionOp(
            mesh=self.mesh,
            attention_kernel=self.attention_kernel,
            scale=self.dim_head**-0.5,
            heads=self.heads,
            dim_head=self.dim_head,
            use_memory_efficient_attention=self.use_memory_efficient_attention,
            flash_min_seq_length=self.flash_min_seq_length,
            flash_block_sizes=self.flash_block_sizes,
            dtype=self.dtype,
        )
        inner = self.dim_head * self.heads
        self.query, self.key, self.value = (
            nn.Dense(inner, use_bias=False, dtype=self.dtype, name=name) for name in ("to_q", "to_k", "to_v")
        )
        self.proj_attn = nn.Dense(self.query_dim, dtype=self.dtype, name="to_out_0")

    def __call__(self, hidden_states, context=None, deterministic=True, cross_attention_kwargs=None):
        context = hidden_states if context is None else context
        attended = self.attention_op.apply_attention(self.query(hidden_states), self.key(context), self.value(context))
        return self.proj_attn(attended)


class FlaxFluxAttention(nn.Module):
    """Its parts, which a single-stream block uses without calling it."""

    __module__ = _ATTENTION

    query_dim: int
    heads: int
    dim_head: int
    attention_kernel: str
    mesh: Any

    def setup(self):
        self.attention_op = AttentionOp(
            self.mesh, self.attention_kernel, self.dim_head**-0.5, self.heads, self.dim_head, dtype=jnp.float32
        )
        self.query_norm, self.key_norm = nn.RMSNorm(), nn.RMSNorm()


class FluxSingleTransformerBlock(nn.Module):
    __module__ = _FLUX

    dim: int
    num_attention_heads: int
    attention_head_dim: int
    attention_kernel: str = "dot_product"
    mesh: Any = None

    def setup(self):
        self.lin_qkv = nn.Dense(3 * self.dim)
        heads, width = self.num_attention_heads, self.attention_head_dim
        self.attn = FlaxFluxAttention(self.dim, heads, width, self.attention_kernel, self.mesh)

    def __call__(self, hidden_states, temb, image_rotary_emb=None):
        shape = (*hidden_states.shape[:2], 3, self.num_attention_heads, -1)
        query, key, value = jnp.moveaxis(self.lin_qkv(hidden_states).reshape(shape), 2, 0)
        query, key = self.attn.query_norm(query), self.attn.key_norm(key)
        flat = (array.reshape(hidden_states.shape) for array in (query, key, value))
        return hidden_states + self.attn.attention_op.apply_attention(*flat)


class FlaxWanAttention(nnx.Module):
    """Query and key are normalised between their projections and the operation: a factor on `query` would be undone."""

    __module__ = _ATTENTION

    def __init__(
        self,
        rngs,
        query_dim,
        heads=8,
        dim_head=64,
        qk_norm="rms_norm_across_heads",
        attention_kernel="flash",
        flash_min_seq_length=0,
        flash_block_sizes=None,
        mesh=None,
        is_self_attention=True,
        attention_config=None,
    ):
        inner = heads * dim_head
        if not is_self_attention and attention_kernel.startswith(("tokamax_ring", "ulysses_")):
            attention_kernel = "tokamax_flash"
        self.attention_op = NNXAttentionOp(
            mesh=mesh,
            attention_kernel=attention_kernel,
            scale=dim_head**-0.5,
            heads=heads,
            dim_head=dim_head,
            axis_names_q=_SELF if is_self_attention else _CROSS,
            flash_min_seq_length=flash_min_seq_length,
            **(attention_config or {}),
        )
        self.query, self.key, self.value, self.proj_attn = (nnx.Linear(inner, inner, rngs=rngs) for _ in range(4))
        self.norm_q, self.norm_k = (nnx.RMSNorm(inner, rngs=rngs) for _ in range(2))

    def __call__(self, hidden_states, encoder_hidden_states=None, rotary_emb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = self.norm_q(self.query(hidden_states)), self.norm_k(self.key(context))
        return self.proj_attn(self.attention_op.apply_attention(query, key, self.value(context), attention_mask=None))


class NNXFluxAttention(nnx.Module):
    """Joint attention: captions and picture in one sequence."""

    __module__ = _FLUX

    def __init__(
        self, rngs, query_dim, heads=8, dim_head=64, attention_kernel="dot_product", flash_min_seq_length=512, mesh=None
    ):
        inner = heads * dim_head
        self.heads, self.dim_head = heads, dim_head
        self.attention_op = NNXAttentionOp(
            mesh=mesh,
            attention_kernel=attention_kernel,
            scale=dim_head**-0.5,
            heads=heads,
            dim_head=dim_head,
            flash_min_seq_length=flash_min_seq_length,
        )
        self.i_qkv, self.e_qkv = (nnx.Linear(query_dim, 3 * inner, use_bias=False, rngs=rngs) for _ in range(2))
        self.i_proj, self.e_proj = (nnx.Linear(inner, query_dim, use_bias=False, rngs=rngs) for _ in range(2))
        self.query_norm, self.key_norm, self.encoder_query_norm, self.encoder_key_norm = (
            nnx.RMSNorm(dim_head, epsilon=1e-6, rngs=rngs) for _ in range(4)
        )

    def __call__(self, hidden_states, encoder_hidden_states=None, image_rotary_emb=None):
        captions = encoder_hidden_states.shape[1]
        image = self._projected(self.i_qkv(hidden_states), self.query_norm, self.key_norm)
        text = self._projected(self.e_qkv(encoder_hidden_states), self.encoder_query_norm, self.encoder_key_norm)
        joint = (jnp.concatenate(pair, 1) for pair in zip(text, image, strict=True))
        attended = self.attention_op.apply_attention(*joint)
        return self.i_proj(attended[:, captions:]), self.e_proj(attended[:, :captions])

    def _projected(self, qkv, query_norm, key_norm):
        query, key, value = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, self.heads, self.dim_head), 2, 0)
        return tuple(array.reshape(*qkv.shape[:2], -1) for array in (query_norm(query), key_norm(key), value))


class ZImageAttention(nnx.Module):
    """Below `flash_min_seq_length`, and with `dot_product`, it attends by itself and never asks its operation."""

    __module__ = "maxdiffusion.models.z_image.transformer_z_image"

    def __init__(
        self,
        rngs,
        dim,
        heads,
        qk_norm=True,
        eps=1e-5,
        attention_kernel="dot_product",
        mesh=None,
        flash_block_sizes=None,
        flash_min_seq_length=4096,
    ):
        self.heads, self.dim_head, self.qk_norm = heads, dim // heads, qk_norm
        self.attention_kernel, self.flash_min_seq_length = attention_kernel, flash_min_seq_length
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nnx.Linear(dim, dim, use_bias=False, rngs=rngs) for _ in range(4)
        )
        if qk_norm:
            self.norm_q, self.norm_k = (nnx.RMSNorm(self.dim_head, epsilon=eps, rngs=rngs) for _ in range(2))
        self.attention_op = NNXAttentionOp(
            mesh=mesh,
            attention_kernel=attention_kernel,
            scale=self.dim_head**-0.5,
            heads=heads,
            dim_head=self.dim_head,
            axis_names_q=_SELF,
            flash_min_seq_length=flash_min_seq_length,
        )

    def __call__(self, hidden_states, freqs, attention_mask=None):
        shape = (*hidden_states.shape[:2], self.heads, self.dim_head)
        query, key, value = (project(hidden_states).reshape(shape) for project in (self.to_q, self.to_k, self.to_v))
        if self.qk_norm:
            query, key = self.norm_q(query), self.norm_k(key)
        query, key, value = (array.swapaxes(1, 2) for array in (query, key, value))
        if self.attention_kernel == "dot_product" or shape[1] < self.flash_min_seq_length:
            attended = _merged(_weights(query @ key.swapaxes(-1, -2) * self.dim_head**-0.5) @ value)
        else:
            attended = self.attention_op.apply_attention(query, key, value, attention_mask=attention_mask)
        return self.to_out(attended)
