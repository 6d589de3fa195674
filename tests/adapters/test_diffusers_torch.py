"""PyTorch diffusers adapted: against the reference, which states lambda itself and has processors of its own."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
import torch._dynamo
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from entscale_jax import UserError
from entscale_jax.adapters import adapt
from entscale_jax.adapters.diffusers_torch import EntropyScaledAttnProcessor
from entscale_jax.parity import random_ldm, random_models, random_sdxl
from entscale_jax.parity.reference import Reference, install
from entscale_jax.parity.reference_ldm import ReferenceLDM
from entscale_jax.parity.reference_sdxl import ReferenceSDXL

BOUND = 1e-13
"""Both call one kernel with one number."""
CAPTIONS = ("a red circle", "a blue square")
FAMILIES = {
    "sd1": (Reference, lambda folder: random_models.build(folder, "sd1", sample_size=16)),
    "sd2": (Reference, lambda folder: random_models.build(folder, "sd2", sample_size=(12, 20), seed=1)),
    "sd2-base": (Reference, lambda folder: random_models.build(folder, "sd2-base", sample_size=16, seed=2)),
    "ldm-kl": (ReferenceLDM, lambda folder: random_ldm.build(folder, "kl", sample_size=16)),
    "ldm-vq": (ReferenceLDM, lambda folder: random_ldm.build(folder, "vq", sample_size=(12, 20), seed=1)),
    "sdxl": (ReferenceSDXL, lambda folder: random_sdxl.build(folder, sample_size=(12, 20))),
}
GRIDS = ((12, 20), (28, 28), (9, 14))
FIXED = {"rule": "fixed", "multiplier": 1.7}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # The models are so small that a second thread only waits for the first.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Family -> (the reference in float64, the same UNet with diffusers' own processors, the folder)."""

    @cache
    def of(family):
        reference, build = FAMILIES[family]
        folder = build(tmp_path_factory.mktemp("torch") / family)
        unet = UNet2DConditionModel.from_pretrained(str(folder), subfolder="unet").double().eval()
        right = reference(folder, float64=True)
        # Its sinusoids are in float64; diffusers' own are in float32 whatever the dtype.
        for name in ("time_proj", "add_time_proj"):
            if hasattr(unet, name):
                setattr(unet, name, getattr(right.unet, name))
        return right, unet, folder

    return of


def noise(reference, grid):
    channels = reference.unet.config["in_channels"]
    return np.random.default_rng(0).standard_normal((2, *grid, channels))


def call(reference, unet, grid):
    """A UNet's output [B h w c] of what the reference's gets."""
    latents = torch.from_numpy(noise(reference, grid)).permute(0, 3, 1, 2).contiguous().to(unet.dtype)
    told = reference._keywords(reference.conditions(CAPTIONS))
    with torch.no_grad():
        return unet(latents, 481, **told, return_dict=False)[0].permute(0, 2, 3, 1).numpy()


def expected(reference, grid, rule):
    name, multiplier = (rule["rule"], rule["multiplier"]) if isinstance(rule, dict) else (rule, 1.0)
    return reference.unet_once(noise(reference, grid), 481, reference.conditions(CAPTIONS), name, multiplier)


def relative(got, wanted):
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_reference_at_every_size(opened, family):
    reference, unet, _ = opened(family)
    before = call(reference, unet, GRIDS[0])
    adapted = {str(rule): adapt(unet, rule=rule).model for rule in ("entropy", "original", FIXED)}
    for grid in GRIDS:
        for rule, other in (("entropy", FIXED), ("original", FIXED), (FIXED, "original")):
            got = call(reference, adapted[str(rule)], grid)
            assert relative(got, expected(reference, grid, rule)) < BOUND
            assert relative(got, expected(reference, grid, other)) > 1e-4 > 100 * BOUND
    assert relative(call(reference, adapted["entropy"], (28, 28)), expected(reference, (28, 28), "original")) > 1e-4
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


@pytest.mark.parametrize("size", [(128, 128), (104, 72)])
def test_a_whole_pipeline_draws_what_the_reference_draws(opened, size):
    _, _, folder = opened("sd1")
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    adapted, _ = adapt(pipe, train_size=(96, 96))
    right = Reference(folder, train_grid=(12, 12))
    grid = (size[0] // 8, size[1] // 8)
    latents = np.random.default_rng(0).standard_normal((2, *grid, 4)).astype(np.float32)

    def draw(pipe):
        start = torch.from_numpy(latents).permute(0, 3, 1, 2)
        options = {"height": size[0], "width": size[1], "guidance_scale": 4.0, "num_inference_steps": 3}
        return pipe(list(CAPTIONS), latents=start, output_type="np", **options).images

    wanted = {rule: right.ddim(latents, CAPTIONS, steps=3, guidance=4.0, rule=rule) for rule in ("entropy", "original")}
    assert np.abs(draw(adapted) - wanted["entropy"].images).max() < 1e-4
    assert np.abs(draw(adapted) - wanted["original"].images).max() > 1e-2
    assert np.abs(draw(pipe) - wanted["original"].images).max() < 1e-4
    assert pipe.unet is not adapted.unet
    assert pipe.config["unet"] == adapted.config["unet"]


def test_torch_compile_has_one_graph_a_size_and_no_breaks():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    unet, right = small().eval(), small().eval()
    right.load_state_dict(unet.state_dict())
    for layer in install(right, (8, 8)).values():
        layer.rule = "entropy"
    compiled = torch.compile(adapt(unet).model, fullgraph=True, backend="eager")
    generator = torch.Generator().manual_seed(0)

    def inputs(grid):
        return torch.randn(1, 4, *grid, generator=generator), 3, torch.randn(1, 5, 6, generator=generator)

    for grid in GRIDS * 2:
        with torch.no_grad():
            given = inputs(grid)
            assert torch.allclose(compiled(*given).sample, right(*given).sample, rtol=0, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(GRIDS)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_copies_in_turn_and_in_threads_draw_their_own_and_adapting_again_replaces_the_rule(opened):
    reference, unet, _ = opened("sd1")
    rules = ("entropy", "original", FIXED)
    models = [adapt(adapt(unet, rule=FIXED).model, rule=rule).model for rule in rules]
    wanted = [expected(reference, GRIDS[0], rule) for rule in rules]
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


def small(**fields):
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 8),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 6,
            **fields,
        }
    )


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
