"""SD3's config, its token counts, multipliers worked out by hand, and joint attention by itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel as TorchTransformer
from flax import nnx
from test_ldm_configs import parameters, uncovered

from entscale_jax.errors import UserError
from entscale_jax.models import SD3Transformer2DModel, SD3TransformerConfig, sd3_transformer
from entscale_jax.models.joint_attention import JointAttention, TextRole
from entscale_jax.models.layers import Layers
from entscale_jax.models.sd3_transformer import PatchEmbed
from entscale_jax.scales import ScaleRule, Scaling
from entscale_jax.weights.torch_format import AbstractRngs, torch_name, torch_shape

SD3_MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = {
    **SD3_MEDIUM,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": list(range(13)),
}
SMALL = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3, "caption_projection_dim": 24}
ORIGINAL = Scaling(ScaleRule.ORIGINAL)


@pytest.mark.parametrize(
    ("size", "squared"),
    [((512, 512), 10 / 12), ((1024, 1024), 1), ((2048, 1024), 13 / 12), ((256, 512), 9 / 12), ((1024, 512), 11 / 12)],
)
def test_multipliers_by_hand(size, squared):
    """An autoencoder of 8 and patches of 2: 16 pixels a token side, 2^12 tokens at 1024x1024."""
    config = SD3TransformerConfig.from_json(SD3_MEDIUM)
    tokens = config.tokens((size[0] // 8, size[1] // 8))
    assert config.train_tokens == 4096
    found = Scaling(ScaleRule.ENTROPY).multiplier_at(0, tokens, config.train_tokens)
    assert found == pytest.approx(math.sqrt(squared), rel=1e-15)


def test_the_layers_scale_by_hand():
    layer = _attention(train_tokens=64)
    assert layer.scale(512) == pytest.approx(math.sqrt(9 / 6 / 8), rel=1e-15)
    assert layer.scale(512, ORIGINAL) == pytest.approx(math.sqrt(1 / 8), rel=1e-15)
    assert type(layer.scale(512)) is float


def test_every_field_of_diffusers_has_its_place():
    names = parameters(TorchTransformer)
    assert len(names) > 10
    assert uncovered(names, sd3_transformer, SD3TransformerConfig) == []
    assert uncovered([*names, "next_year"], sd3_transformer, SD3TransformerConfig) == ["next_year"]
    ours = SD3TransformerConfig(sample_size=128)
    assert {name: getattr(ours, name) for name in names} == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_size": None}, "sample_size is missing"),
        ({"sample_size": "128"}, "sample_size=.*valid integer"),
        ({"sample_size": 127}, "grid of 127x127 can't be cut into patches of 2x2"),
        ({"sample_size": 512}, "beyond the 384x384"),
        ({"sample_size": 2}, "leaves 1 token"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"caption_projection_dim": 1152}, "caption_projection_dim=1152 is not the 1536 of 24 heads of 64"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm': implemented are"),
        ({"dual_attention_layers": [0, 24]}, r"dual_attention_layers has \[24\], and there are 24 layers"),
        ({"dual_attention_layers": [-1]}, r"dual_attention_layers"),
        ({"pos_embed_max_size": None}, "pos_embed_max_size=None"),
        ({"axes_dims_rope": [16, 56, 56]}, r"axes_dims_rope=.*unknown field"),
        ({"num_attention_heads": 1, "attention_head_dim": 6, "caption_projection_dim": 6}, "6 channels can't hold"),
    ],
)
def test_what_is_not_implemented_is_named(change, message):
    with pytest.raises(UserError, match=message) as caught:
        SD3TransformerConfig.from_json({**SD3_MEDIUM, **change})
    assert "SD3Transformer2DModel" in str(caught.value) or "token" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_output_channels_mean_those_of_the_input():
    assert SD3TransformerConfig.from_json({**SD3_MEDIUM, "in_channels": 4, "out_channels": None}).channels_out == 4


@pytest.mark.parametrize(
    "raw",
    [pytest.param(SD3_MEDIUM, id="SD3 medium", marks=pytest.mark.full), pytest.param(SD35_MEDIUM, id="SD3.5 medium")],
)
def test_names_and_shapes_at_full_size(raw):
    """Without memory on either side."""
    config = SD3TransformerConfig.from_json(raw)
    state = nnx.state(nnx.eval_shape(lambda: SD3Transformer2DModel(config, rngs=AbstractRngs())))
    ours = {torch_name(path): torch_shape(path, leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)}
    with torch.device("meta"):
        theirs = TorchTransformer(**raw).state_dict()
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def test_positions_of_a_fresh_model_are_those_of_diffusers():
    config = SD3TransformerConfig.from_json({**SMALL, "sample_size": 12, "pos_embed_max_size": 9})
    fresh = PatchEmbed(config, Layers(nnx.Rngs(0))).pos_embed[...]
    expected = TorchTransformer(**SMALL, sample_size=12, pos_embed_max_size=9).pos_embed.pos_embed.numpy()
    np.testing.assert_allclose(fresh, expected, atol=2e-6)
    assert np.abs(fresh.reshape(1, 9, 9, 24).swapaxes(1, 2).reshape(1, 81, 24) - expected).max() > 0.1


def test_positions_are_not_trained():
    config = SD3TransformerConfig.from_json({**SMALL, "sample_size": 12})
    model = nnx.eval_shape(lambda: SD3Transformer2DModel(config, rngs=AbstractRngs()))
    assert "pos_embed" in nnx.to_pure_dict(nnx.state(model))["pos_embed"]
    assert "pos_embed" not in nnx.to_pure_dict(nnx.state(model, nnx.Param))["pos_embed"]


def test_half_precision_stays_half():
    config = SD3TransformerConfig.from_json({**SMALL, "sample_size": 12, "qk_norm": "rms_norm"})
    dtype = jnp.bfloat16

    def predict():
        model = SD3Transformer2DModel(config, rngs=AbstractRngs(), dtype=dtype)
        latents, context, pooled = (jnp.zeros(shape, dtype) for shape in ((2, 8, 14, 16), (2, 7, 4096), (2, 2048)))
        return model(latents, jnp.zeros(2), context, pooled)

    assert jax.eval_shape(predict).dtype == dtype


def _attention(text=TextRole.JOINED, *, qk_norm=False, train_tokens=20):
    make = Layers(nnx.Rngs(3))
    return JointAttention(24, 3, 8, train_tokens=train_tokens, text=text, qk_norm=qk_norm, make=make)


def _tokens(count, seed):
    return 3 * jax.random.normal(jax.random.key(seed), (2, count, 24))


def test_image_rows_follow_the_rule_and_text_rows_do_not():
    layer, image, text = _attention(), _tokens(35, 0), _tokens(5, 1)
    plain, plain_text = layer(image, text, ORIGINAL)
    scaled, scaled_text = layer(image, text)
    np.testing.assert_allclose(scaled_text, plain_text, atol=1e-5)
    assert np.abs(scaled - plain).max() > 1e-3


def test_static_attributes_are_what_an_adapter_sets():
    layer, image, text = _attention(), _tokens(35, 0), _tokens(5, 1)
    plain, scaled = layer(image, text, ORIGINAL)[0], layer(image, text)[0]
    layer.train_tokens = 35
    np.testing.assert_array_equal(layer(image, text)[0], plain)
    layer.train_tokens, layer.rule = 20, ORIGINAL
    np.testing.assert_array_equal(layer(image, text)[0], plain)
    layer.rule = Scaling(ScaleRule.FIXED, math.sqrt(math.log(35) / math.log(20)))
    np.testing.assert_allclose(layer(image, text)[0], scaled, atol=3e-5)


def test_rows_of_equal_scale_are_one_call():
    layer, image, text = _attention(), _tokens(35, 0), _tokens(5, 1)

    def softmaxes(rule):
        return str(jax.make_jaxpr(lambda image, text: layer(image, text, rule))(image, text)).count("= exp ")

    assert (softmaxes(ORIGINAL), softmaxes(None)) == (1, 2)


@pytest.mark.parametrize("text", [TextRole.ABSENT, TextRole.READ])
def test_text_that_is_not_joined_reads_nothing(text):
    layer = _attention(text)
    read, text_read = layer(_tokens(35, 0), None if text is TextRole.ABSENT else _tokens(5, 1))
    assert read.shape == (2, 35, 24)
    assert text_read is None
    assert not hasattr(layer, "to_add_out")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_factor_on_the_query_is_undone_by_its_norm(qk_norm):
    layer, image, text = _attention(qk_norm=qk_norm), _tokens(35, 0), _tokens(5, 1)
    scaled, plain = layer(image, text)[0], layer(image, text, ORIGINAL)[0]
    layer.to_q.kernel[...] *= layer.scale(35) * math.sqrt(8)
    by_factor = layer(image, text, ORIGINAL)[0]
    np.testing.assert_allclose(by_factor, plain if qk_norm else scaled, atol=3e-5)
    assert np.abs(scaled - plain).max() > 1e-3


def test_only_the_first_pictures_are_recorded():
    layer, found = _attention(), {}
    layer.layer, layer.recorded = "here", 1
    layer(_tokens(35, 0), _tokens(5, 1), record=lambda name, entropy, gap: found.update({name: (entropy, gap)}))
    assert [each.shape for each in found["here"]] == [(1, 3), (1, 3)]
    assert 0 < found["here"][0].min() < found["here"][0].max() < math.log(40)
