"""The configs of published checkpoints are understood, and T follows from each alone."""

import hashlib
import json

import pytest
from published import TRAIN_TOKENS, UNETS

from entscale_jax.models import UNet2DConditionConfig


@pytest.mark.parametrize("model", UNETS)
def test_train_tokens_follow_from_the_config(model):
    config = UNet2DConditionConfig.from_json(json.loads(json.dumps(UNETS[model])))
    assert {level: config.train_tokens[level] for level in config.attention_levels} == TRAIN_TOKENS[model]


def test_every_model_is_published_whole():
    assert set(UNETS) == set(TRAIN_TOKENS)


SDXL_FILE = "30ebc70750223e59006f7f2b4e1e6c102570aa19a9c4ae3e1fbe7591332dbae6"
"""SHA-256 of unet/config.json in stabilityai/stable-diffusion-xl-base-1.0, as its copies under Git LFS name it."""


def test_sdxl_is_the_published_file_byte_for_byte():
    def digest(**changed):
        config = {**UNETS["SDXL"], "_diffusers_version": "0.19.0.dev0", **changed}
        return hashlib.sha256(f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode()).hexdigest()

    assert digest() == SDXL_FILE
    assert digest(sample_size=64) != SDXL_FILE
