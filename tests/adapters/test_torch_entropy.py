"""Entropy of adapted PyTorch UNets: of every row in float64, from queries and keys that hooks took of the reference."""

import math

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch_models import CAPTIONS, FIXED, ONE_ATTENTION, attention, draw, small

from entscale_jax import UserError
from entscale_jax.adapters import adapt, measure_entropy
from entscale_jax.adapters import diffusers_torch as torch_adapter
from entscale_jax.parity.reference import install

BOUND = 1e-5
"""Nats. 2.3e-7 measured in float32, 4.4e-16 in float64; the rule `original` is 9.0e-2 away."""


def by_hand(unet, grid=(12, 8)):
    """Layer -> [batch, heads], N x N in float64, of the rule and the multipliers that `unet` has by the reference."""
    projected, hooks = {}, []
    for name, module in unet.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k")):
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: projected.update({name: out})))
    draw(unet, grid)
    for hook in hooks:
        hook.remove()
    found = {}
    for name in [name.removesuffix(".to_q") for name in projected if name.endswith("to_q")]:
        module = unet.get_submodule(name)
        query, key = (
            projected[f"{name}.{to}"].double().unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for to in ("to_q", "to_k")
        )
        weights = torch.softmax(module.processor.scale(query.shape[2], query.shape[3]) * query @ key.mT, dim=-1)
        found[name.replace(".", "/")] = -(weights * weights.log()).sum(-1).mean(-1)
    return found


def reference(rule, dtype=torch.float32, **fields):
    right = small(**fields).to(dtype)
    for layer in install(right, (8, 8)).values():
        layer.rule, layer.multiplier = rule, FIXED["multiplier"]
    return right


def furthest(entropy, wanted):
    """The largest difference in nats; `pytest -s` shows it."""
    assert set(entropy) == set(wanted)
    error = max(float((entropy[path][0].double() - wanted[path]).abs().max()) for path in wanted)
    print(f"{error:.1e}", end=" ")
    return error


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, BOUND), (torch.float64, 1e-12)])
@pytest.mark.parametrize("grid", [(12, 8), (7, 5)])
def test_the_entropy_is_that_of_every_row(dtype, bound, grid):
    unet = small().to(dtype)
    adapted, report = adapt(unet)
    plain = draw(adapted, grid)
    with measure_entropy(adapted) as entropy:
        measured = draw(adapted, grid)
    assert torch.equal(measured, plain)
    assert list(entropy) == [layer.path for layer in report.layers]
    assert {(each.shape, each.dtype) for each in entropy.values()} == {((1, 2, 2), dtype)}
    assert furthest(entropy, by_hand(reference("entropy", dtype), grid)) < bound
    assert furthest(entropy, by_hand(reference("original", dtype), grid)) > 100 * BOUND
    uniform = max(float(each.max()) for each in entropy.values())
    assert uniform < math.log(grid[0] * grid[1])


def test_every_call_is_a_row_and_nothing_is_kept_after():
    adapted, _ = adapt(small())
    with measure_entropy(adapted) as entropy:
        for _ in range(3):
            draw(adapted)
    draw(adapted)
    assert {each.shape for each in entropy.values()} == {(3, 2, 2)}
    with measure_entropy(adapted) as again:
        draw(adapted)
    assert all(torch.equal(again[path][0], entropy[path][2]) for path in entropy)


