"""What it would cost to store a model's weights in float16, in the units of the parity tables.

`python -m entscale_jax.parity.float16 docs/scenes.md` writes section `float16`.
"""

from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..marks import table
from ..pipeline import TextToImage
from ..scales import ScaleRule, Scaling
from ..scenes.section import write_section
from .bounds import BOUNDS
from .compare import CAPTIONS, TIMESTEP, call, image_error, relative_error

_SEEDS = (0, 1)
Module = TypeVar("Module", bound=nnx.Module)


def rounded(module: Module) -> Module:
    """A copy whose weights went through float16."""
    graph, weights = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(leaf.dtype), weights))


def rounded_model(pipe: TextToImage) -> TextToImage:
    """A copy of the model with all weights rounded."""
    return pipe.with_modules(text=rounded(pipe.text), unet=rounded(pipe.unet), vae=rounded(pipe.vae))


def differences(pipe: TextToImage, other: TextToImage, *, steps: int = 25) -> Iterator[tuple[str, float]]:
    """Each module with the error of `other` against `pipe` at the training size, as docs/parity.md defines errors."""
    info = pipe.info
    tokens = (info.tokenizer()(CAPTIONS),)
    shape = (len(CAPTIONS), *info.train_grid, info.vae.latent_channels)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    times = np.full(len(CAPTIONS), TIMESTEP, np.float32)
    context, scaling = call(pipe.text, tokens).states, Scaling(ScaleRule.ORIGINAL)
    yield "text encoder", relative_error(call(other.text, tokens).states, context)
    one, two = (call(each.unet, noise, times, context, rule=scaling) for each in (other, pipe))
    yield "UNet", relative_error(one, two)
    latents = noise / np.float32(info.vae.scaling_factor)
    one, two = (call(each.vae, latents, method="decode") for each in (other, pipe))
    yield "VAE decode", relative_error(one, two)
    one, two = (each(list(CAPTIONS), rule=scaling, steps=steps, seed=_SEEDS) for each in (other, pipe))
    yield "DDIM latents", relative_error(one.latents, two.latents)
    if one.images is None or two.images is None:
        raise ValueError("the pipeline returned no images")
    yield "DDIM images", image_error(one.images, two.images / 255)


def section(pipe: TextToImage) -> list[str]:
    """The lines of section `float16`."""
    rows = []
    for module, error in differences(pipe, rounded_model(pipe)):
        bound = BOUNDS[module, "float32"].limit
        rows.append((module, f"{error:.1e}", f"{bound:.0e}", f"{error / bound:.3g}"))
    size = sum(
        file.stat().st_size for part in ("unet", "vae", "text_encoder") for file in pipe.info.weight_files(part).files
    )
    return [
        f"The weights rounded to float16, computed with in float32, against the float32 weights ({size / 1e6:.1f} MB,",
        "the rounded ones half of that), at the training size, in the units of [parity.md](parity.md). Programs that",
        "read one float16 folder agree as before; this is how far they would be from the model that was trained.",
        "Made by `python -m entscale_jax.parity.float16 docs/scenes.md`.",
        "",
        *table(("module", "error", "bound of parity in float32", "error / bound"), rows),
    ]


if __name__ == "__main__":
    write_section("float16", lambda pipe, _: section(pipe))
