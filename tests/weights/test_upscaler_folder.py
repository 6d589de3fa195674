"""The folder of an upscaler: what is read of it, and each way in which it can be another thing, in one line."""

import json
import shutil

import pytest

from entscale_jax import UserError
from entscale_jax.weights.folder import describe
from entscale_jax.weights.upscaler_folder import describe_upscaler


@pytest.fixture
def changed(tiny_upscaler_folder, tmp_path):
    """A copy of the folder with fields of one of its files changed; a field that is None is taken out."""

    def change(file, **fields):
        copy = tmp_path / "copy"
        shutil.copytree(tiny_upscaler_folder, copy)
        content = {**json.loads((copy / file).read_text()), **fields}
        (copy / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
        return copy

    return change


def test_what_is_read(tiny_upscaler_folder):
    info = describe_upscaler(tiny_upscaler_folder)
    assert info.factor == 4
    assert info.max_noise_level == 39  # the table has 40 rows, though model_index.json says 350
    assert info.noise.num_train_timesteps == 1000
    # Only the coarser of two levels attends to itself: down, middle and up.
    assert set(info.model.unet.self_attention.values()) == {1}
    signal, share = info.noise.shares(20)
    assert signal**2 + share**2 == pytest.approx(1)


def test_what_the_pipeline_sets_is_set(changed):
    """diffusers' pipeline divides latents by 0.08333 whatever the folder says."""
    folder = changed("vae/config.json", scaling_factor=0.18215)
    assert describe_upscaler(folder).model.vae.scaling_factor == 0.08333


def test_the_picture_s_noise_is_part_of_the_weights_hash(tiny_upscaler_folder, changed):
    folder = changed("low_res_scheduler/scheduler_config.json", beta_end=0.03)
    assert describe_upscaler(folder).weights_hash != describe_upscaler(tiny_upscaler_folder).weights_hash


BAD = {
    "no noise for pictures": ("model_index.json", {"low_res_scheduler": None}, "has low_res_scheduler as None"),
    "another noise": (
        "model_index.json",
        {"low_res_scheduler": ["diffusers", "EulerDiscreteScheduler"]},
        "low_res_scheduler as EulerDiscreteScheduler: implemented is DDPMScheduler",
    ),
    "noise that ends in none": (
        "low_res_scheduler/scheduler_config.json",
        {"rescale_betas_zero_snr": True},
        "rescale_betas_zero_snr=True is not implemented",
    ),
    "a noise level of a word": ("model_index.json", {"max_noise_level": "many"}, "max_noise_level is 'many'"),
    "a watermark": ("model_index.json", {"watermarker": ["a", "B"]}, "has a part watermarker"),
    "no picture": (
        "unet/config.json",
        {"in_channels": 4},
        "takes 4 channels and gives 4, latents have 4 and a picture",
    ),
    "no table of levels": ("unet/config.json", {"num_class_embeds": None}, "incomplete config"),
    "attention to text everywhere": ("unet/config.json", {"only_cross_attention": True}, "only_cross_attention=True"),
    "attention of three levels": (
        "unet/config.json",
        {"only_cross_attention": [True] * 3},
        "has 3 values for 2 levels",
    ),
    "classes of another kind": ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
}


@pytest.mark.parametrize(("file", "fields", "said"), BAD.values(), ids=list(BAD))
def test_what_it_is_not_is_told_in_a_line(changed, file, fields, said):
    with pytest.raises(UserError) as caught:
        describe_upscaler(changed(file, **fields))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_two_kinds_are_told_apart(tiny_folder, tiny_upscaler_folder):
    with pytest.raises(UserError, match="is a StableDiffusionUpscalePipeline, which enlarges pictures and draws none"):
        describe(tiny_upscaler_folder)
    with pytest.raises(
        UserError, match="is a StableDiffusionPipeline: implemented are StableDiffusionUpscalePipeline, LDMSuper"
    ):
        describe_upscaler(tiny_folder)