def test_blocks_of_rows_change_nothing_and_bound_what_is_held(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key = (3 * torch.randn(2, 3, tokens, 5, generator=generator) for tokens in (37, 37))
    whole = torch_adapter._entropy(query, key, 0.7, None)
    held = []
    monkeypatch.setattr(torch_adapter, "_BLOCK_LOGITS", 2 * 3 * 37 * 4)
    monkeypatch.setattr(torch_adapter, "_BLOCK_ROWS", 1)
    entr = torch.special.entr
    monkeypatch.setattr(torch.special, "entr", lambda weights: held.append(weights.shape) or entr(weights))
    assert torch.allclose(torch_adapter._entropy(query, key, 0.7, None), whole, rtol=0, atol=1e-6)
    assert held == [(2, 3, 4, 37)] * 9 + [(2, 3, 1, 37)]


@pytest.mark.parametrize("kind", ["bias", "bool"])
def test_masked_keys_take_no_part(kind):
    unet = small()
    hidden = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0))
    open_keys = torch.arange(24) < 15
    mask = open_keys[None, None].expand(2, 1, 24)
    if kind == "bias":
        mask = torch.where(mask, 0.0, -1e4)
    adapted, _ = adapt(unet, rule="original")

    def measured(hidden, **options):
        with torch.no_grad(), measure_entropy(adapted) as entropy:
            attention(adapted)(hidden, **options)
        (found,) = entropy.values()
        return found

    masked, unmasked = measured(hidden, attention_mask=mask), measured(hidden)
    module = attention(unet)
    with torch.no_grad():
        query, key = (to(hidden).double().unflatten(-1, (2, 4)).transpose(1, 2) for to in (module.to_q, module.to_k))
        weights = torch.softmax(0.5 * query @ key[:, :, :15].mT, dim=-1)
    wanted = torch.special.entr(weights).sum(-1).mean(-1)
    assert (masked[0] - wanted).abs().max() < BOUND
    assert (unmasked[0] - wanted).abs().max() > 100 * BOUND


def test_fused_projections_and_half_precision_are_measured():
    unet = small()
    wanted = by_hand(reference("entropy"))
    with torch.no_grad():
        unet.fuse_qkv_projections()
    adapted, _ = adapt(unet)
    with measure_entropy(adapted) as entropy:
        draw(adapted)
    assert furthest(entropy, wanted) < BOUND
    half, _ = adapt(small().bfloat16())
    with measure_entropy(half) as entropy:
        draw(half)
    assert {each.dtype for each in entropy.values()} == {torch.float32}
    # Of the queries and keys of this very model, which are rounded.
    assert furthest(entropy, by_hand(reference("entropy", torch.bfloat16))) < BOUND


def test_autocast_does_not_reach_the_measuring():
    generator = torch.Generator().manual_seed(0)
    query, key = (3 * torch.randn(1, 2, 20, 5, generator=generator) for _ in range(2))
    alone = torch_adapter._entropy(query, key, 0.7, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch_adapter._entropy(query, key, 0.7, None), alone)
        weights = torch.softmax(0.7 * query @ key.mT, dim=-1)
    assert not torch.allclose(torch.special.entr(weights).sum(-1).mean(-1).float(), alone, rtol=0, atol=100 * BOUND)


def test_a_whole_pipeline(opened):
    _, _, folder = opened("sd1")
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    adapted, report = adapt(pipe)

    def draw_it():
        start = torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(0))
        options = {"height": 96, "width": 64, "num_inference_steps": 3, "output_type": "np"}
        return adapted(list(CAPTIONS), latents=start, **options).images

    plain = draw_it()
    with measure_entropy(adapted) as entropy:
        assert np.array_equal(draw_it(), plain)
    assert {path: tuple(each.shape) for path, each in entropy.items()} == {
        layer.path: (3, 2 * 2, layer.heads) for layer in report.layers
    }


def test_what_cannot_be_measured_is_said_in_one_line():
    adapted, _ = adapt(small(**ONE_ATTENTION))
    compiled = adapt(small(**ONE_ATTENTION)).model
    compiled.compile(backend="eager")
    for model, said in (
        (small(**ONE_ATTENTION), "UNet2DConditionModel is not adapted: adapt it first"),
        (torch.compile(adapted, backend="eager"), "can't be measured: give what adapt returned, before torch.compile"),
        (compiled, "can't be measured: give what adapt returned, before torch.compile"),
        (np.zeros(3), "ndarray is not of PyTorch: in JAX, adapt(model, measure_entropy=True)"),
    ):
        with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")), measure_entropy(model):
            pass
    with measure_entropy(adapted), pytest.raises(UserError, match="is measured already"), measure_entropy(adapted):
        pass

    def measure(*batches):
        with torch.no_grad(), measure_entropy(adapted):
            for batch in batches:
                adapted(torch.zeros(batch, 4, 8, 8), 3, torch.zeros(batch, 5, 6))

    def fail():
        with measure_entropy(adapted):
            raise ZeroDivisionError

    with pytest.raises(UserError, match="batches of different sizes"):
        measure(1, 2)
    with pytest.raises(ZeroDivisionError):
        fail()
    measure(2)
    with pytest.raises(UserError, match="`with measure_entropy"):
        adapt(small(**ONE_ATTENTION), measure_entropy=True)
