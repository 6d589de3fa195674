"""What measuring entropy costs: a UNet call that records it against a plain one, on this machine.

`python benchmarks/measuring.py` prints a table and writes benchmarks/results/measuring.json. Plain and measuring calls
alternate, so that what else the machine does hits both; a ratio is of two neighbouring calls.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from entscale_jax import TextToImage
from entscale_jax.environment import commit, versions
from entscale_jax.models import UNet2DConditionConfig, UNet2DConditionModel
from entscale_jax.scales import Scaling
from entscale_jax.statistics import bootstrap_mean
from entscale_jax.weights.torch_format import AbstractRngs

LIMIT = 1.5
"""The median ratio that measuring may cost."""
OUT = Path(__file__).parent / "results" / "measuring.json"
LEVEL = UNet2DConditionConfig(
    sample_size=64,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    mid_block_type=None,
    block_out_channels=(320,),
    cross_attention_dim=768,
    attention_head_dim=8,
)
"""The finest level of Stable Diffusion 1.x alone: 8 heads of width 40, two attentions down and three up."""
CASES = {
    "built-in model at 128x128": ("scenes", (16, 16)),
    "built-in model at 256x256": ("scenes", (32, 32)),
    "finest level of SD 1.x at 256x256": ("level", (32, 32)),
}
"""Name -> model and latent cells (h, w)."""
BATCH = 2  # one guided picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="timed calls of each kind")
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    options = parser.parse_args()
    unets = {"scenes": TextToImage.from_pretrained("scenes").unet, "level": random_unet(LEVEL)}
    rows = [measure(name, unets[model], grid, options.pairs) for name, (model, grid) in CASES.items()]
    content = {"limit": LIMIT, "batch": BATCH, "machine": machine(), "load": os.getloadavg()[2], "commit": commit()}
    content |= {"cases": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join([f"{machine()}; batch {BATCH}, float32.", "", *table(rows)]))


def measure(name: str, unet: UNet2DConditionModel, grid: tuple[int, int], pairs: int) -> dict[str, Any]:
    """Seconds of plain and measuring calls, and their ratio pair by pair."""
    plain, measuring = (compiled(unet, grid, record) for record in (False, True))
    times = [[seconds(call) for call in (plain, measuring)[:: 1 if pair % 2 else -1]] for pair in range(pairs)]
    ordered = [both if pair % 2 else both[::-1] for pair, both in enumerate(times)]
    ratios = [measured / alone for alone, measured in ordered]
    (mean,) = bootstrap_mean(np.array(ratios)[:, None])
    row = {
        "case": name,
        "plain": statistics.median(alone for alone, _ in ordered),
        "measuring": statistics.median(measured for _, measured in ordered),
        "ratio": statistics.median(ratios),
        "ratio_mean": [mean.mean, mean.low, mean.high],
        "pairs": pairs,
    }
    print(row, flush=True)
    return row


def compiled(unet: UNet2DConditionModel, grid: tuple[int, int], measured: bool) -> Callable[[], Any]:
    """One call of the UNet under rule `entropy`, its program ready."""
    graph, weights = nnx.split(unet)
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((BATCH, *grid, 4)), jnp.float32)
    context = jnp.asarray(rng.standard_normal((BATCH, 77, unet.config.cross_attention_dim)), jnp.float32)

    def call(weights: nnx.State, latents: jax.Array, context: jax.Array) -> Any:
        found: dict[str, Any] = {}

        def record(layer: str, *statistics: jax.Array) -> None:
            found[layer] = statistics

        arguments = jnp.full(BATCH, 500.0), context, Scaling.of("entropy"), record if measured else None
        return nnx.merge(graph, weights)(latents, *arguments), found

    program = jax.jit(call).lower(weights, latents, context).compile()
    jax.block_until_ready(program(weights, latents, context))
    return lambda: program(weights, latents, context)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def random_unet(config: UNet2DConditionConfig) -> UNet2DConditionModel:
    """With random weights, made by NumPy: initialising by JAX would compile a program a shape."""
    graph, state = nnx.split(nnx.eval_shape(lambda: UNet2DConditionModel(config, rngs=AbstractRngs())))
    rng = np.random.default_rng(0)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        if len(leaf.shape) == 1:
            return jnp.full(leaf.shape, 0.0 if "bias" in str(path[-2]) else 1.0, leaf.dtype)
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| UNet call | plain, ms | measuring, ms | ratio, median of pairs | mean | within the limit |",
        "|" + "---|" * 6,
    ]
    for row in rows:
        mean, low, high = row["ratio_mean"]
        fits = "yes" if row["ratio"] <= LIMIT else "no"
        times = f"{1000 * row['plain']:.1f} | {1000 * row['measuring']:.1f}"
        lines.append(
            f"| {row['case']} | {times} | {row['ratio']:.2f} | {mean:.2f} ({low:.2f} to {high:.2f}) | {fits} |"
        )
    return lines


def machine() -> str:
    software = ", ".join(f"{name} {version}" for name, version in versions(("jax", "flax", "numpy")).items())
    return f"{os.cpu_count()} cores ({platform.machine()}), {jax.default_backend()}, {software}"


if __name__ == "__main__":
    main()
