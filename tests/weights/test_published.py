"""The configs of published checkpoints are understood, and T follows from each alone."""

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
