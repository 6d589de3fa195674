"""The pipelines that are understood: the parts that a folder of each has, and the class of ours that each part is."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UserError
from ..models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTextProjectionConfig,
    FlaxAutoencoderKLConfig,
    FlaxUNet2DConditionConfig,
    LatentDiffusionText,
    LDMBertConfig,
    LDMBertModel,
    NoText,
    SD3Transformer2DModel,
    SD3TransformerConfig,
    StableDiffusionText,
    StableDiffusionXLText,
    SuperResolutionUNetConfig,
    TextEncoders,
    UNet2DConditionConfig,
    UNet2DConditionModel,
    UNet2DConfig,
    UNet2DModel,
    VQModel,
    VQModelConfig,
)
from .files import DIFFUSERS, TRANSFORMERS
from .hub import LEFT_OUT
from .tokenizer import TokenizerKind

Config = Any
"""A model's frozen dataclass."""


@dataclass(frozen=True)
class Kind:
    """One class of diffusers or transformers, and ours."""

    config: Callable[[Mapping[str, Any]], Config]
    """Of its config.json. Raises UserError for what is not implemented."""
    module: Callable[..., Any]
    """Of the config, with `rngs` and `dtype`."""
    weights: str
    """The stem of its weights' file, as PyTorch's classes write it."""
    flax: bool = False
    """Whether the class is Flax's, whose weights are msgpack."""


