"""The exact entropy of many tokens: memory beyond the inputs, time beside plain attention, error against float64.

python benchmarks/entropy.py [--tokens 4096,16384,65536] [--heads 8] [--head-dim 40]

Each line is a process of its own. Memory is resident memory at its most, from after the program was compiled, less what
was held then: the inputs and the libraries. The error is that of 64 rows, against all keys, computed in float64.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import write


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--tokens", default="4096,16384,65536")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=40)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, options.heads, options.head_dim)))
        return
    rows = []
    for tokens in options.tokens.split(","):
        command = [sys.executable, *sys.argv, "--worker", tokens]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"tokens": tokens, **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    text = [f"{options.heads} heads of width {options.head_dim}, one picture, float32, seconds of one call each."]
    header = {
        "tokens": "tokens",
        "memory": "memory beyond the inputs, GiB",
        "entropy": "entropy, s",
        "attention": "attention, s",
        "both": "both in one pass, s",
        "error": "largest error of a row, nats",
        "wrong": "with a scale 0.1% off",
    }
    write("entropy", text, rows, header)


def measure(tokens: int, heads: int, head_dim: int) -> dict[str, Any]:
    import jax.numpy as jnp

    from entscale_jax import attention_entropy, dot_product_attention
    from entscale_jax.attention import attention_with_statistics

    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.standard_normal((1, tokens, heads, head_dim), np.float32)) for _ in range(3))
    scale, rows = 3 / head_dim**0.5, np.linspace(0, tokens - 1, 64).astype(int)
    found, seconds, beyond = timed(lambda query, key: attention_entropy(query, key, scale=scale), query, key)
    _, plain, _ = timed(lambda *arrays: dot_product_attention(*arrays, scale=scale), query, key, value)
    _, both, _ = timed(lambda *arrays: attention_with_statistics(*arrays, scale=scale), query, key, value)
    wanted, wrong = (reference(query[:, rows], key, factor * scale) for factor in (1.0, 1.001))
    ours = np.asarray(found, np.float64)[:, :, rows]
    return {
        "memory": f"{beyond / 2**30:.2f}",
        "entropy": round(seconds, 2),
        "attention": round(plain, 2),
        "both": round(both, 2),
        "error": f"{np.abs(ours - wanted).max():.1e}",
        "wrong": f"{np.abs(ours - wrong).max():.1e}",
    }


def timed(function: Callable[..., Any], *arrays: Any) -> tuple[Any, float, int]:
    """The result, seconds and peak of memory beyond what was held before."""
    import jax

    program = jax.jit(function).lower(*arrays).compile()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before, start = memory("VmRSS"), time.perf_counter()
    found = jax.block_until_ready(program(*arrays))
    return found, time.perf_counter() - start, memory("VmHWM") - before


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def reference(query: Any, key: Any, scale: float) -> np.ndarray:
    logits = scale * np.einsum("btnh,bsnh->bnts", np.asarray(query, np.float64), np.asarray(key, np.float64))
    shifted = logits - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    normaliser = weights.sum(-1)
    return np.log(normaliser) - (weights * shifted).sum(-1) / normaliser


if __name__ == "__main__":
    main()
