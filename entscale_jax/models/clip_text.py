"""The text encoders of Stable Diffusion and SDXL: CLIP's, of OpenAI (`quick_gelu`) or OpenCLIP (`gelu`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import accumulator, merge_heads, split_heads
from ..errors import UserError
from .config import check_heads, read_config
from .layers import Layers, activation

States = Float[Array, "B T D"]
Pooled = Float[Array, "B P"]

_FIXED: Mapping[str, tuple] = {"model_type": ("clip_text_model",)}
# What transformers writes into every config, or what acts only in training or on other heads. projection_dim and
# eos_token_id decide the pooled embedding alone: they are fields of the config that has one.
_INERT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "dropout",
        "initializer_factor",
        "initializer_range",
        "projection_dim",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_bfloat16",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "is_encoder_decoder",
        "use_cache",
    }
)


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """The fields of transformers' `CLIPTextConfig` that change the last hidden state, with its defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    model: ClassVar = "CLIPTextModel"

    def __post_init__(self):
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise UserError(f"{self.model}: hidden_act={self.hidden_act!r}: implemented are 'gelu' and 'quick_gelu'")
        check_heads(self.hidden_size, self.num_attention_heads, model=self.model)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "CLIPTextConfig":
        """From transformers' config.json. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)


@dataclass(frozen=True, kw_only=True)
class CLIPTextProjectionConfig(CLIPTextConfig):
    """Those fields, and the two that decide the pooled embedding, with transformers' defaults."""

    projection_dim: int = 512
    eos_token_id: int = 49407
    """The first of these ids ends a text. 2 says instead, as in SDXL's own config, that the highest id does."""

    model: ClassVar = "CLIPTextModelWithProjection"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "CLIPTextProjectionConfig":
        """As `CLIPTextConfig.from_json`."""
        for name in ("projection_dim", "eos_token_id"):
            if not isinstance(raw.get(name, 0), int):
                raise UserError(f"{cls.model}: {name}={raw[name]!r}: implemented is one whole number")
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)


@runtime_checkable
class TransformerConfig(Protocol):
    """What the layers need to know, of text as of images."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


class CLIPTextModel(nnx.Module):
    """Token ids to the last hidden state after its final norm, which is what the UNet attends to."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config, make)
        self.encoder = CLIPEncoder(config, make)
        self.final_layer_norm = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, tokens: Int[Array, "B T"]) -> States:
        """[B T] ids -> [B T D] states. Each position sees those up to itself."""
        return self.last(self.penultimate(tokens))

    def penultimate(self, tokens: Int[Array, "B T"]) -> States:
        """The states that the last layer reads, without a norm: transformers' `hidden_states[-2]`."""
        return self.encoder.penultimate(self.embeddings(tokens))

    def last(self, penultimate: States) -> States:
        """The last hidden state after its norm, from what `penultimate` gave."""
        return self.final_layer_norm(self.encoder.last(penultimate))


class CLIPTextModelWithProjection(nnx.Module):
    """Token ids to the two things that SDXL takes from its second encoder."""

    def __init__(self, config: CLIPTextProjectionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        self.config = config
        self.text_model = CLIPTextModel(config, rngs=rngs, dtype=dtype)
        self.text_projection = Layers(rngs, dtype).linear(config.hidden_size, config.projection_dim, use_bias=False)

    def __call__(self, tokens: Int[Array, "B T"]) -> tuple[States, Pooled]:
        """The penultimate states, and the last one at the end of each text, normed and projected: `text_embeds`."""
        states = self.text_model.penultimate(tokens)
        ends = end_of_text(tokens, self.config.eos_token_id)
        last = jnp.take_along_axis(self.text_model.last(states), ends[:, None, None], axis=1)[:, 0]
        return states, self.text_projection(last)


def end_of_text(tokens: Int[Array, "B T"], eos_token_id: int) -> Int[Array, "B"]:
    """Where each text ends: its first `eos_token_id`, or for 2 its first highest id; 0 where there is none.

    Source: transformers' `CLIPTextModel`. Configs older than its pull request 24773 say 2, whatever the tokenizer.
    """
    return jnp.argmax(tokens if eos_token_id == 2 else tokens == eos_token_id, axis=-1)


class CLIPTextEmbeddings(nnx.Module):
    """Token and position, added."""

    unread: ClassVar = ("position_ids",)

    def __init__(self, config: CLIPTextConfig, make: Layers):
        self.token_embedding = make.embed(config.vocab_size, config.hidden_size)
        self.position_embedding = make.embed(config.max_position_embeddings, config.hidden_size)

    def __call__(self, tokens: Int[Array, "B T"]) -> States:
        """[B T] ids -> [B T D]."""
        positions = self.position_embedding(jnp.arange(tokens.shape[1]))
        return self.token_embedding(tokens) + positions[None]


class CLIPEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: TransformerConfig, make: Layers, *, causal: bool = True):
        self.layers = nnx.List(CLIPEncoderLayer(config, make, causal) for _ in range(config.num_hidden_layers))

    def penultimate(self, hidden: States) -> States:
        """[B T D] -> [B T D], through all layers but the last."""
        for layer in self.layers[:-1]:
            hidden = layer(hidden)
        return hidden

    def last(self, hidden: States) -> States:
        """[B T D] -> [B T D], through the last layer."""
        return self.layers[-1](hidden)

    def __call__(self, hidden: States) -> States:
        """[B T D] -> [B T D], through all layers."""
        return self.last(self.penultimate(hidden))


class CLIPEncoderLayer(nnx.Module):
    """Self-attention and a feed-forward, each on a layer norm and added to its input."""

    def __init__(self, config: TransformerConfig, make: Layers, causal: bool):
        self.layer_norm1, self.layer_norm2 = (
            make.layer_norm(config.hidden_size, config.layer_norm_eps) for _ in range(2)
        )
        self.self_attn = CLIPAttention(config, make, causal)
        self.mlp = CLIPMLP(config, make)

    def __call__(self, hidden: States) -> States:
        """[B T D] -> [B T D]."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPAttention(nnx.Module):
    """Attention, causal over text. Its scale stays `1 / sqrt(d)`: the paper leaves the text encoder alone."""

    def __init__(self, config: TransformerConfig, make: Layers, causal: bool):
        self.heads, self.causal = config.num_attention_heads, causal
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (make.linear(size, size) for _ in range(4))

    def __call__(self, hidden: States) -> States:
        """[B T D] -> [B T D]."""
        query, key, value = (split_heads(to(hidden), self.heads) for to in (self.q_proj, self.k_proj, self.v_proj))
        logits = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=accumulator(hidden.dtype))
        logits = logits / math.sqrt(query.shape[-1])
        if self.causal:
            past = jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
            logits = jnp.where(past, logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return self.out_proj(merge_heads(jnp.einsum("BNTS,BSNH->BTNH", weights, value)))


class CLIPMLP(nnx.Module):
    """Two dense layers with the config's activation between them."""

    def __init__(self, config: TransformerConfig, make: Layers):
        self.hidden_act = config.hidden_act
        self.fc1 = make.linear(config.hidden_size, config.intermediate_size)
        self.fc2 = make.linear(config.intermediate_size, config.hidden_size)

    def __call__(self, hidden: States) -> States:
        """[B T D] -> [B T D]."""
        return self.fc2(activation(self.hidden_act)(self.fc1(hidden)))
