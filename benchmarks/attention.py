"""Attention here, by every kernel that runs on this device, beside PyTorch's `scaled_dot_product_attention`.

python benchmarks/attention.py [--rounds 15] [--dtype float32]

Shapes are batch x tokens x keys x heads x head width: Stable Diffusion 1.5 at 512 with guidance (its four levels, and
cross-attention with 77 text tokens), and the built-in model at 128 and 256. Errors are the largest against float64.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import alternate, ratio, write

from entscale_jax import UserError, dot_product_attention
from entscale_jax.attention import IMPLEMENTATIONS

SHAPES = (
    (2, 4096, 4096, 8, 40),
    (2, 1024, 1024, 8, 80),
    (2, 256, 256, 8, 160),
    (2, 64, 64, 8, 160),
    (2, 1024, 77, 8, 80),
    (2, 256, 256, 3, 32),
    (2, 1024, 1024, 3, 32),
)
XLA_LIMIT = 2**27
"""Above so many logits all at once take 1 GB and more with their exponentials."""


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    rows = [measure(shape, options.rounds, options.dtype) for shape in SHAPES]
    names = dict.fromkeys(name for row in rows for name in row if name in (*IMPLEMENTATIONS, "chosen", "PyTorch"))
    for row in rows:
        row.update({name: row.get(name, "") for name in names})
    header = {"shape": "shape", **{name: name for name in names}, "ratio": "chosen / PyTorch", "error": "error"}
    text = [f"{options.dtype}, medians of {options.rounds} in turn (least to most); the ratio with its 95% interval."]
    write("attention", text, rows, header)


def measure(shape: tuple[int, ...], rounds: int, dtype: str) -> dict[str, Any]:
    batch, tokens, keys, heads, head_dim = shape
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((batch, length, heads, head_dim), np.float32) for length in (tokens, keys, keys)]
    scale = head_dim**-0.5
    sides: dict[str, Callable[[], Any]] = {}
    for name in (None, *IMPLEMENTATIONS):
        if name == "xla" and batch * tokens * heads * keys > XLA_LIMIT:
            continue
        try:
            sides[name or "chosen"] = here(arrays, scale, name, dtype)
        except UserError:
            continue
    sides["PyTorch"] = there(arrays, scale, dtype)
    found = alternate(sides, rounds, warm=2)
    named = {"shape": "x".join(map(str, shape)), **found}
    print(named["shape"], {name: str(seconds) for name, seconds in found.items()}, flush=True)
    wanted = reference([array[:, :64] if index == 0 else array for index, array in enumerate(arrays)], scale)
    error = np.abs(np.asarray(sides["chosen"](), np.float64)[:, :64] - wanted).max()
    return {**named, "ratio": ratio(found["chosen"], found["PyTorch"]), "error": f"{error:.1e}"}


def here(arrays: list[np.ndarray], scale: float, implementation: str | None, dtype: str) -> Callable[[], Any]:
    given = [jnp.asarray(array, dtype) for array in arrays]
    program = (
        jax.jit(partial(dot_product_attention, scale=scale, implementation=implementation)).lower(*given).compile()
    )
    return lambda: jax.block_until_ready(program(*given))


def there(arrays: list[np.ndarray], scale: float, dtype: str) -> Callable[[], Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [torch.from_numpy(array).to(device, getattr(torch, dtype)).transpose(1, 2) for array in arrays]

    def attend() -> None:
        with torch.inference_mode():
            torch.nn.functional.scaled_dot_product_attention(*given, scale=scale)
        if device == "cuda":
            torch.cuda.synchronize()

    return attend


def reference(arrays: list[np.ndarray], scale: float) -> np.ndarray:
    query, key, value = (array.astype(np.float64) for array in arrays)
    logits = scale * np.einsum("btnh,bsnh->bnts", query, key)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), value)


if __name__ == "__main__":
    main()
