"""Configs of Latent Diffusion: those published are understood, and every field of diffusers' classes has its place."""

import dataclasses
import inspect

import pytest
from diffusers.models.autoencoders import autoencoder_kl as torch_kl
from diffusers.models.autoencoders import vq_model as torch_vq
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as torch_ldm

from entscale_jax.errors import UserError
from entscale_jax.models import autoencoder_kl, ldm_bert, unet_2d_condition, vq_model

CLASSES = [
    pytest.param(torch_ldm.LDMBertConfig, ldm_bert, ldm_bert.LDMBertConfig, id="bert"),
    pytest.param(torch_vq.VQModel, vq_model, vq_model.VQModelConfig, id="vq"),
    pytest.param(torch_kl.AutoencoderKL, autoencoder_kl, autoencoder_kl.AutoencoderKLConfig, id="kl"),
]
UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1280,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 32,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
"""Of `CompVis/ldm-text2im-large-256`; CompVis' `txt2img-1p4B-eval.yaml` has the same numbers."""
FIRST_STAGE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""As diffusers 0.0.4 wrote it: neither `scaling_factor` nor anything else that came later."""
VQ = {
    **FIRST_STAGE,
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
}
"""Of `CompVis/ldm-celebahq-256`, likewise."""


def uncovered(names, module, config):
    """Those of `names` that are no field, and neither fixed nor inert."""
    known = {field.name for field in dataclasses.fields(config)} | module._FIXED.keys() | module._INERT
    return sorted(set(names) - known)


def parameters(theirs):
    found = inspect.signature(theirs.__init__).parameters.values()
    return {each.name: each.default for each in found if each.name != "self" and each.kind is not each.VAR_KEYWORD}


@pytest.mark.parametrize(("theirs", "module", "ours"), CLASSES)
def test_every_field_of_diffusers_has_its_place(theirs, module, ours):
    names = parameters(theirs)
    assert len(names) > 10
    assert uncovered(names, module, ours) == []
    assert uncovered([*names, "field_of_next_year"], module, ours) == ["field_of_next_year"]


@pytest.mark.parametrize(("theirs", "module", "ours"), CLASSES)
def test_a_field_that_is_left_out_means_what_it_means_in_diffusers(theirs, module, ours):
    defaults = {field.name: field.default for field in dataclasses.fields(ours)}
    for name, default in parameters(theirs).items():
        if name in defaults:
            assert defaults[name] == default, name
        elif name in module._FIXED:
            assert default in module._FIXED[name], name


def test_what_transformers_writes_beside_is_accepted():
    raw = torch_ldm.LDMBertConfig(encoder_layers=3, head_dim=40).to_dict()
    config = ldm_bert.LDMBertConfig.from_json(raw)
    assert (config.encoder_layers, config.head_dim, config.hidden_size) == (3, 40, 1280)


def test_tokens_of_the_published_unet_follow_from_its_config():
    config = unet_2d_condition.UNet2DConditionConfig.from_json(UNET)
    assert config.train_tokens == (1024, 256, 64, 16)
    assert config.heads == (8, 8, 8, 8)


def test_old_first_stages_are_read():
    published = autoencoder_kl.AutoencoderKLConfig.from_json(FIRST_STAGE)
    assert (published.scaling_factor, published.latent_channels, published.factor) == (0.18215, 4, 8)
    codes = vq_model.VQModelConfig.from_json(VQ)
    assert (codes.scaling_factor, codes.latent_channels, codes.factor, codes.norm_num_groups) == (0.18215, 3, 4, 32)


@pytest.mark.parametrize(
    ("config", "raw", "field", "value"),
    [
        (ldm_bert.LDMBertConfig, {}, "activation_function", "relu"),
        (ldm_bert.LDMBertConfig, {}, "scale_embedding", True),
        (ldm_bert.LDMBertConfig, {}, "max_position_embeddings", 512),
        (ldm_bert.LDMBertConfig, {}, "model_type", "bert"),
        (ldm_bert.LDMBertConfig, {}, "layer_norm_eps", 1e-12),
        (vq_model.VQModelConfig, VQ, "norm_type", "spatial"),
        (vq_model.VQModelConfig, VQ, "act_fn", "relu"),
        (vq_model.VQModelConfig, VQ, "vq_embed_dim", 64),
        (vq_model.VQModelConfig, VQ, "use_quant_conv", False),
        (vq_model.VQModelConfig, VQ, "down_block_types", ["DownBlock2D"] * 3),
        (vq_model.VQModelConfig, VQ, "up_block_types", ["UpDecoderBlock2D"] * 2),
        (autoencoder_kl.AutoencoderKLConfig, FIRST_STAGE, "up_block_types", ["UpBlock2D"] * 4),
    ],
)
def test_what_is_not_implemented_is_named(config, raw, field, value):
    config.from_json(raw)
    with pytest.raises(UserError, match=field) as caught:
        config.from_json({**raw, field: value})
    assert config.model in str(caught.value)
    assert "\n" not in str(caught.value)
