"""SDXL base as published: its configs are understood, and every tensor of its files has a place, name and shape."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as TorchAutoencoder
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as TorchUNet
from flax import nnx
from safetensors.numpy import load_file, save_file

from entscale_jax.errors import UserError
from entscale_jax.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTextProjectionConfig,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters, save_parameters, torch_name, torch_shape

# The configs of stable-diffusion-xl-base-1.0, where they differ from the defaults of diffusers and transformers, and
# whatever of them looks as if it mattered.
UNET = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float16",
}
TEXT_2 = {
    **TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


def _text(kind):
    return lambda raw: kind(transformers.CLIPTextConfig(**raw))


PARTS = {
    "unet": (UNET, UNet2DConditionModel, UNet2DConditionConfig, TorchUNet.from_config),
    "vae": (VAE, AutoencoderKL, AutoencoderKLConfig, TorchAutoencoder.from_config),
    "text_encoder": (TEXT, CLIPTextModel, CLIPTextConfig, _text(transformers.CLIPTextModel)),
    "text_encoder_2": (
        TEXT_2,
        CLIPTextModelWithProjection,
        CLIPTextProjectionConfig,
        _text(transformers.CLIPTextModelWithProjection),
    ),
}
PARAMETERS = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}


def _shapes(part):
    """Our parameters, at full size and without memory: PyTorch's name -> PyTorch's shape."""
    raw, model, config, _ = PARTS[part]
    abstract = nnx.eval_shape(lambda: model(config.from_json(raw), rngs=AbstractRngs()))
    leaves = nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    return {torch_name(path): torch_shape(path, leaf.shape) for path, leaf in leaves}


@pytest.mark.parametrize("part", PARTS)
def test_names_and_shapes_are_pytorchs(part):
    raw, *_, theirs = PARTS[part]
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in theirs(raw).named_parameters()}
    found = _shapes(part)
    assert found == expected
    assert sum(int(np.prod(shape)) for shape in found.values()) == PARAMETERS[part]


def test_tokens_in_training_come_from_the_config():
    unet = UNet2DConditionConfig.from_json(UNET)
    assert unet.attention_levels == (1, 2)
    assert [unet.train_tokens[level] for level in unet.attention_levels] == [4096, 1024]
    assert [unet.block_out_channels[level] // unet.heads[level] for level in unet.attention_levels] == [64, 64]
    assert unet.text_embeds_dim == TEXT_2["projection_dim"]
    assert AutoencoderKLConfig.from_json(VAE).factor == 8


@pytest.mark.parametrize(
    ("down", "middle", "up", "expected"),
    [
        ("AAAD", True, "DAAA", (0, 1, 2, 3)),  # 1.x and 2.x: the middle alone attends at the deepest level
        ("AAAD", False, "DAAA", (0, 1, 2)),
        ("DAA", True, "AAD", (1, 2)),
        ("DDA", False, "DDD", (2,)),
        ("DDD", False, "DDA", (0,)),
        ("DDD", False, "ADD", (2,)),
        ("DDD", False, "DDD", ()),
    ],
)
def test_levels_with_attention(down, middle, up, expected):
    config = UNet2DConditionConfig(
        sample_size=32,
        block_out_channels=(32,) * len(down),
        down_block_types=tuple({"A": "CrossAttnDownBlock2D", "D": "DownBlock2D"}[kind] for kind in down),
        mid_block_type="UNetMidBlock2DCrossAttn" if middle else None,
        up_block_types=tuple({"A": "CrossAttnUpBlock2D", "D": "UpBlock2D"}[kind] for kind in up),
    )
    assert config.attention_levels == expected
    unet = nnx.eval_shape(lambda: UNet2DConditionModel(config, rngs=AbstractRngs()))
    assert {layer.level for layer in unet.attention_layers().values()} == set(expected)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"addition_embed_type": "text"}, "addition_embed_type='text'"),
        ({"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ({"addition_embed_type": None}, "addition_time_embed_dim=256"),
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim=None"),
        ({"projection_class_embeddings_input_dim": None}, "projection_class_embeddings_input_dim=None"),
        ({"projection_class_embeddings_input_dim": 1536}, "projection_class_embeddings_input_dim=1536"),
        ({"transformer_layers_per_block": [1, [2, 2], 10]}, "transformer_layers_per_block"),
        ({"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block"),
        ({"reverse_transformer_layers_per_block": [[1], [2], [3]]}, "reverse_transformer_layers_per_block"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type"),
    ],
)
def test_what_would_be_another_unet_is_refused(changed, named):
    with pytest.raises(UserError) as caught:
        UNet2DConditionConfig.from_json({**UNET, **changed})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small second text encoder, saved by transformers."""
    sizes = {"vocab_size": 29, "hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(
        **sizes, num_hidden_layers=2, max_position_embeddings=7, projection_dim=9, bos_token_id=0, eos_token_id=2
    )
    folder = tmp_path_factory.mktemp("text_encoder_2")
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


def _load(folder, file):
    config = CLIPTextProjectionConfig.from_json(json.loads((folder / "config.json").read_text()))
    return load_parameters(lambda: CLIPTextModelWithProjection(config, rngs=AbstractRngs()), file, jnp.float32)


def test_the_second_text_encoder_is_saved_as_it_was_read(saved, tmp_path):
    file = saved / "model.safetensors"
    save_parameters(_load(saved, file), tmp_path / "again.safetensors")
    expected, again = load_file(file), load_file(tmp_path / "again.safetensors")
    assert again.keys() == expected.keys()
    assert {name.split(".")[0] for name in again} == {"text_model", "text_projection"}
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_the_projection_must_be_there(saved, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing key text_projection\.weight"):
        _load(saved, tmp_path / "model.safetensors")
