"""What is done to a PyTorch UNet around `adapt`: the scale stays, or its loss is an error; the original stays too."""

import copy
import importlib
import io
import sys

import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch_models import FIXED, attention, draw, small

from entscale_jax import UserError
from entscale_jax.adapters import adapt
from entscale_jax.adapters.diffusers_torch import EntropyScaledAttnProcessor
from entscale_jax.parity.reference import install

FIRST = "down_blocks/0/attentions/0/transformer_blocks/0/attn1"


@pytest.fixture(scope="module")
def unet():
    return small()


@pytest.fixture(scope="module")
def plain(unet):
    return draw(unet)


@pytest.fixture(scope="module")
def scaled(unet, plain):
    """What FIXED makes of it, by the reference's processors."""
    right = copy.deepcopy(unet)
    for layer in install(right, (8, 8)).values():
        layer.rule, layer.multiplier = FIXED["rule"], FIXED["multiplier"]
    out = draw(right)
    assert not torch.allclose(out, plain, rtol=0, atol=1e-2)
    return out


def close(got, wanted, bound=2e-6):
    return torch.allclose(got, wanted, rtol=0, atol=bound)


def sliced_no_more(unet):
    unet.set_attention_slice("auto")
    unet.set_attention_slice(None)


def another_attention(unet):
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    fresh = Attention(8, heads=2, dim_head=4).eval()
    fresh.load_state_dict(block.attn1.state_dict())
    block.attn1 = fresh


