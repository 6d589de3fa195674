"""CLIP as a whole: pictures and texts to vectors of one space, as transformers' `CLIPModel` has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import accumulator
from ..errors import UserError
from .clip_text import (
    CLIPEncoder,
    CLIPTextModel,
    CLIPTextProjectionConfig,
    States,
    end_of_text,
)
from .config import check_heads, read_config
from .layers import Layers

Pixels = Float[Array, "batch height width 3"]
Vectors = Float[Array, "batch features"]

# What transformers wrote of generation, of pruning and of other tasks into the two inner configs of older files.
_OF_OTHER_TASKS = frozenset(
    {
        *("_name_or_path", "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "bos_token_id"),
        *("chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty"),
        *("do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
        *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder", "label2id"),
        *("is_encoder_decoder", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beams"),
        *("num_beam_groups", "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores"),
        *("pad_token_id", "prefix", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty"),
        *("return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params"),
        *("temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k"),
        *("top_p", "torchscript", "typical_p", "use_bfloat16", "model_type", "architectures", "torch_dtype", "dtype"),
        *("transformers_version", "attention_dropout", "dropout", "initializer_factor", "initializer_range"),
        *("use_cache",),
    }
)
_OUTER = frozenset(
    {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "initializer_factor"}
)
_OUTER_FIELDS = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """The fields of transformers' `CLIPVisionConfig` that change the vector, with its defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    model: ClassVar = "CLIPVisionModel"

    def __post_init__(self):
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise UserError(f"{self.model}: hidden_act={self.hidden_act!r}: implemented are 'gelu' and 'quick_gelu'")
        if self.num_channels != 3 or self.image_size % self.patch_size:
            raise UserError(
                f"{self.model}: images of {self.num_channels} channels and side {self.image_size} in patches of "
                f"{self.patch_size}: implemented are three channels, and patches that divide the side"
            )
        check_heads(self.hidden_size, self.num_attention_heads, model=self.model)

    @property
    def positions(self) -> int:
        """One for each patch, and the first for the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Of both towers."""

    text: CLIPTextProjectionConfig = field(default_factory=CLIPTextProjectionConfig)
    vision: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512

    model: ClassVar = "CLIPModel"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "CLIPConfig":
        """From transformers' config.json of a `CLIPModel`. Raises UserError for what is not implemented."""
        if raw.get("model_type") != "clip":
            raise UserError(f"{cls.model}: model_type={raw.get('model_type')!r}: implemented is 'clip'")
        known = {*_OUTER_FIELDS, "text_config_dict", "vision_config_dict"} | _OF_OTHER_TASKS
        if unknown := sorted(name for name in raw.keys() - known if not name.startswith("_")):
            raise UserError(f"{cls.model}: config not supported: {', '.join(unknown)} (unknown field)")
        width = raw.get("projection_dim", 512)
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise UserError(f"{cls.model}: projection_dim={width!r}: give a whole number above 0")
        text, vision = (_inner(raw, name) for name in ("text_config", "vision_config"))
        return cls(
            text=CLIPTextProjectionConfig.from_json({**text, "projection_dim": width}),
            vision=read_config(
                CLIPVisionConfig, vision, model=CLIPVisionConfig.model, fixed={}, inert=frozenset({"projection_dim"})
            ),
            projection_dim=width,
        )


class CLIPModel(nnx.Module):
    """Both towers, each with its projection."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        self.config = config
        self.text_model = CLIPTextModel(config.text, rngs=rngs, dtype=dtype)
        self.vision_model = CLIPVisionModel(config.vision, rngs=rngs, dtype=dtype)
        self.text_projection = make.linear(config.text.hidden_size, config.projection_dim, use_bias=False)
        self.visual_projection = make.linear(config.vision.hidden_size, config.projection_dim, use_bias=False)
        self.logit_scale = nnx.Param(jnp.zeros((), dtype))

    def see(self, pixels: Pixels) -> Vectors:
        """[batch side side 3] normalised pixels -> [batch projection_dim], of any length."""
        return self.visual_projection(self.vision_model(pixels))

    def read(self, tokens: Int[Array, "batch length"]) -> Vectors:
        """[batch length] token ids -> [batch projection_dim], of any length."""
        ends = end_of_text(tokens, self.config.text.eos_token_id)
        states = self.text_model(tokens)
        return self.text_projection(jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0])


class CLIPVisionModel(nnx.Module):
    """A vision transformer: the normed state of the token that stands for the whole picture.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4.
    """

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config, rngs, dtype)
        # Spelt so in every checkpoint.
        self.pre_layrnorm = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.encoder = CLIPEncoder(config, make, causal=False)
        self.post_layernorm = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, pixels: Pixels) -> Vectors:
        """[batch side side 3] -> [batch hidden_size]."""
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(pixels)))[:, 0])


class CLIPVisionEmbeddings(nnx.Module):
    """A token for the whole and one for each patch, with their positions."""

    unread: ClassVar = ("position_ids",)

    def __init__(self, config: CLIPVisionConfig, rngs: nnx.Rngs, dtype: jnp.dtype | type):
        size, self.patch = config.hidden_size, config.patch_size
        self.class_embedding = nnx.Param(jnp.zeros(size, dtype))
        self.patch_embedding = nnx.Conv(
            3,
            size,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.position_embedding = Layers(rngs, dtype).embed(config.positions, size)

    def __call__(self, pixels: Pixels) -> States:
        """[batch side side 3] -> [batch positions hidden_size]; patches in reading order."""
        patches = self.patch_embedding(pixels)
        batch, size = patches.shape[0], patches.shape[-1]
        whole = jnp.broadcast_to(self.class_embedding[...], (batch, 1, size))
        tokens = jnp.concatenate([whole, patches.reshape(batch, -1, size)], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))[None]


def unit(vectors: Vectors) -> Vectors:
    """Each divided by its length, in float32 or wider."""
    wide = vectors.astype(accumulator(vectors.dtype))
    return wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)


def _inner(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tower's config; files of transformers before 4.28 say the same twice, the second being right."""
    found: dict[str, Any] = {}
    for key in (name, f"{name}_dict"):
        part = raw.get(key) or {}
        if not isinstance(part, Mapping):
            raise UserError(f"{CLIPConfig.model}: {key} is {part!r}: it should be an object")
        found |= part
    needed = ("eos_token_id",) if name == "text_config" else ()
    return {key: value for key, value in found.items() if key in needed or key not in _OF_OTHER_TASKS}