KINDS = {
    "UNet2DConditionModel": Kind(UNet2DConditionConfig.from_json, UNet2DConditionModel, DIFFUSERS),
    "UNet2DModel": Kind(UNet2DConfig.from_json, UNet2DModel, DIFFUSERS),
    "AutoencoderKL": Kind(AutoencoderKLConfig.from_json, AutoencoderKL, DIFFUSERS),
    "VQModel": Kind(VQModelConfig.from_json, VQModel, DIFFUSERS),
    "CLIPTextModel": Kind(CLIPTextConfig.from_json, CLIPTextModel, TRANSFORMERS),
    "CLIPTextModelWithProjection": Kind(CLIPTextProjectionConfig.from_json, CLIPTextModelWithProjection, TRANSFORMERS),
    "LDMBertModel": Kind(LDMBertConfig.from_json, LDMBertModel, TRANSFORMERS),
    "FlaxUNet2DConditionModel": Kind(FlaxUNet2DConditionConfig.from_json, UNet2DConditionModel, DIFFUSERS, flax=True),
    "FlaxAutoencoderKL": Kind(FlaxAutoencoderKLConfig.from_json, AutoencoderKL, DIFFUSERS, flax=True),
    "FlaxCLIPTextModel": Kind(CLIPTextConfig.from_json, CLIPTextModel, TRANSFORMERS, flax=True),
    "SD3Transformer2DModel": Kind(SD3TransformerConfig.from_json, SD3Transformer2DModel, DIFFUSERS),
}
_TOKENIZERS = {kind: (kind.value, f"{kind.value}Fast") for kind in TokenizerKind}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the folders of one pipeline class have in common."""

    name: str
    """For people."""
    pipeline: str
    """diffusers' class."""
    first_stage: str
    """The part that turns latents into pixels."""
    text_encoders: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    """One for each text encoder."""
    tokenizer_kind: TokenizerKind = TokenizerKind.CLIP
    classes: Mapping[str, tuple[str, ...]]
    """Part -> the classes of it that are implemented."""
    text: Callable[..., TextEncoders]
    """Of the text encoders, in their order."""
    float32_decoding: bool = False
    """Whether the first stage overflows in half precision."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Fields of scheduler_config.json that diffusers' pipeline sets, whatever the folder says."""
    old_sample_size: int | None = None
    """What diffusers' pipeline takes for a smaller `sample_size` in a UNet saved before diffusers 0.9."""
    unet_kind: Callable[[Mapping[str, Any]], Config] | None = None
    """Of the UNet's config.json, where it is not what its class stands for elsewhere."""
    picture_channels: int = 0
    """Channels of a picture that the UNet sees beside the latents."""
    first_stage_fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the first stage's config.json that diffusers' pipeline sets, whatever the folder says."""
    noises_pictures: str | None = None
    """The part whose noise schedule is that of the picture beside the latents."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that hold weights."""
        return ("unet", self.first_stage, *self.text_encoders)

    def check(self, model: str, index: Mapping[str, Any]) -> dict[str, str]:
        """The class of each part that model_index.json names. Raises UserError for one missing or not implemented."""
        found = {}
        for part, classes in self.classes.items():
            library_and_class = index.get(part)
            kind = library_and_class[-1] if isinstance(library_and_class, list) and library_and_class else None
            if kind not in classes:
                raise UserError(
                    f"model {model!r}: model_index.json has {part} as {kind}: implemented is {' or '.join(classes)}"
                )
            found[part] = kind
        for part, entry in index.items():
            known = part in self.classes or part in LEFT_OUT or part == "scheduler"
            if not known and isinstance(entry, list) and any(entry):
                raise UserError(f"model {model!r}: model_index.json has a part {part} that {self.name} does not have")
        return found

    def config(self, part: str, kind: str, raw: Mapping[str, Any]) -> Config:
        """A part's config, of its config.json. Raises UserError for what is not implemented."""
        if part == "unet":
            return (self.unet_kind or KINDS[kind].config)(self.unet_config(raw))
        return KINDS[kind].config({**raw, **self.first_stage_fields} if part == self.first_stage else raw)

    def unet_config(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """A UNet's config.json as diffusers' pipeline reads it."""
        size, version = raw.get("sample_size"), str(raw.get("_diffusers_version", ""))
        old = re.match(r"0\.[0-8](\D|$)", version) is not None
        if not old or self.old_sample_size is None or not isinstance(size, int) or size >= self.old_sample_size:
            return raw
        return {**raw, "sample_size": self.old_sample_size}


STABLE_DIFFUSION = Family(
    name="Stable Diffusion",
    pipeline="StableDiffusionPipeline",
    first_stage="vae",
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    tokenizer_kind=TokenizerKind.CLIP,
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": _TOKENIZERS[TokenizerKind.CLIP],
    },
    text=StableDiffusionText,
    scheduler={"steps_offset": 1, "clip_sample": False},
    old_sample_size=64,
)
LATENT_DIFFUSION = Family(
    name="Latent Diffusion",
    pipeline="LDMTextToImagePipeline",
    first_stage="vqvae",
    text_encoders=("bert",),
    tokenizers=("tokenizer",),
    tokenizer_kind=TokenizerKind.BERT,
    classes={
        "unet": ("UNet2DConditionModel",),
        "vqvae": ("AutoencoderKL", "VQModel"),
        "bert": ("LDMBertModel",),
        "tokenizer": _TOKENIZERS[TokenizerKind.BERT],
    },
    text=LatentDiffusionText,
)
STABLE_DIFFUSION_XL = Family(
    name="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    first_stage="vae",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    tokenizer_kind=TokenizerKind.CLIP,
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": _TOKENIZERS[TokenizerKind.CLIP],
        "tokenizer_2": _TOKENIZERS[TokenizerKind.CLIP],
    },
    text=StableDiffusionXLText,
    float32_decoding=True,
)
FLAX_STABLE_DIFFUSION = replace(
    STABLE_DIFFUSION,
    name="Stable Diffusion (Flax)",
    pipeline="FlaxStableDiffusionPipeline",
    classes={
        "unet": ("FlaxUNet2DConditionModel",),
        "vae": ("FlaxAutoencoderKL",),
        "text_encoder": ("FlaxCLIPTextModel",),
        "tokenizer": _TOKENIZERS[TokenizerKind.CLIP],
    },
    scheduler={},
)
STABLE_DIFFUSION_UPSCALE = replace(
    STABLE_DIFFUSION,
    name="Stable Diffusion's upscaler",
    pipeline="StableDiffusionUpscalePipeline",
    classes={**STABLE_DIFFUSION.classes, "low_res_scheduler": ("DDPMScheduler",)},
    scheduler={},
    old_sample_size=None,
    float32_decoding=True,
    unet_kind=SuperResolutionUNetConfig.from_json,
    picture_channels=3,
    first_stage_fields={"scaling_factor": 0.08333},
    noises_pictures="low_res_scheduler",
)
LATENT_DIFFUSION_UPSCALE = Family(
    name="Latent Diffusion's super-resolution",
    pipeline="LDMSuperResolutionPipeline",
    first_stage="vqvae",
    classes={"unet": ("UNet2DModel",), "vqvae": ("VQModel",)},
    text=NoText,
    picture_channels=3,
    # Latents go to the decoder as they are.
    first_stage_fields={"scaling_factor": 1.0},
)
Families = Mapping[str, Family]
"""Those of one use, by diffusers' class."""
_DRAWING = (STABLE_DIFFUSION, LATENT_DIFFUSION, STABLE_DIFFUSION_XL, FLAX_STABLE_DIFFUSION)
FAMILIES: Families = {family.pipeline: family for family in _DRAWING}
"""Of captions to pictures."""
UPSCALERS: Families = {family.pipeline: family for family in (STABLE_DIFFUSION_UPSCALE, LATENT_DIFFUSION_UPSCALE)}
"""Of pictures to larger ones."""


def family_of(model: str, index: Mapping[str, Any], families: Families = FAMILIES) -> Family:
    """The family whose pipeline model_index.json names. Raises UserError for one that is not among `families`."""
    kind = index.get("_class_name")
    named = kind if isinstance(kind, str) else ""
    if named in families:
        return families[named]
    hint = ", which enlarges pictures and draws none: it is for baseline upscale" if named in UPSCALERS else ""
    many = "implemented are" if len(families) > 1 else "implemented is"
    raise UserError(f"model {model!r} is a {kind}{hint}: {many} {', '.join(families)}")
