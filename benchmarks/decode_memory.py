"""Measures the memory in which a full-size Stable Diffusion autoencoder decodes, whole and by tiles, on a CPU.

`python benchmarks/decode_memory.py 2048 -o benchmarks/decode_memory.md` decodes 2048x2048 pixels. Weights are random:
memory does not depend on them. Each way has a process of its own, whose peak of resident memory the kernel reports.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 12.0
"""GiB that a decode of 2048x2048 pixels may take."""
GIB = 2**30
CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
"""Stable Diffusion 1.x; what is not named is at its default, 4 latent channels and 32 groups among it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="+", type=int, help="pixels along a side")
    parser.add_argument("-o", "--out", type=Path, help="a Markdown file; printed if not given")
    parser.add_argument("--ways", nargs="+", choices=("whole", "tiled"), default=("whole", "tiled"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.sizes[0], tiling=options.ways == ["tiled"])))
        return
    text = document([run(size, way) for size in options.sizes for way in options.ways], options)
    print(text) if options.out is None else options.out.write_text(text)


def run(size: int, way: str) -> dict[str, Any]:
    """What `measure` returns, from a fresh process; None throughout where that process was killed."""
    command = [sys.executable, __file__, str(size), "--ways", way, "--worker"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else dict.fromkeys(("peak", "compile", "decode"))
    row = {"size": size, "way": way, **found}
    print(line(row), file=sys.stderr, flush=True)
    return row


def measure(size: int, *, tiling: bool) -> dict[str, float]:
    """Peak of resident memory in GiB, seconds of compiling and of decoding, for one picture."""
    import jax.numpy as jnp

    from entscale_jax.first_stage import FirstStage
    from entscale_jax.models import AutoencoderKLConfig
    from entscale_jax.program_cache import ProgramCache

    config, cache = AutoencoderKLConfig(**CONFIG), ProgramCache()
    stage = FirstStage(make_autoencoder(config), jnp.dtype(jnp.float32), cache)
    latents = np.random.default_rng(1).standard_normal((1, size // 8, size // 8, config.latent_channels), np.float32)
    start = time.perf_counter()
    images = np.asarray(stage.decode(latents, tiling=tiling, decode_batch=None).images)
    seconds = time.perf_counter() - start
    if images.shape != (1, size, size, 3) or images.std() == 0:
        raise ValueError(f"decoded {images.shape} with a deviation of {images.std()}")
    return {"peak": peak(), "compile": cache.seconds, "decode": seconds - cache.seconds}


def make_autoencoder(config: Any) -> Any:
    """With random weights that keep the variance."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from entscale_jax.models import AutoencoderKL
    from entscale_jax.weights.torch_format import AbstractRngs

    graph, state = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=AbstractRngs())))
    rng = np.random.default_rng(0)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        if len(leaf.shape) == 1:
            return jnp.full(leaf.shape, 0.0 if "bias" in str(path[-2]) else 1.0, leaf.dtype)
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def peak() -> float:
    """GiB of this process that were resident at most, by Linux's account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / GIB


def document(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table, with what is needed to make it again."""
    out = "" if options.out is None else " -o benchmarks/decode_memory.md"
    lines = [
        "# Memory of decoding",
        "",
        "One picture, float32, by the autoencoder of Stable Diffusion 1.x with random weights. The limit is",
        f"{LIMIT:g} GiB for 2048x2048 pixels. `whole` computes the autoencoder's attention in blocks of query rows;",
        "`tiled` is `tiling=True`, in tiles of 512x512 pixels. The peak is that of the whole process, its weights and",
        "its compiling included.",
        "",
        "```",
        f"python benchmarks/decode_memory.py {' '.join(map(str, options.sizes))}{out}",
        "```",
        "",
        f"{machine()}.",
        "",
        "| pixels | way | peak, GiB | within the limit | seconds to compile | seconds to decode |",
        "|---|---|---|---|---|---|",
        *map(line, rows),
    ]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    name = f"| {row['size']}x{row['size']} | {row['way']} |"
    if row["peak"] is None:
        return f"{name} not measured: the process was stopped | | | |"
    fits = "yes" if row["peak"] <= LIMIT else "no"
    return f"{name} {row['peak']:.1f} | {fits} | {row['compile']:.0f} | {row['decode']:.0f} |"


def machine() -> str:
    from entscale_jax.environment import versions

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    software = ", ".join(f"{name} {version}" for name, version in versions(("jax", "flax", "numpy")).items())
    processor = f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory"
    return f"{processor}, Python {platform.python_version()}, {software}"


if __name__ == "__main__":
    main()
