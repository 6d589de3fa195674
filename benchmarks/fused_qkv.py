"""What one product for queries, keys and values would save: the projections of self-attention apart and together.

python benchmarks/fused_qkv.py [--rounds 101]

Ten steps of a scan in float32, the weights joined before it, at the shapes of the built-in model (2 x 256 and 2 x 1,024
tokens of 96 channels) and of Stable Diffusion 1.5 at 256x256. The products are equal but for their rounding; ours are
apart, as the weights of diffusers are.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from timing import alternate, ratio, write

SHAPES = ((256, 96), (1024, 96), (1024, 320), (256, 640), (64, 1280))
"""Tokens and channels; the batch is guidance's two halves."""


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    rows = [measure(*shape, options.rounds) for shape in SHAPES]
    header = {"shape": "tokens x channels", "apart": "apart", "together": "together", "ratio": "together / apart"}
    write("fused_qkv", [f"Seconds of ten steps, medians of {options.rounds} (least to most)."], rows, header)


def measure(tokens: int, channels: int, rounds: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (2, tokens, channels))
    apart = [jax.random.normal(key, (channels, channels)) for key in keys[1:]]
    together = jnp.concatenate(apart, axis=1)
    sides = {
        "apart": _steps(lambda carry: [carry @ weights for weights in apart]),
        "together": _steps(lambda carry: jnp.split(carry @ together, 3, axis=-1)),
    }
    found = alternate({name: partial(_wait, step, hidden) for name, step in sides.items()}, rounds, warm=2)
    return {"shape": f"{tokens} x {channels}", **found, "ratio": ratio(found["together"], found["apart"])}


def _steps(project: Callable[[jax.Array], list[jax.Array]]) -> Callable[[jax.Array], jax.Array]:
    def step(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        query, key, value = project(carry)
        return carry + 1e-3 * (query * key + value), None

    return jax.jit(lambda hidden: jax.lax.scan(step, hidden, None, length=10)[0])


def _wait(step: Callable[[jax.Array], jax.Array], hidden: jax.Array) -> None:
    step(hidden).block_until_ready()


if __name__ == "__main__":
    main()
