"""Every field that diffusers or transformers may write into a config is understood, refused, or known to be inert."""

import dataclasses
import inspect

import pytest
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig

from entscale_jax.errors import UserError
from entscale_jax.models import autoencoder_kl, clip_text, unet_2d_condition


def _signature(model):
    """Field -> default of a diffusers model."""
    parameters = inspect.signature(model.__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}


def _transformers():
    """Field -> default of transformers' text config, those of its base classes and of its own saving included."""
    written = CLIPTextConfig().to_dict()
    declared = {field.name: getattr(CLIPTextConfig(), field.name) for field in dataclasses.fields(CLIPTextConfig)}
    return {name: value for name, value in {**declared, **written}.items() if not name.startswith("_")}


THEIRS = {
    "UNet2DConditionConfig": (_signature(UNet2DConditionModel), unet_2d_condition),
    "AutoencoderKLConfig": (_signature(AutoencoderKL), autoencoder_kl),
    "CLIPTextConfig": (_transformers(), clip_text),
    "CLIPTextProjectionConfig": (_transformers(), clip_text),
}
NO_DEFAULT = {("UNet2DConditionConfig", "sample_size")}
"""Where the config must say it: T is made of it."""


def _unknown(theirs, config, file):
    ours = {field.name for field in dataclasses.fields(config)}
    return set(theirs) - ours - set(file._FIXED) - file._INERT


@pytest.mark.parametrize("name", THEIRS)
def test_every_field_is_understood_refused_or_inert(name):
    theirs, file = THEIRS[name]
    config = getattr(file, name)
    assert len(theirs) > 15
    assert _unknown(theirs, config, file) == set()
    assert _unknown({**theirs, "a_field_of_next_year": 3}, config, file) == {"a_field_of_next_year"}
    assert not set(file._FIXED) & file._INERT
    assert set(file._FIXED) <= set(theirs)


@pytest.mark.parametrize("name", THEIRS)
def test_a_field_that_is_left_out_has_their_default(name):
    theirs, file = THEIRS[name]
    for field in dataclasses.fields(getattr(file, name)):
        if (name, field.name) in NO_DEFAULT:
            assert field.default is dataclasses.MISSING
        else:
            assert field.default == theirs[field.name], field.name
    for field, values in file._FIXED.items():
        assert theirs[field] in values, field


def test_only_a_model_that_pools_reads_where_a_text_ends():
    raw = {"projection_dim": None, "eos_token_id": [1, 2]}
    assert clip_text.CLIPTextConfig.from_json(raw) == clip_text.CLIPTextConfig()
    for name, value in raw.items():
        with pytest.raises(UserError, match=f"CLIPTextModelWithProjection: {name}"):
            clip_text.CLIPTextProjectionConfig.from_json({name: value})
