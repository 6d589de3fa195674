"""How often the detector is right: on true drawings, on altered ones, and on true ones that went through a VAE.

`python -m entscale_jax.scenes.detector docs/scenes.md` writes section `detector`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from ..errors import UserError
from ..metrics.captions import parse_caption
from ..metrics.objects import compare
from ..pipeline import TextToImage
from .alter import Alteration, alter
from .autoencoder_stage import to_unit
from .captions import sample_captions
from .draw import draw_batch, place
from .section import write_section

SIZES = (
    *((80, 48), (48, 80), (64, 64), (96, 64), (64, 96), (128, 32), (32, 128), (96, 96)),
    *((128, 64), (64, 128), (128, 128), (192, 128), (128, 192), (192, 192), (256, 128), (256, 256)),
)
"""(width, height) of the drawings."""
_BATCH = 25

Images = UInt8[np.ndarray, "batch height width 3"]


class Share(NamedTuple):
    """How many pictures were judged as they deserve, of how many."""

    right: int
    judged: int

    def __str__(self) -> str:
        return f"{self.right / self.judged:.1%}" if self.judged else "-"


def read_true(
    width: int, height: int, count: int, through: Callable[[Images], Images] | None = None, *, seed: int = 0
) -> Share:
    """How many of `count` true drawings are exact, each of which goes `through` a function first."""
    rng, right = np.random.default_rng((seed, width, height)), 0
    captions = sample_captions(rng, count)
    for start in range(0, count, _BATCH):
        part = captions[start : start + _BATCH]
        images = draw_batch(part, rng, height=height, width=width)
        images = images if through is None else through(images)
        right += sum(compare(image, caption).exact for image, caption in zip(images, part, strict=True))
    return Share(right, count)


def read_altered(alteration: Alteration, width: int, height: int, count: int, *, seed: int = 0) -> Share:
    """How many of `count` altered drawings lack and have too many just as many objects as they should."""
    rng = np.random.default_rng((seed, width, height, *alteration.encode()))
    right = judged = 0
    while judged < count:
        (caption,) = sample_captions(rng, 1)
        objects = place(parse_caption(caption), rng, height=height, width=width)
        try:
            altered = alter(alteration, objects, rng, height=height, width=width)
        except UserError:  # no place is free for one more: another drawing has one
            continue
        verdict = compare(altered.image, caption)
        right += (verdict.missing, verdict.extra) == (altered.missing, altered.extra)
        judged += 1
    return Share(right, judged)


def round_trip(pipe: TextToImage) -> Callable[[Images], Images]:
    """Pictures of any size through the encoder (the mean of the latents) and decoder of `pipe`."""
    encode = nnx.jit(lambda vae, images: vae.encode(images)[0])
    factor, cell = pipe.info.vae.scaling_factor, pipe.info.vae.factor

    def through(images: Images) -> Images:
        height, width = images.shape[1:3]
        spare = [(0, 0), (0, -height % cell), (0, -width % cell), (0, 0)]
        latents = encode(pipe.vae, jnp.asarray(to_unit(np.pad(images, spare, mode="edge"))))
        return np.asarray(pipe.programs.decode(latents * factor).images)[:, :height, :width]

    return through


def measure(pipe: TextToImage, count: int = 2000) -> list[str]:
    """The lines of the section, from `count` drawings of each sort over all sizes."""
    each, through = math.ceil(count / len(SIZES)), round_trip(pipe)
    true, after, altered = {}, {}, {}
    for size in SIZES:
        true[size] = read_true(*size, each)
        after[size] = read_true(*size, each, through)
        altered[size] = {alteration: read_altered(alteration, *size, each) for alteration in Alteration}
        print(f"{size[0]}x{size[1]}: true {true[size]}, after the VAE {after[size]}", flush=True)
    by_kind = {alteration: _sum([shares[alteration] for shares in altered.values()]) for alteration in Alteration}
    sizes = [f"| {w}x{h} | {true[w, h]} | {_sum([*altered[w, h].values()])} | {after[w, h]} |" for w, h in SIZES]
    return [
        f"Made by `python -m entscale_jax.scenes.detector docs/scenes.md`; {each} drawings of each sort at each size,",
        "of random training captions of one to four objects. An altered drawing counts as judged right where just as",
        "many objects are missing and extra as the alteration took and gave.",
        "",
        "| drawings | judged right | of |",
        "| --- | --- | --- |",
        f"| true | {_sum([*true.values()])} | {each * len(SIZES)} |",
        *(f"| one object {alteration} | {share} | {share.judged} |" for alteration, share in by_kind.items()),
        f"| true, encoded and decoded by the VAE | {_sum([*after.values()])} | {each * len(SIZES)} |",
        "",
        "| size | true | altered | true, after the VAE |",
        "| --- | --- | --- | --- |",
        *sizes,
        "",
    ]


def _sum(shares: Sequence[Share]) -> Share:
    return Share(sum(share.right for share in shares), sum(share.judged for share in shares))


if __name__ == "__main__":
    write_section("detector", lambda pipe, _: measure(pipe))
