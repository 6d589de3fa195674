"""The published upscaler's UNet: its names and shapes are PyTorch's, and one level attends to itself."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as TorchUNet
from flax import nnx

from entscale_jax import UserError
from entscale_jax.models import SuperResolutionUNetConfig, UNet2DConditionConfig, UNet2DConditionModel
from entscale_jax.weights.layout import torch_name, torch_shape
from entscale_jax.weights.torch_format import AbstractRngs

UNET = {
    "sample_size": 128,
    "in_channels": 7,
    "out_channels": 4,
    "num_class_embeds": 1000,
    "block_out_channels": [256, 512, 512, 1024],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    "only_cross_attention": [True, True, True, False],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
"""In diffusers' names what Stability AI's configs/stable-diffusion/x4-upscaling.yaml says."""


def test_names_and_shapes_are_pytorch_s():
    """Without memory on either side; the control is a UNet with self-attention at all levels."""
    config = SuperResolutionUNetConfig.from_json(UNET)
    state = nnx.state(nnx.eval_shape(lambda: UNet2DConditionModel(config, rngs=AbstractRngs())))
    ours = {torch_name(path): torch_shape(path, leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)}
    assert ours == _of_pytorch(UNET)
    other = _of_pytorch({**UNET, "only_cross_attention": False})
    differ = [name for name in ours.keys() | other.keys() if ours.get(name) != other.get(name)]
    assert differ
    assert all(".attn1.to_" in name for name in differ)


def _of_pytorch(raw):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in TorchUNet(**raw).state_dict().items()}


def test_one_level_attends_to_itself():
    config = SuperResolutionUNetConfig.from_json(UNET)
    assert config.attention_levels == (3,)
    assert config.train_tokens[3] == 256
    assert len(config.self_attention) == 2 + 1 + 3
    assert SuperResolutionUNetConfig.from_json({**UNET, "only_cross_attention": False}).attention_levels == (1, 2, 3)


def test_a_unet_that_draws_has_none_of_it():
    with pytest.raises(UserError, match=r"num_class_embeds=1000.*only_cross_attention=\(True, True, True, False\)"):
        UNet2DConditionConfig.from_json(UNET)
