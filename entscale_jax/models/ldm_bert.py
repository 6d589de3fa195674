"""The text encoder of Latent Diffusion: a BERT trained together with the UNet, which sees padding as it sees words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import dot_product_attention, merge_heads, split_heads
from ..errors import UserError
from .config import read_config
from .layers import Layers, activation

States = Float[Array, "B T D"]

_LENGTH = 77
"""Tokens that diffusers' `LDMTextToImagePipeline` pads or cuts every caption to."""
_FIXED: Mapping[str, tuple] = {"model_type": ("ldmbert",), "scale_embedding": (False,)}
# What transformers writes into every config, or what acts only in training or on a mask, which the pipeline gives none.
# The layers are counted by encoder_layers; num_hidden_layers is a copy of it for transformers' use.
_INERT = frozenset(
    {
        "architectures",
        "num_hidden_layers",
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "classifier_dropout",
        "encoder_layerdrop",
        "init_std",
        "pad_token_id",
        "use_cache",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "is_encoder_decoder",
    }
)


@dataclass(frozen=True, kw_only=True)
class LDMBertConfig:
    """The fields of diffusers' `LDMBertConfig` that change the last hidden state, with its defaults."""

    vocab_size: int = 30522
    max_position_embeddings: int = _LENGTH
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64
    activation_function: str = "gelu"
    d_model: int = 1280

    model: ClassVar = "LDMBertModel"

    def __post_init__(self):
        if self.activation_function not in ("gelu", "quick_gelu"):
            raise UserError(
                f"{self.model}: activation_function={self.activation_function!r}: implemented are 'gelu' and "
                "'quick_gelu'"
            )
        if self.max_position_embeddings != _LENGTH:
            raise UserError(
                f"{self.model}: max_position_embeddings={self.max_position_embeddings!r}: implemented is {_LENGTH}, "
                "the length of a caption in diffusers' LDMTextToImagePipeline"
            )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "LDMBertConfig":
        """From the config.json that diffusers writes. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)

    @property
    def hidden_size(self) -> int:
        """Width of the states, by the name that other text encoders have for it."""
        return self.d_model


class LDMBertModel(nnx.Module):
    """Token ids to the last hidden state after its norm, which is what the UNet attends to."""

    unread: ClassVar = ("to_logits.weight", "to_logits.bias")

    def __init__(self, config: LDMBertConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        self.config = config
        self.model = LDMBertEncoder(config, Layers(rngs, dtype))

    def __call__(self, tokens: Int[Array, "B T"]) -> States:
        """[B T] ids -> [B T D] states. Each position sees all, padding too."""
        return self.model(tokens)


class LDMBertEncoder(nnx.Module):
    """Token and position, added, through the stack of layers and a norm."""

    def __init__(self, config: LDMBertConfig, make: Layers):
        self.embed_tokens = make.embed(config.vocab_size, config.d_model)
        self.embed_positions = make.embed(config.max_position_embeddings, config.d_model)
        self.layers = nnx.List(LDMBertEncoderLayer(config, make) for _ in range(config.encoder_layers))
        self.layer_norm = make.layer_norm(config.d_model)

    def __call__(self, tokens: Int[Array, "B T"]) -> States:
        """[B T] ids -> [B T D]."""
        hidden = self.embed_tokens(tokens) + self.embed_positions(jnp.arange(tokens.shape[1]))[None]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.layer_norm(hidden)


class LDMBertEncoderLayer(nnx.Module):
    """Self-attention and a feed-forward, each on a layer norm and added to its input."""

    def __init__(self, config: LDMBertConfig, make: Layers):
        self.activation = config.activation_function
        self.self_attn = LDMBertAttention(config, make)
        self.self_attn_layer_norm, self.final_layer_norm = (make.layer_norm(config.d_model) for _ in range(2))
        self.fc1 = make.linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = make.linear(config.encoder_ffn_dim, config.d_model)

    def __call__(self, hidden: States) -> States:
        """[B T D] -> [B T D]."""
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden))
        return hidden + self.fc2(activation(self.activation)(self.fc1(self.final_layer_norm(hidden))))


class LDMBertAttention(nnx.Module):
    """Attention to all positions. Its scale stays `1 / sqrt(d)`: the paper leaves the text encoder alone."""

    def __init__(self, config: LDMBertConfig, make: Layers):
        self.heads, self.head_dim = config.encoder_attention_heads, config.head_dim
        inner = self.heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (make.linear(config.d_model, inner, use_bias=False) for _ in range(3))
        self.out_proj = make.linear(inner, config.d_model)

    def __call__(self, hidden: States) -> States:
        """[B T D] -> [B T D]."""
        query, key, value = (split_heads(to(hidden), self.heads) for to in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(dot_product_attention(query, key, value, scale=1 / math.sqrt(self.head_dim))))
