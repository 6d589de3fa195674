"""The rule costs nothing: programs of `original` and `entropy` are one program with other literals."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entscale_jax.models import UNet2DConditionConfig, UNet2DConditionModel
from entscale_jax.sampling import DDIM, denoise, sample
from entscale_jax.weights.torch_format import AbstractRngs

CONFIG = UNet2DConditionConfig(
    sample_size=16,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 24),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=12,
    attention_head_dim=(2, 4),
)
HEAD_DIMS = (8, 6)
STATISTICS = (
    "attention.attention_statistics",
    "attention.attention_with_statistics",
    "kernels.plain._statistics",
)
"""What computes entropies."""
FLOAT = re.compile(r"(?<=dense<)-?\d+\.\d+(?:e[+-]\d+)?(?=>)")


def _lower(rule, grid=(7, 13), draw=sample, **options):
    """The lowered sampler: two guided steps of a batch of two, no weights needed."""
    graph, weights = nnx.split(nnx.eval_shape(lambda: UNet2DConditionModel(CONFIG, rngs=AbstractRngs())))
    latents = jax.ShapeDtypeStruct((2, *grid, 4), jnp.float32)
    context = jax.ShapeDtypeStruct((2, 5, 12), jnp.float32)

    def call(weights, latents, context):
        unet = nnx.merge(graph, weights)
        arguments = {"schedule": DDIM(), "steps": 2, "unconditional": context, "guidance": 5.0, **options}
        return draw(unet, latents, context, rule=rule, **arguments)

    return jax.jit(call).lower(weights, latents, context)


def _masked(text):
    return FLOAT.sub("FLOAT", text)


@pytest.fixture(scope="module")
def lowered():
    return {rule: _lower(rule) for rule in ("original", "entropy")}


def test_programs_differ_in_float_literals_alone(lowered):
    original, entropy = (lowered[rule].as_text() for rule in ("original", "entropy"))
    assert original != entropy
    assert _masked(original) == _masked(entropy)


def test_masking_hides_nothing_else(lowered):
    """The control: another grid, another number of steps, or entropies asked for make another program."""
    masked = _masked(lowered["entropy"].as_text())
    for other in (_lower("entropy", grid=(7, 14)), _lower("entropy", steps=3), _lower("entropy", unconditional=None)):
        assert _masked(other.as_text()) != masked


def test_the_literals_that_differ_are_the_scales(lowered):
    lines = zip(*(lowered[rule].as_text().splitlines() for rule in ("original", "entropy")), strict=True)
    changed = {(FLOAT.findall(one)[0], FLOAT.findall(two)[0]) for one, two in lines if one != two}
    multipliers = [math.sqrt(math.log(7 * 13) / math.log(256)), math.sqrt(math.log(4 * 7) / math.log(64))]
    expected = {
        (np.float32(1 / math.sqrt(width)), np.float32(multiplier / math.sqrt(width)))
        for width, multiplier in zip(HEAD_DIMS, multipliers, strict=True)
    }
    assert {(np.float32(one), np.float32(two)) for one, two in changed} == expected


def test_at_the_training_size_the_programs_are_one():
    assert _lower("original", grid=(16, 16)).as_text() == _lower("entropy", grid=(16, 16)).as_text()


def test_flops_are_equal(lowered):
    flops = {rule: program.compile().cost_analysis()["flops"] for rule, program in lowered.items()}
    assert flops["original"] == flops["entropy"] > 1e6
    assert _lower("entropy", grid=(7, 14)).compile().cost_analysis()["flops"] > flops["entropy"]


def test_what_is_not_measured_is_not_in_the_program(monkeypatch):
    """With the statistics of attention removed altogether, the program is the same text; asked for, they are missed."""
    plain = _lower("entropy").as_text()
    measuring = _lower("entropy", draw=denoise, measure_entropy=True).as_text()
    assert measuring.count("stablehlo.log ") > plain.count("stablehlo.log ")

    def removed(*_, **__):
        raise AssertionError("statistics are computed")

    for name in STATISTICS:
        monkeypatch.setattr(f"entscale_jax.{name}", removed)
    assert _lower("entropy").as_text() == plain
    with pytest.raises(AssertionError, match="statistics are computed"):
        _lower("entropy", draw=denoise, measure_entropy=True)