CHANGES = {
    "fused": (lambda unet: unet.fuse_qkv_projections(), "FusedAttnProcessor2_0"),
    "sliced": (lambda unet: unet.set_attention_slice("auto"), "SlicedAttnProcessor"),
    "sliced no more": (sliced_no_more, "AttnProcessor2_0"),
    "set": (lambda unet: unet.set_attn_processor(AttnProcessor2_0()), "AttnProcessor2_0"),
    "xFormers": (lambda unet: unet.set_attn_processor(XFormersAttnProcessor()), "XFormersAttnProcessor"),
    "one": (lambda unet: setattr(attention(unet), "processor", AttnProcessor2_0()), "AttnProcessor2_0"),
    "another attention": (another_attention, "AttnProcessor2_0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_processor_that_was_replaced_is_an_error_at_the_call(unet, plain, scaled, name):
    change, processor = CHANGES[name]
    adapted = adapt(unet, rule=FIXED).model
    assert close(draw(adapted), scaled)
    with torch.no_grad():
        change(adapted)
    with pytest.raises(UserError) as error:
        draw(adapted)
    assert str(error.value).startswith(f"{FIRST} has lost its scale: its processor is now {processor}; ")
    assert "\n" not in str(error.value)
    assert torch.equal(draw(unet), plain)
    if processor not in ("SlicedAttnProcessor", "XFormersAttnProcessor"):
        # PyTorch sums a fused product in another order, by 2.1e-6 on one CPU; the scale itself moves 0.15.
        assert close(draw(adapt(adapted, rule=FIXED).model), scaled, 1e-5)


def test_without_that_error_the_scale_would_be_gone_in_silence(unet, plain, scaled):
    adapted = adapt(unet, rule=FIXED).model
    adapted._forward_pre_hooks.clear()
    adapted.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(draw(adapted), plain)


def test_unfusing_brings_the_scale_back(unet, scaled):
    adapted = adapt(unet, rule=FIXED).model
    with torch.no_grad():
        adapted.fuse_qkv_projections()
    adapted.unfuse_qkv_projections()
    assert close(draw(adapted), scaled)


def test_projections_that_are_fused_no_more_are_not_read(unet):
    model, right = small(), small()
    with torch.no_grad():
        model.fuse_qkv_projections()
        model.unfuse_qkv_projections()
        stale = draw(adapt(model).model)
        for each in (model, right):
            attention(each).to_q.weight *= -1
    assert torch.equal(draw(adapt(model).model), draw(adapt(right).model))
    assert not close(stale, draw(adapt(right).model))


def test_another_forward_is_refused_because_a_copy_would_run_it(unet, plain):
    for name in ("", "mid_block", "down_blocks.0.attentions.0.transformer_blocks.0"):
        model = copy.deepcopy(unet)
        module = model.get_submodule(name)
        module.forward = torch.compile(module.forward, backend="eager")
        with pytest.raises(UserError, match=f"another forward at {name or 'the model itself'}, as torch.compile or"):
            adapt(model)
    model = copy.deepcopy(unet)
    model.mid_block = torch.compile(model.mid_block, backend="eager")
    with pytest.raises(UserError, match="another forward at mid_block"):
        adapt(model)


def test_a_module_that_compiled_itself_is_copied_uncompiled(unet, scaled):
    model = copy.deepcopy(unet)
    model.compile(backend="eager")
    attention(model).compile(backend="eager")
    adapted = adapt(model, rule=FIXED).model
    assert adapted._compiled_call_impl is None
    assert close(draw(adapted), scaled)


def test_copies_of_an_adapted_unet_are_adapted_and_guarded(unet, scaled):
    adapted = adapt(unet, rule=FIXED).model
    file = io.BytesIO()
    torch.save(adapted, file)
    file.seek(0)
    for other in (copy.deepcopy(adapted), torch.load(file, weights_only=False)):
        assert close(draw(other), scaled)
        other.set_attention_slice(None)
        with pytest.raises(UserError, match="has lost its scale"):
            draw(other)
    assert close(draw(adapted), scaled)


def test_adapting_again_leaves_one_guard_and_what_hooks_the_user_had(unet, plain):
    calls = []
    model = copy.deepcopy(unet)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    again = adapt(adapt(model, rule=FIXED).model, rule="original").model
    assert len(again._forward_pre_hooks) == 2
    assert torch.equal(draw(again), plain)
    assert calls == [1]
    assert len(model._forward_pre_hooks) == 1


def test_an_adapted_unet_is_saved_as_what_it_is(unet, plain, tmp_path):
    adapt(unet, rule=FIXED).model.save_pretrained(tmp_path)
    assert torch.equal(draw(UNet2DConditionModel.from_pretrained(tmp_path).eval()), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_references_and_moving_one_moves_the_other(dtype):
    unet, right = small(), small().to(dtype)
    for layer in install(right, (8, 8)).values():
        layer.rule = "entropy"
    adapted = adapt(unet).model
    adapted.to(dtype)
    assert adapted.dtype == unet.dtype == dtype
    assert torch.equal(draw(adapted), draw(right))
    assert not torch.equal(draw(unet), draw(right))


class LowRank(nn.Module):
    """What peft puts in a projection's place."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A, self.lora_B = (nn.Linear(*shape, bias=False) for shape in ((8, 2), (2, 8)))

    def forward(self, hidden):
        return self.base_layer(hidden) + self.lora_B(self.lora_A(hidden))


def test_low_rank_adapters_before_and_after(unet, plain):
    def load(model):
        torch.manual_seed(1)
        for name, module in list(model.named_modules()):
            if name.endswith("attn1"):
                module.to_q = LowRank(module.to_q)

    before, after = copy.deepcopy(unet), adapt(unet).model
    load(before)
    load(after)
    assert torch.equal(draw(adapt(before).model), draw(after))
    assert not close(draw(after), draw(adapt(unet).model))
    assert not close(draw(after), draw(before))
    assert torch.equal(draw(unet), plain)


@pytest.fixture
def pipe(opened):
    _, _, folder = opened("sd1")
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, **options):
    """What a pipeline ends in, of two steps."""
    start = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(0))
    options = {"height": 96, "width": 64, "num_inference_steps": 2, "output_type": "latent", **options}
    return pipe("a red circle", latents=start, **options).images


def image_adapter(unet):
    """The weights of a small IP-Adapter."""
    generator = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    projection = {"proj.weight": torch.randn(4 * width, 16, generator=generator), "proj.bias": torch.zeros(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    pairs = {
        f"{2 * index + 1}.{name}.weight": torch.randn(module.inner_dim, width, generator=generator)
        for index, module in enumerate(attentions)
        for name in ("to_k_ip", "to_v_ip")
    }
    return {"image_proj": projection | norm, "ip_adapter": pairs}


def test_an_image_adapter_is_loaded_before_and_refused_after(pipe):
    weights, images = image_adapter(pipe.unet), {"ip_adapter_image_embeds": [torch.ones(2, 1, 16)]}
    adapted = adapt(pipe, rule=FIXED).model
    before = latents(adapted)
    with pytest.raises(UserError, match="as for an IP-Adapter, load or unload that in the original model, and adapt"):
        adapted.unet._load_ip_adapter_weights(weights)
    assert torch.equal(latents(adapted), before)

    pipe.unet._load_ip_adapter_weights(weights)
    plain = latents(pipe, **images)
    assert not close(plain, latents(pipe, ip_adapter_image_embeds=[torch.zeros(2, 1, 16)]))
    assert torch.equal(latents(adapt(pipe, rule="original").model, **images), plain)
    scaled, report = adapt(pipe, rule=FIXED)
    assert len(report.layers) == len(report.left) == 10
    assert not close(latents(scaled, **images), plain)
    with pytest.raises(UserError, match="load or unload that in the original model"):
        scaled.unload_ip_adapter()


def test_attention_over_an_image_adapters_image_is_left():
    unet = small()
    plus = IPAdapterPlusImageProjection(embed_dims=8, output_dims=6, hidden_dims=8, depth=1, dim_head=4, heads=2)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([plus])
    report = adapt(unet).report
    assert "encoder_hid_proj/image_projection_layers/0/layers/0/attn" in report.left
    assert len(report.layers) == len(adapt(small()).report.layers)


def test_perturbed_attention_is_an_error_at_the_call_that_has_it(pipe):
    adapted = adapt(pipe, rule=FIXED).model
    perturbed = AutoPipelineForText2Image.from_pipe(adapted, enable_pag=True)
    perturbed.set_progress_bar_config(disable=True)
    assert torch.equal(latents(perturbed, pag_scale=0.0), latents(adapted))
    with pytest.raises(UserError, match="its processor is now PAGCFGIdentitySelfAttnProcessor2_0"):
        latents(perturbed, pag_scale=3.0)


def test_slicing_of_a_pipeline_leaves_the_original_and_is_an_error(pipe):
    plain = latents(pipe)
    adapted = adapt(pipe, rule=FIXED).model
    adapted.enable_attention_slicing()
    with pytest.raises(UserError, match="its processor is now SlicedAttnProcessor"):
        latents(adapted)
    assert torch.equal(latents(pipe), plain)


def test_one_pipeline_may_draw_while_the_other_does(pipe):
    """A scheduler holds the state of its drawing."""
    adapted = adapt(pipe, rule=FIXED).model
    alone = latents(adapted, num_inference_steps=4)

    def in_between(*_):
        latents(pipe)
        return {}

    def both():
        return latents(adapted, num_inference_steps=4, callback_on_step_end=in_between)

    assert torch.equal(both(), alone)
    adapted.scheduler = pipe.scheduler
    assert not torch.allclose(both(), alone, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"residual_connection": True}, "residual_connection"), ({"rescale_output_factor": 2.0}, "rescale_output_factor")],
)
def test_attention_with_more_than_projections_is_refused(fields, said):
    module = Attention(12, heads=3, dim_head=4, **fields)
    module.set_processor(EntropyScaledAttnProcessor(64))
    with pytest.raises(UserError, match=f"attn1 has {said}, which this processor does not compute"):
        module(torch.zeros(1, 4, 12))
    unet = small()
    unet.mid_block.attentions[0].transformer_blocks[0].attn1 = Attention(8, heads=2, dim_head=4, **fields)
    with pytest.raises(UserError, match="neither plain self- nor cross-attention: mid_block"):
        adapt(unet)


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_a_package_that_is_missing_is_said_in_one_line(monkeypatch, package):
    name = "entscale_jax.adapters.diffusers_torch"
    monkeypatch.delitem(sys.modules, name)
    for module in [module for module in sys.modules if module == package or module.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs torch and diffusers \(.*{package}.*\): pip install 'entscale-jax"):
        importlib.import_module(name)
