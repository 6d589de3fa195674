"""Each module in float64 against PyTorch at many grids, under both rules, and the mistakes that must not pass."""

import jax
import numpy as np
import pytest
import torch
from parity_cases import ENTROPY, GRIDS, ORIGINAL, bucket_of

from entscale_jax.parity.bounds import CONTROL
from entscale_jax.parity.compare import CAPTIONS, call, precision, relative_error
from entscale_jax.scales import ScaleRule, Scaling

BOUND = 1e-9
QUICK_GRIDS = {"sd1": GRIDS["sd1"], "sd2": ((7, 13),), "scenes": ((7, 13), (27, 18))}


def _cases(quick):
    return [
        pytest.param(model, grid, marks=() if grid in quick.get(model, ()) else pytest.mark.full)
        for model, grids in GRIDS.items()
        for grid in grids
    ]


@pytest.fixture(autouse=True)
def _float64():
    # Half the time of compiling; what XLA's optimisations do to rounding is seen in the tests of DDIM.
    jax.config.update("jax_disable_most_optimizations", True)
    # flax asks for the common type of float64 and float32 in its norms, which "strict" refuses; float32 that crept into
    # a model would miss the bound by 100.
    with precision(float64=True), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("scaling", [ORIGINAL, ENTROPY], ids=lambda scaling: scaling.label)
@pytest.mark.parametrize(("model", "grid"), _cases(QUICK_GRIDS))
def test_unet(open_pair, model, grid, scaling):
    pair = open_pair(model, True)
    bucket = bucket_of(pair, grid)
    other = ENTROPY if scaling is ORIGINAL else ORIGINAL
    error, swapped = pair.unet(bucket, scaling, scaling, other)
    assert error <= BOUND
    if pair.rules_differ(bucket, scaling):
        assert swapped >= CONTROL * BOUND
    elif grid == pair.info.train_grid:
        assert swapped <= BOUND


@pytest.mark.parametrize("model", ["sd1", "sd2", "scenes"])
def test_controls_are_asked_for_at_most_grids(open_pair, model):
    pair = open_pair(model, True)
    assert sum(pair.rules_differ(bucket_of(pair, grid), ENTROPY) for grid in GRIDS[model]) >= 4


def test_unet_with_a_multiplier_a_level(open_pair):
    pair = open_pair("sd1", True)
    right, reversed_levels = (
        Scaling(ScaleRule.FIXED, values) for values in ((0.8, 0.9, 1.1, 1.3), (1.3, 1.1, 0.9, 0.8))
    )
    error, swapped = pair.unet(bucket_of(pair, (7, 13)), right, right, reversed_levels)
    assert error <= BOUND
    assert swapped >= CONTROL * BOUND


@pytest.mark.parametrize(("model", "grid"), _cases({"sd1": ((7, 13), (28, 28)), "scenes": ((7, 13),)}))
def test_vae_decode(open_pair, model, grid):
    pair = open_pair(model, True)
    assert [row.module for row in pair.decode(bucket_of(pair, grid)) if not row.passed] == []


@pytest.mark.parametrize("model", ["sd1", "scenes"])
def test_vae_encode(open_pair, model):
    pair = open_pair(model, True)
    images = np.random.default_rng(4).uniform(-1, 1, (2, 5 * pair.info.latent_factor, 7 * pair.info.latent_factor, 3))
    expected = pair.reference.encode(images)
    got = np.concatenate(call(pair.pipe.vae, images, method="encode"), axis=-1)
    assert relative_error(got, expected) <= BOUND
    assert relative_error(got, pair.reference.encode(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)) > 100 * BOUND


@pytest.mark.parametrize("model", ["sd1", "sd2", "scenes"])
def test_text_encoder(open_pair, model):
    assert [row.passed for row in open_pair(model, True).text()] == [True, True]


@pytest.mark.parametrize("model", ["sd1", "sd2", "scenes"])
@pytest.mark.parametrize("captions", [("",), ("a red circle", "A RED  circle "), ("!!", "a9z")])
def test_token_ids_are_equal(open_pair, model, captions):
    pair = open_pair(model, True)
    ours = pair.info.tokenizer()
    assert ours(captions).tolist() == pair.reference.token_ids(captions).tolist()


def test_a_long_caption_is_cut_alike_and_said_so(open_pair):
    pair = open_pair("sd1", True)
    ours = pair.info.tokenizer()
    caption = "a red circle and a blue square"
    with pytest.warns(UserWarning, match="17 tokens"):
        ids = ours([caption])
    assert ids.tolist() == pair.reference.token_ids([caption]).tolist()


@pytest.mark.parametrize("model", ["sd1", "sd2", "scenes"])
def test_time_embedding_alone(open_pair, model):
    row = open_pair(model, True).time_embedding()
    assert row.error <= row.bound == 1e-4


class _Altered:
    """Adds 1e-3 to the first element of one parameter of a PyTorch module, and takes it away again."""

    def __init__(self, module, name):
        self.tensor = dict(module.named_parameters())[name].data.view(-1)

    def __enter__(self):
        self.before = self.tensor[0].item()
        self.tensor[0] += 1e-3

    def __exit__(self, *_):
        self.tensor[0] = self.before


@pytest.mark.parametrize("model", ["sd1", "scenes"])
def test_one_altered_weight_fails_the_vae(open_pair, model):
    pair = open_pair(model, True)
    latents = pair.noise(bucket_of(pair, (7, 13)))
    got = call(pair.pipe.vae, latents / pair.info.vae.scaling_factor, method="decode")
    middle = "decoder.mid_block.attentions.0.to_v.weight"  # the built-in model has no attention there
    names = ("decoder.conv_out.weight", "post_quant_conv.bias", middle if model == "sd1" else "decoder.conv_in.weight")
    for name in names:
        with _Altered(pair.reference.vae, name):
            assert relative_error(got, pair.reference.decode(latents)) > 100 * BOUND, name
    assert relative_error(got, pair.reference.decode(latents)) <= BOUND


@pytest.mark.parametrize("model", ["sd1", "sd2", "scenes"])
def test_one_altered_weight_fails_the_text_encoder(open_pair, model):
    pair = open_pair(model, True)
    got = call(pair.pipe.text, (pair.info.tokenizer()(CAPTIONS),)).states
    names = [name for name, _ in pair.reference.text_encoder.named_parameters()]
    first = next(name for name in names if name.endswith("layers.0.self_attn.v_proj.weight"))
    last = next(name for name in names if name.endswith("final_layer_norm.bias"))
    for name in (first, last):
        with _Altered(pair.reference.text_encoder, name):
            assert relative_error(got, pair.reference.text_states(CAPTIONS)) > 100 * BOUND, name
    assert relative_error(got, pair.reference.text_states(CAPTIONS)) <= BOUND


def test_reference_computes_in_float64(open_pair):
    pair = open_pair("sd1", True)
    modules = (pair.reference.unet, pair.reference.vae, pair.reference.text_encoder)
    assert all(parameter.dtype == torch.float64 for module in modules for parameter in module.parameters())
    assert pair.reference.text_encoder.config._attn_implementation == "sdpa"
