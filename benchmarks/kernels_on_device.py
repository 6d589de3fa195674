"""Every kernel of attention that runs on this device: its error against float64, and its seconds.

python benchmarks/kernels_on_device.py [--rounds 15] [--dtype bfloat16 float32] [--interpret] [--small]

`--interpret` adds the TPU's kernel emulated, whose seconds say nothing of a TPU. What doesn't run is listed with the
reason. Errors are the largest of 64 rows; at a scale 10% off, the control, they have to be above the bound. Mean
entropy, by `attention_mean_entropy`, is held against all rows in float64 where these are at most 1,024. The exit code
is 1 if something is not within its bound. Products of float32 are at JAX's highest precision.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternate, write

from entscale_jax import UserError, dot_product_attention
from entscale_jax.attention import IMPLEMENTATIONS, attention_mean_entropy
from entscale_jax.kernels import fused

SHAPES = (
    (2, 4096, 4096, 8, 40),
    (2, 1024, 1024, 8, 80),
    (2, 256, 256, 8, 160),
    (2, 784, 784, 8, 64),
    (2, 49, 49, 8, 160),
    (2, 1024, 77, 8, 80),
)
"""Batch, tokens, keys, heads, head width."""
SMALL = ((1, 49, 49, 2, 40), (1, 300, 77, 2, 80))
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
"""Values are within 1; bfloat16 has 8 bits."""
ENTROPY_BOUNDS = {"float32": 1e-4, "bfloat16": 1e-2}
DEVIATION = 3.0
"""Of the logits."""


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], choices=tuple(BOUNDS))
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--small", action="store_true", help="two small shapes, to try the script")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = [
        row
        for shape in (SMALL if options.small else SHAPES)
        for dtype in options.dtype
        for row in measured(shape, dtype, options)
    ]
    header = {
        "shape": "shape",
        "dtype": "dtype",
        "kernel": "kernel",
        "seconds": "seconds",
        "error": "error",
        "control": "at a scale 10% off",
        "entropy": "error of mean entropy, nats",
        "holds": "within bounds",
    }
    text = [f"Medians of {options.rounds} in turn (least to most); batch x tokens x keys x heads x head width."]
    write("kernels_on_device", text, rows, header)
    if any(row["holds"] == "no" for row in rows):
        sys.exit(1)


def measured(shape: tuple[int, ...], dtype: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every kernel, with its seconds or the reason why it doesn't run."""
    arrays, scale = inputs(shape, dtype), DEVIATION / shape[4] ** 0.5
    named = {"shape": "x".join(map(str, shape)), "dtype": dtype}
    checked = [check(kernel, arrays, scale, dtype) for kernel in kernels(options.interpret)]
    runs = {row["kernel"]: row.pop("call") for row in checked if "call" in row}
    seconds = alternate(runs, options.rounds, warm=2)
    for row in checked:
        yield {**named, "seconds": "", "error": "", "control": "", "entropy": "", **row, **_seconds(row, seconds)}


def _seconds(row: dict[str, Any], seconds: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": seconds[row["kernel"]]} if row["kernel"] in seconds else {}


Kernel = tuple[str, Callable[..., Any], Callable[..., Any]]


def kernels(interpret: bool) -> Iterator[Kernel]:
    """Name, attention and mean entropy."""
    for name in IMPLEMENTATIONS:
        yield (
            name,
            partial(dot_product_attention, implementation=name),
            partial(attention_mean_entropy, implementation=name),
        )
    if interpret:
        with_log_sum_exp = partial(fused.splash_with_log_sum_exp, interpret=True)
        yield (
            "tpu_splash, emulated",
            partial(fused.splash, interpret=True),
            partial(fused.mean_entropy, with_log_sum_exp),
        )


def check(kernel: Kernel, arrays: list[jax.Array], scale: float, dtype: str) -> dict[str, Any]:
    """The kernel's errors and a call of it, or why it doesn't run."""
    name, attend, entropy = kernel
    try:
        program = jax.jit(partial(attend, scale=scale)).lower(*arrays).compile()
    except UserError as error:
        return {"kernel": name, "holds": str(error).partition("can't run: ")[2].partition(";")[0]}
    rows = np.unique(np.linspace(0, arrays[0].shape[1] - 1, 64).astype(int))
    found = np.asarray(program(*arrays), np.float64)[:, rows]
    query = arrays[0][:, rows]
    wanted, other = (reference(query, *arrays[1:], factor * scale)[0] for factor in (1.0, 1.1))
    error, control = np.abs(found - wanted).max(), np.abs(found - other).max()
    off = entropy_error(entropy, arrays, scale)
    holds = error <= BOUNDS[dtype] and control > BOUNDS[dtype] and (off is None or off <= ENTROPY_BOUNDS[dtype])
    return {
        "kernel": name,
        "call": lambda: jax.block_until_ready(program(*arrays)),
        "error": f"{error:.1e}",
        "control": f"{control:.1e}",
        "entropy": "" if off is None else f"{off:.1e}",
        "holds": "yes" if holds else "no",
    }


def entropy_error(entropy: Callable[..., Any], arrays: list[jax.Array], scale: float) -> float | None:
    query, key, value = arrays
    if query.shape[1] > 1024:
        return None
    found = jax.jit(partial(entropy, scale=scale))(query, key)
    return float(np.abs(np.asarray(found, np.float64) - reference(query, key, value, scale)[1].mean(axis=-1)).max())


def inputs(shape: tuple[int, ...], dtype: str) -> list[jax.Array]:
    batch, tokens, keys, heads, head_dim = shape
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((batch, length, heads, head_dim), np.float32) for length in (tokens, keys))
    value = rng.uniform(-1, 1, (batch, keys, heads, head_dim))
    return [jnp.asarray(array, dtype) for array in (query, key, value)]


def reference(query: Any, key: Any, value: Any, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Output and entropy of every row, in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    logits = scale * np.einsum("btnh,bsnh->bnts", query, key)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    entropy = np.log(normaliser[..., 0]) - (exponentials / normaliser * shifted).sum(axis=-1)
    return np.einsum("bnts,bsnh->btnh", exponentials / normaliser, value), entropy


if __name__ == "__main__":
    main()
