"""What the UNet is told beside latents and timestep, and the text encoders of each family that make it."""

from abc import abstractmethod
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int

from .clip_text import CLIPTextModel
from .ldm_bert import LDMBertModel
from .transformer import Context

Tokens = tuple[Int[Array, "B T"], ...]
"""Token ids, one array for each tokenizer of the family."""


class AddedConditions(NamedTuple):
    """What SDXL's UNet adds to the embedding of the timestep, in diffusers' names."""

    text_embeds: Float[Array, "B P"]
    """The pooled text."""
    time_ids: Float[Array, "B 6"]
    """original height and width, crop top and left, target height and width, in pixels."""


class Conditioning(NamedTuple):
    """Text states, with what SDXL wants beside them."""

    states: Context
    added: AddedConditions | None = None


class TextStates(NamedTuple):
    """What a family's text encoders make of captions."""

    states: Context
    pooled: Float[Array, "B P"] | None = None


class TextEncoders(nnx.Module):
    """A family's text encoders, as one module: token ids of captions to text states."""

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Positions that each encoder reads."""

    @abstractmethod
    def __call__(self, tokens: Tokens) -> TextStates:
        """One array of ids [B T] for each encoder."""


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
