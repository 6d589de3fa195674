"""Super-resolution without text: what its folder says, each way in which it can be another thing, published sizes."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel as TorchVQ
from diffusers.models.unets.unet_2d import UNet2DModel as TorchUNet
from flax import nnx
from PIL import Image

from entscale_jax import UserError
from entscale_jax.models import UNet2DConfig, UNet2DModel, VQModel, VQModelConfig
from entscale_jax.upscaler import Upscaler
from entscale_jax.weights.layout import torch_name, torch_shape
from entscale_jax.weights.torch_format import AbstractRngs
from entscale_jax.weights.upscaler_folder import describe_upscaler

UNET = {
    "sample_size": 64,
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": [160, 320, 320, 640],
    "down_block_types": [*["DownBlock2D"] * 3, "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", *["UpBlock2D"] * 3],
    "layers_per_block": 2,
    "attention_head_dim": 32,
}
VQ = {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": 3,
}
"""In diffusers' names what CompVis/latent-diffusion's models/ldm/bsr_sr/config.yaml says."""


@pytest.fixture
def changed(tiny_ldm_upscaler_folder, tmp_path):
    """A copy of the folder with fields of one of its files changed; a field that is None is taken out."""

    def change(file, **fields):
        copy = tmp_path / "copy"
        shutil.copytree(tiny_ldm_upscaler_folder, copy)
        content = {**json.loads((copy / file).read_text()), **fields}
        (copy / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
        return copy

    return change


def test_what_is_read(tiny_ldm_upscaler_folder):
    info = describe_upscaler(tiny_ldm_upscaler_folder)
    assert info.factor == 4
    assert info.model.vae.scaling_factor == 1.0  # whatever VQModel's default is: the pipeline does not divide
    assert info.guidance(None) == 1.0
    assert info.noise_level(None) is None
    assert info.fitted_size(70, 97) == (64, 96)
    assert set(info.model.unet.self_attention.values()) == {1}


def test_pictures_shrink_as_diffusers_shrinks_them(tiny_ldm_upscaler_folder):
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 65, 3), np.uint8)
    got = describe_upscaler(tiny_ldm_upscaler_folder).fitted(images)
    expected = [Image.fromarray(image).resize((64, 32), resample=Image.Resampling.LANCZOS) for image in images]
    np.testing.assert_array_equal(got, np.stack([np.asarray(image) for image in expected]))


BAD = {
    "a first stage of another kind": ("model_index.json", {"vqvae": ["diffusers", "AutoencoderKL"]}, "is VQModel"),
    "text": ("model_index.json", {"bert": ["transformers", "BertModel"]}, "has a part bert"),
    "no picture": ("unet/config.json", {"in_channels": 3}, "takes 3 channels and gives 3, latents have 3 and a pict"),
    "no size": ("unet/config.json", {"sample_size": None}, "sample_size is missing"),
    "Fourier's embedding": ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    "blocks of another kind": (
        "unet/config.json",
        {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
        "SkipDown",
    ),
    "blocks of three levels": ("unet/config.json", {"up_block_types": ["UpBlock2D"] * 3}, "3 values for 2 levels"),
    "heads that don't fit": ("unet/config.json", {"attention_head_dim": 5}, "32 channels can't be shared by heads of"),
    "an unknown field": ("unet/config.json", {"resolution": 4}, "resolution=4 (unknown field)"),
}


@pytest.mark.parametrize(("file", "fields", "said"), BAD.values(), ids=list(BAD))
def test_what_it_is_not_is_told_in_a_line(changed, file, fields, said):
    with pytest.raises(UserError) as caught:
        describe_upscaler(changed(file, **fields))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_too_many_or_missing_is_told(changed, tiny_ldm_upscaler_folder):
    folder = changed("unet/config.json", layers_per_block=2)
    with pytest.raises(UserError, match=r"missing key down_blocks\.0\.resnets\.1"):
        describe_upscaler(folder).model.load("unet")


CALLS = {
    "guidance": (
        {"guidance": 1.0},
        (32, 32),
        "guidance is 1.0: model .* is a LDMSuperResolutionPipeline, which has none",
    ),
    "noise": ({"noise_level": 0}, (32, 32), "noise_level is 0: model .* which has none: leave it out"),
    "steps": ({"steps": 0}, (32, 32), "steps is 0: give a whole number"),
    "a small picture": ({}, (40, 31), "a picture of 31x40 is too small .* sides of 32 pixels"),
}


@pytest.mark.parametrize(("options", "size", "said"), CALLS.values(), ids=list(CALLS))
def test_a_call_that_can_t_be_is_refused(tiny_ldm_upscaler_folder, options, size, said):
    upscaler = Upscaler.from_pretrained(tiny_ldm_upscaler_folder)
    with pytest.raises(UserError, match=said):
        upscaler(np.zeros((1, *size, 3), np.uint8), ["a"], **options)


def test_a_sampler_that_scales_what_the_unet_sees_is_refused(tiny_ldm_upscaler_folder):
    """diffusers would scale the picture, too."""
    info = describe_upscaler(tiny_ldm_upscaler_folder, sampler="euler")
    with pytest.raises(UserError, match="has sampler euler, which scales what the UNet is given"):
        info.check_sampler(info.model.schedule, 3)
    info.check_sampler(describe_upscaler(tiny_ldm_upscaler_folder).model.schedule, 3)


@pytest.mark.parametrize(
    ("config", "module", "raw", "torch_kind"),
    [(UNet2DConfig, UNet2DModel, UNET, TorchUNet), (VQModelConfig, VQModel, VQ, TorchVQ)],
    ids=["unet", "vqvae"],
)
def test_published_names_and_shapes_are_pytorch_s(config, module, raw, torch_kind):
    """Without memory on either side; the control is another width of the coarsest level."""
    state = nnx.state(nnx.eval_shape(lambda: module(config.from_json(raw), rngs=AbstractRngs())))
    ours = {torch_name(path): torch_shape(path, leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)}
    assert ours == _of_pytorch(torch_kind, raw)
    wider = [*raw["block_out_channels"][:-1], 2 * raw["block_out_channels"][-1]]
    assert ours != _of_pytorch(torch_kind, {**raw, "block_out_channels": wider})


def _of_pytorch(kind, raw):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in kind(**raw).state_dict().items()}


def test_the_published_unet_attends_at_its_coarsest_level():
    config = UNet2DConfig.from_json(UNET)
    assert config.attention_levels == (3,)
    assert config.heads[3] == 20
    assert config.train_tokens[3] == 64
    assert len(config.self_attention) == 2 + 1 + 3
