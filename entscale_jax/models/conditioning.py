"""What the UNet is told beside latents and timestep, and the text encoders of each family that make it."""

from abc import abstractmethod
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .clip_text import CLIPTextModel, CLIPTextModelWithProjection
from .ldm_bert import LDMBertModel
from .time_embedding import AddedConditions

Tokens = tuple[Int[Array, "B T"], ...]
"""Token ids, one array for each tokenizer of the family."""


class LowResolution(NamedTuple):
    """What a UNet that enlarges pictures is told of the small ones."""

    picture: Float[Array, "B h w 3"]
    """In about [-1, 1], with noise if it is given any; a pixel is a latent cell of the large one."""
    noise_level: Int[Array, "B"] | None = None
    """The training timestep of that noise; None where there is none."""


class Conditioning(NamedTuple):
    """Text states, with what SDXL and what super-resolution want beside them."""

    states: Float[Array, "B S C"]
    added: AddedConditions | None = None
    low: LowResolution | None = None


class TextStates(NamedTuple):
    """What a family's text encoders make of captions."""

    states: Float[Array, "B S C"]
    pooled: Float[Array, "B P"] | None = None
    """SDXL's, of the second encoder."""


class TextEncoders(nnx.Module):
    """A family's text encoders, as one module: token ids of captions to text states."""

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Positions that each encoder reads."""

    @abstractmethod
    def __call__(self, tokens: Tokens) -> TextStates:
        """One array of ids [B T] for each encoder."""


class NoText(TextEncoders):
    """Of a model that is told no text: it reads no ids, and states that it is told of no position."""

    @property
    def lengths(self) -> tuple[int, ...]:
        return ()

    def __call__(self, tokens: Tokens) -> TextStates:
        return TextStates(jnp.zeros((1, 0, 0)))


class LatentDiffusionText(TextEncoders):
    """The states of a BERT."""

    def __init__(self, bert: LDMBertModel):
        self.bert = bert

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.bert.config.max_position_embeddings,)

    def __call__(self, tokens: Tokens) -> TextStates:
        return TextStates(self.bert(tokens[0]))


class StableDiffusionText(TextEncoders):
    """The last hidden state of one CLIP; in 2.x's folders the penultimate one of OpenCLIP, whose last layer is cut."""

    def __init__(self, text_encoder: CLIPTextModel):
        self.text_encoder = text_encoder

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.text_encoder.config.max_position_embeddings,)

    def __call__(self, tokens: Tokens) -> TextStates:
        return TextStates(self.text_encoder(tokens[0]))


class StableDiffusionXLText(TextEncoders):
    """The penultimate states of two CLIPs side by side, and the pooled embedding of the second."""

    def __init__(self, text_encoder: CLIPTextModel, text_encoder_2: CLIPTextModelWithProjection):
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(each.config.max_position_embeddings for each in (self.text_encoder, self.text_encoder_2))

    def __call__(self, tokens: Tokens) -> TextStates:
        first = self.text_encoder.penultimate(tokens[0])
        second, pooled = self.text_encoder_2(tokens[1])
        return TextStates(jnp.concatenate([first, second], axis=-1), pooled)
