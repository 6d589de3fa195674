"""The code in docs/adapters.md does what the page says."""

import shutil

import doc_snippets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_models import Block, LinenBlock, tokens
from diffusers import StableDiffusionPipeline
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel as TorchSD3
from flax import nnx

from entscale_jax.adapters import adapt

TOP = "The scale inside models that you have already"


class Named(Block):
    """With names as on the page."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.self_attention, self.cross_attention = self.attn1, self.attn2
        del self.attn1, self.attn2

    def __call__(self, hidden, context):
        hidden = hidden + self.self_attention(hidden)
        return hidden + self.cross_attention(hidden, context)


def the_top(tiny):
    scope = doc_snippets.run(TOP, model_or_pipeline=tiny)
    assert scope["report"].unit == "pixels"
    assert scope["adapted"].rule == adapt(tiny).report.scaling


def own_nnx(tiny):
    model = Named(nnx.Rngs(0))
    scope = doc_snippets.run("Your own NNX", model=model, adapt=adapt)
    assert [layer.train_tokens for layer in scope["report"].layers] == [4096]
    assert not np.array_equal(scope["adapted"](tokens(9), tokens(3)), model(tokens(9), tokens(3)))


def own_linen(tiny):
    model, inputs = LinenBlock(), (tokens(9), tokens(3))
    params = model.init(jax.random.key(0), *inputs)["params"]
    names = {"linen_model": model, "tokens": inputs[0], "text": inputs[1], "params": params, "adapt": adapt}
    scope = doc_snippets.run("Your own linen", **names)
    assert not np.array_equal(scope["out"], model.apply({"params": params}, *inputs))


def max_diffusion(tiny):
    from maxdiffusion_library import open_library

    unet = open_library().FlaxUNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
    )
    latents = jax.random.normal(jax.random.key(1), (1, 4, 6, 6))
    inputs = latents, jnp.ones(1), jnp.ones((1, 3, 6))
    shapes, rng = jax.eval_shape(unet.init, jax.random.key(0), *inputs)["params"], np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)
    _, timesteps, context = inputs
    names = {"unet": unet, "params": params, "latents": latents, "timesteps": timesteps, "context": context}
    scope = doc_snippets.run("MaxDiffusion", **names, adapt=adapt)
    assert scope["out"].shape == latents.shape
    assert not np.array_equal(scope["out"], unet.apply({"params": params}, *inputs).sample)


def own_models(tiny):
    scope = doc_snippets.run("Models of this package", adapt=adapt)
    assert scope["adapted"].rule.rule == "original"
    assert scope["report"].train_size == (128, 128)


def a_transformer(tiny):
    TorchSD3(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=5,
        pos_embed_max_size=32,
    ).save_pretrained("model/transformer")
    arrays = {
        "latents": jnp.ones((1, 6, 8, 4)),
        "timesteps": jnp.ones(1),
        "context": jnp.ones((1, 3, 6)),
        "pooled": jnp.ones((1, 5)),
    }
    scope = doc_snippets.run("A transformer with text and picture in one sequence", **arrays, adapt=adapt)
    assert scope["velocity"].shape == (1, 6, 8, 4)
    assert {layer.train_tokens for layer in scope["report"].layers} == {32 * 32}


def in_torch(tiny):
    scope = doc_snippets.run("PyTorch diffusers")
    changed = {type(processor).__name__ for processor in scope["adapted"].unet.attn_processors.values()}
    assert changed == {"EntropyScaledAttnProcessor", "AttnProcessor2_0"}
    assert scope["report"].unit == "pixels"


def entropy(tiny):
    pipe = StableDiffusionPipeline.from_pretrained("model", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    linen_model, nnx_model, inputs = LinenBlock(), Block(nnx.Rngs(0)), (tokens(9), tokens(3))
    scope = doc_snippets.run(
        "Entropy",
        torch_pipeline=adapt(pipe).model,
        linen_model=linen_model,
        nnx_model=nnx_model,
        params=linen_model.init(jax.random.key(0), *inputs)["params"],
        x=inputs[0],
        text=inputs[1],
        adapt=adapt,
        nnx=nnx,
    )
    assert {each.shape[0] for each in scope["entropy"].values()} == {25}
    for name in ("linen_entropy", "nnx_entropy"):
        assert {path: each.shape for path, each in scope[name].items()} == {"attn1": (1, 2, 3)}


CHECKS = {
    TOP: the_top,
    "Your own NNX": own_nnx,
    "Your own linen": own_linen,
    "MaxDiffusion": max_diffusion,
    "Models of this package": own_models,
    "A transformer with text and picture in one sequence": a_transformer,
    "PyTorch diffusers": in_torch,
    "Entropy": entropy,
}


def test_every_piece_of_code_is_run_somewhere():
    assert set(doc_snippets.snippets()) == set(CHECKS) | doc_snippets.LEGACY


@pytest.mark.parametrize("heading", CHECKS)
def test_the_code_runs_as_it_stands(heading, tiny, tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    CHECKS[heading](tiny)


def test_the_check_sees_code_that_fails():
    with pytest.raises(NameError):
        doc_snippets.run("Your own NNX", adapt=adapt)
