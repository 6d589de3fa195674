"""Convolutions that keep the centre of their kernels: the same result, and zeros that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import tiny_recipe

from entscale_jax import ScaleRule
from entscale_jax.errors import UserError
from entscale_jax.models import UNet2DConditionModel
from entscale_jax.scales import Scaling
from entscale_jax.scenes.pointwise import keep_centres, use_centres

NAMES = ("down_blocks/0/resnets/0/conv2", "up_blocks/1/resnets/1/conv1")


@pytest.fixture(scope="module")
def velocity():
    noisy, context = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((1, 8, 8, 4), (1, 24, 24)))
    )

    @nnx.jit
    def call(unet: UNet2DConditionModel) -> jax.Array:
        return unet(noisy, jnp.array([500.0]), context, Scaling(ScaleRule.ORIGINAL))

    return call


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(tiny_recipe().unet, rngs=nnx.Rngs(0))


def test_only_the_kernels_named_lose_what_is_around_their_centres():
    whole, narrow = unet(), unet()
    keep_centres(narrow, NAMES)
    before, after = (dict(nnx.to_flat_state(nnx.state(model, nnx.Param))) for model in (whole, narrow))
    changed = {"/".join(map(str, path)) for path in before if not np.array_equal(before[path][...], after[path][...])}
    assert changed == {f"{name}/kernel" for name in NAMES}
    kernel, former = (model.down_blocks[0].resnets[0].conv2.kernel[...] for model in (narrow, whole))
    np.testing.assert_array_equal(kernel[1, 1], former[1, 1])
    assert np.count_nonzero(kernel) == np.count_nonzero(former[1, 1])


def test_centres_alone_give_what_the_kernels_with_zeros_give(velocity):
    whole, narrow, centres = unet(), unet(), unet()
    keep_centres(narrow, NAMES)
    use_centres(centres, NAMES)
    np.testing.assert_allclose(velocity(centres), velocity(narrow), atol=1e-5)
    assert float(jnp.abs(velocity(whole) - velocity(narrow)).max()) > 1e-3


def test_what_is_around_a_centre_has_no_gradient(velocity):
    def loss(unet: UNet2DConditionModel) -> jax.Array:
        use_centres(unet, NAMES)
        return jnp.sum(velocity(unet) ** 2)

    gradients = nnx.grad(loss)(unet())
    kernel = gradients["down_blocks"][0]["resnets"][0]["conv2"]["kernel"][...]
    assert np.abs(kernel[1, 1]).max() > 0
    assert np.count_nonzero(kernel) == np.count_nonzero(kernel[1, 1])


@pytest.mark.parametrize(
    "name",
    ["up_blocks/0/resnet/0/conv1", "down_blocks/7/resnets/0/conv1", "up_blocks/0/resnets/0/conv_shortcut", "conv"],
)
def test_a_name_of_no_convolution_is_a_user_error(name):
    with pytest.raises(UserError, match=f"{name}.*no convolution of 3x3"):
        keep_centres(unet(), [name])
