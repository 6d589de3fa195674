"""PyTorch diffusers adapted: against the reference, which states lambda itself and has processors of its own."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
import torch._dynamo
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LDMTextToImagePipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch_models import CAPTIONS, FAMILIES, FIXED, ONE_ATTENTION, draw, relative, small

from entscale_jax import UserError
from entscale_jax.adapters import adapt
from entscale_jax.adapters.diffusers_torch import EntropyScaledAttnProcessor
from entscale_jax.parity.reference import install

BOUND = 1e-13
"""Both call one kernel with one number."""
PICTURE = 1e-5
"""Of pictures from 0 to 1, in float32; 2.2e-6 measured."""
GRIDS = ((12, 20), (9, 14), (28, 28))
RULES = {"entropy": "entropy", "original": "original", "fixed": FIXED}


def noise(reference, grid):
    channels = reference.unet.config["in_channels"]
    return np.random.default_rng(0).standard_normal((2, *grid, channels))


def call(reference, unet, grid):
    """A UNet's output [B h w c] of what the reference's gets."""
    latents = torch.from_numpy(noise(reference, grid)).permute(0, 3, 1, 2).contiguous().to(unet.dtype)
    told = reference._keywords(reference.conditions(CAPTIONS))
    with torch.no_grad():
        return unet(latents, 481, **told, return_dict=False)[0].permute(0, 2, 3, 1).numpy()


@cache
def expected(reference, grid, rule):
    """Of one of three rules, by name; `fixed` is FIXED."""
    name, multiplier = rule, FIXED["multiplier"] if rule == "fixed" else 1.0
    return reference.unet_once(noise(reference, grid), 481, reference.conditions(CAPTIONS), name, multiplier)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=pytest.mark.full) if family in ("sd2-base", "ldm-vq") else family
        for family in FAMILIES
    ],
)
def test_every_family_equals_the_reference_at_every_size(opened, family):
    reference, unet, _ = opened(family)
    before = call(reference, unet, GRIDS[0])
    adapted = {rule: adapt(unet, rule=how).model for rule, how in RULES.items()}
    for grid in GRIDS if family == "sd1" else GRIDS[:2]:
        for rule, other in (("entropy", "fixed"), ("original", "fixed"), ("fixed", "original")):
            got = call(reference, adapted[rule], grid)
            assert relative(got, expected(reference, grid, rule)) < BOUND
            assert relative(got, expected(reference, grid, other)) > 1e-4 > 100 * BOUND
    assert relative(call(reference, adapted["entropy"], (9, 14)), expected(reference, (9, 14), "original")) > 1e-4
    assert np.array_equal(call(reference, adapted["original"], GRIDS[0]), before)
    assert np.array_equal(call(reference, unet, GRIDS[0]), before)


def test_only_self_attention_changes_its_processor_and_parameters_are_shared(opened):
    _, unet, _ = opened("sd1")
    before = dict(unet.attn_processors)
    adapted, report = adapt(unet)
    assert unet.attn_processors == before
    changed = {name for name, processor in adapted.attn_processors.items() if type(processor) is not AttnProcessor2_0}
    assert changed == {f"{layer.path.replace('/', '.')}.processor" for layer in report.layers}
    assert changed == {name for name in before if name.endswith("attn1.processor")}
    assert {f"{path.replace('/', '.')}.processor" for path in report.left} == set(before) - changed
    ours = dict(adapted.named_parameters())
    assert all(parameter is ours[name] for name, parameter in unet.named_parameters())
    assert adapted.conv_in is not unet.conv_in


def test_the_report_has_the_papers_multipliers(opened, tmp_path):
    _, _, folder = opened("sd1")
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    _, report = adapt(pipe, train_size=(512, 512))
    assert report.unit == "pixels"
    rows = {row.level: row for row in report.at(224, 224)}
    assert [rows[level].tokens for level in range(4)] == [784, 196, 49, 16]
    assert [rows[level].multiplier for level in range(4)] == pytest.approx([0.895, 0.873, 0.838, 0.816], abs=6e-4)
    assert adapt(pipe).report.train_size == (128, 128)
    assert {(row.heads, row.head_dim) for row in report.at(224, 224)} == {(4, 8), (4, 10), (4, 14), (4, 18)}


PIPELINES = {"sd1": StableDiffusionPipeline, "ldm-kl": LDMTextToImagePipeline, "sdxl": StableDiffusionXLPipeline}
SIZES = [("sd1", (128, 128)), ("sd1", (104, 72)), ("ldm-kl", (104, 72)), ("sdxl", (104, 72))]


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_a_whole_pipeline_draws_what_the_reference_draws(opened, family, size):
    _, _, folder = opened(family)
    pipe = PIPELINES[family].from_pretrained(str(folder), **({"safety_checker": None} if family == "sd1" else {}))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    adapted, _ = adapt(pipe, train_size=(96, 96))
    right = FAMILIES[family][0](folder, train_grid=(12, 12))
    grid = (size[0] // 8, size[1] // 8)
    latents = np.random.default_rng(0).standard_normal((2, *grid, pipe.unet.config.in_channels)).astype(np.float32)

    def draw(pipe):
        start = torch.from_numpy(latents).permute(0, 3, 1, 2)
        options = {"height": size[0], "width": size[1], "guidance_scale": 4.0, "num_inference_steps": 3}
        return pipe(list(CAPTIONS), latents=start, output_type="np", **options).images

    wanted = {
        rule: right.ddim(latents, CAPTIONS, steps=3, guidance=4.0, rule=rule).images for rule in ("entropy", "original")
    }
    assert np.abs(draw(adapted) - wanted["entropy"]).max() < PICTURE
    assert np.abs(draw(adapted) - wanted["original"]).max() > 100 * PICTURE
    assert np.abs(draw(pipe) - wanted["original"]).max() < PICTURE
    assert pipe.unet is not adapted.unet
    assert pipe.config["unet"] == adapted.config["unet"]


@pytest.mark.parametrize(
    ("fields", "grids"),
    [(ONE_ATTENTION, GRIDS[:2]), pytest.param({}, GRIDS, marks=pytest.mark.full)],
    ids=["one attention", "two levels"],
)
def test_torch_compile_has_one_graph_a_size_and_no_breaks(fields, grids):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    unet, right = small(**fields), small(**fields)
    for layer in install(right, (8, 8)).values():
        layer.rule = "entropy"
    adapted = adapt(unet).model
    compiled = torch.compile(adapted, fullgraph=True, backend="eager")
    for grid in grids * 2:
        assert torch.allclose(draw(compiled, grid), draw(right, grid), rtol=0, atol=1e-6)
        assert not torch.allclose(draw(unet, grid), draw(right, grid), rtol=0, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(grids)
    assert not torch._dynamo.utils.counters["graph_break"]
    adapted.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(torch._dynamo.exc.Unsupported, match="has lost its scale: its processor is now AttnProcessor2"):
        draw(compiled, grids[0])


def test_copies_in_turn_and_in_threads_draw_their_own_and_adapting_again_replaces_the_rule(opened):
    reference, unet, _ = opened("sd1")
    models = [adapt(adapt(unet, rule=FIXED).model, rule=rule).model for rule in RULES.values()]
    wanted = [expected(reference, GRIDS[0], rule) for rule in RULES]
    with ThreadPoolExecutor(3) as pool:
        drawn = list(pool.map(lambda k: call(reference, models[k % 3], GRIDS[0]), range(6)))
    assert max(relative(found, wanted[k % 3]) for k, found in enumerate(drawn)) < BOUND


def test_fused_projections_and_masks_are_served(opened):
    reference, unet, _ = opened("sd1")
    fused, _ = adapt(unet)
    with torch.no_grad():
        fused.fuse_qkv_projections()
        served, _ = adapt(fused)
    assert relative(call(reference, served, GRIDS[0]), expected(reference, GRIDS[0], "entropy")) < 1e-12

    mask = torch.zeros(2, 240)
    mask[:, :100] = 1

    def masked(model):
        attention = model.down_blocks[0].attentions[0].transformer_blocks[0].attn1
        hidden = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 240, 32)))
        bias = ((1 - mask) * -1e4).double()[:, None]
        with torch.no_grad():
            return attention(hidden, attention_mask=bias)

    assert torch.equal(masked(adapt(unet, rule="original").model), masked(unet))
    assert not torch.allclose(masked(adapt(unet, rule=FIXED).model), masked(unet))


def with_processor(processor):
    unet = small()
    unet.set_attn_processor(processor)
    return unet


def hooked():
    unet = small()
    unet.mid_block._hf_hook = object()
    return unet


class Two(DiffusionPipeline):
    """A pipeline with a second denoiser."""

    def __init__(self, unet, prior):
        super().__init__()
        self.register_modules(unet=unet, prior=prior)


class One(DiffusionPipeline):
    """A pipeline without an autoencoder."""

    def __init__(self, unet):
        super().__init__()
        self.register_modules(unet=unet)


SIMPLE = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 2,
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 2,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (
            lambda: small(only_cross_attention=True, mid_block_type=None),
            {},
            "nothing matched: UNet2DConditionModel has",
        ),
        (lambda: small(**SIMPLE), {}, "is neither plain self- nor cross-attention: down_blocks/0/attentions/0"),
        (lambda: small(attention_type="gated"), {}, "down_blocks/0/attentions/0/transformer_blocks/0/fuser/attn"),
        (lambda: small(sample_size=None), {}, "the training size of UNet2DConditionModel can't be derived"),
        (lambda: with_processor(AttnProcessor()), {}, "can't be reached: the processor is AttnProcessor; call"),
        (lambda: with_processor(SlicedAttnProcessor(1)), {}, "can't be reached: the processor is SlicedAttnProcessor"),
        (lambda: torch.nn.Linear(2, 2), {}, "Linear is not known: of PyTorch diffusers, adapt takes"),
        (lambda: torch.compile(small(), backend="eager"), {}, "one that torch.compile has made is adapted before"),
        (lambda: small(), {"layers": ["attn1"]}, "layers can't be given for a UNet2DConditionModel"),
        (lambda: small(), {"train_size": (1, 2)}, "leaves 1 token at the deepest of 2 levels"),
        (hooked, {}, "has hooks of accelerate, for offloading, at mid_block"),
        (lambda: Two(small(), small()), {}, "Two has attention beside its UNet's, in prior"),
        (lambda: One(small()), {}, "the training size of One can't be derived: it has no vae"),
    ],
)
def test_what_cannot_be_adapted_is_said_in_one_line(make, options, said):
    with pytest.raises(UserError) as error:
        adapt(make(), **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_only_cross_attention_leaves_the_middle():
    _, report = adapt(small(only_cross_attention=True))
    assert [layer.path for layer in report.layers] == ["mid_block/attentions/0/transformer_blocks/0/attn1"]


def test_the_processor_by_hand_is_attention_with_lambda():
    attention = Attention(12, heads=3, dim_head=4).double()
    hidden = 3 * torch.randn(2, 20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query, key, value = (
        to(hidden).unflatten(-1, (3, 4)).transpose(1, 2) for to in (attention.to_q, attention.to_k, attention.to_v)
    )

    def by_hand(scale):
        mixed = torch.softmax(scale * query @ key.transpose(-1, -2), dim=-1) @ value
        return attention.to_out[0](mixed.transpose(1, 2).flatten(2))

    attention.set_processor(EntropyScaledAttnProcessor(64))
    with torch.no_grad():
        got = attention(hidden)
        assert torch.allclose(got, by_hand(math.sqrt(math.log(20) / math.log(64) / 4)), rtol=0, atol=1e-14)
        assert not torch.allclose(got, by_hand(0.5), rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="train_tokens of attn1 is 1: log_T needs a whole number, 2 or more"):
        EntropyScaledAttnProcessor(1)


def test_a_context_is_refused_at_the_call():
    adapted, report = adapt(small())
    attention = adapted.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    with pytest.raises(UserError, match=f"{report.layers[0].path} was given encoder_hidden_states"):
        attention(torch.zeros(1, 4, 8), encoder_hidden_states=torch.zeros(1, 3, 8))
