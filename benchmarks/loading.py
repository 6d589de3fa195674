"""How long a UNet of Stable Diffusion's size takes to load, and in how much memory, beside diffusers on one folder.

    python benchmarks/loading.py [--rounds 3] [--channels 320 640 1280 1280]

Each measurement is in a process of its own, the sides in turn, imports not counted, the file in the page cache.
diffusers maps the file and leaves a page unread until it is used, so it has two rows: as `from_pretrained` returns, and
after a value of every page was used. What can't be mapped, because its layout or its dtype is another, has to be
copied: the last row is a bare copy of the tensors into memory of their own, by as many threads as we use. Memory is
what the process holds at most, pages of mapped files included, above what it held before.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
DTYPES = ("float32", "bfloat16")
PAGE = 1024
"""At least one value in so many lies on every page of memory."""
PACKAGES = ("jax", "flax", "numpy", "safetensors", "torch", "diffusers", "accelerate")


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, nargs="+", default=[320, 640, 1280, 1280])
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "DTYPE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        side, dtype, folder = options.measure
        print(json.dumps(SIDES[side](Path(folder), dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        count = write_unet(Path(folder), options.channels)
        print("\n".join(report(Path(folder), count, options.rounds)))


def write_unet(folder: Path, channels: list[int]) -> int:
    """Writes a UNet whose tensors are pieces of one random array; the number of its parameters."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.numpy import save_file

    config = {**CONFIG, "block_out_channels": channels}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in UNet2DConditionModel(**config).state_dict().items()}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    noise = np.random.default_rng(0).standard_normal(max(sizes) + len(sizes), dtype=np.float32)
    starts = enumerate(zip(shapes.items(), sizes, strict=True))
    tensors = {name: noise[start : start + size].reshape(shape) for start, ((name, shape), size) in starts}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return sum(sizes)


def report(folder: Path, count: int, rounds: int) -> list[str]:
    """The lines of the Markdown report."""
    from entscale_jax.marks import table

    (folder / "diffusion_pytorch_model.safetensors").read_bytes()  # into the page cache
    rows = []
    for dtype in DTYPES:
        runs = [{side: measure(side, dtype, folder) for side in SIDES} for _ in range(rounds)]
        weights = count * (4 if dtype == "float32" else 2)
        rows += rows_of(dtype, weights, {side: [run[side] for run in runs] for side in SIDES})
    header = (
        "dtype",
        "loaded by",
        "seconds",
        "of the processor",
        "peak memory, GB",
        "peak / weights",
        "our seconds / its",
    )
    return [
        f"{count / 1e6:.0f} million parameters, {count * 4 / 1e9:.2f} GB in float32 on disk; medians of {rounds}, "
        f"least to most. {machine()}",
        "",
        *table(header, rows),
    ]


def rows_of(dtype: str, weights: int, runs: dict[str, list[dict]]) -> list[tuple[str, ...]]:
    """The table's rows for one dtype."""
    own = statistics.median(run["returned"] for run in runs["ours"])

    def row(name: str, side: str, when: str) -> tuple[str, ...]:
        seconds, most = [run[when] for run in runs[side]], max(run[f"{when}_peak"] for run in runs[side])
        middle = statistics.median(seconds)
        processor = statistics.median(run[f"{when}_processor"] for run in runs[side])
        return (
            dtype,
            name,
            f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
            f"{processor:.2f}",
            f"{most / 1e9:.2f}",
            f"{most / weights:.2f}",
            "" if side == "ours" else f"{own / middle:.1f}",
        )

    return [
        row("entscale_jax", "ours", "returned"),
        row("diffusers, returned", "diffusers", "returned"),
        row("diffusers, every page used", "diffusers", "touched"),
        row("a bare copy", "copy", "returned"),
    ]


def measure(side: str, dtype: str, folder: Path) -> dict[str, float]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--measure", side, dtype, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Meter:
    """Seconds and memory since it was made."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
        self._memory = memory("VmRSS")
        self._seconds, self._processor = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        return {
            name: time.perf_counter() - self._seconds,
            f"{name}_processor": time.process_time() - self._processor,
            f"{name}_peak": memory("VmHWM") - self._memory,
        }


def memory(name: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def load_here(folder: Path, dtype: str) -> dict[str, float]:
    import jax
    from flax import nnx

    from entscale_jax.models import UNet2DConditionConfig, UNet2DConditionModel
    from entscale_jax.weights.files import DIFFUSERS, find_weights
    from entscale_jax.weights.torch_format import AbstractRngs, load_parameters

    jax.devices()
    meter = Meter()
    config = UNet2DConditionConfig.from_json(json.loads((folder / "config.json").read_text()))
    unet = load_parameters(
        lambda: UNet2DConditionModel(config, rngs=AbstractRngs()), find_weights(folder, DIFFUSERS), dtype
    )
    jax.block_until_ready(nnx.state(unet))
    return meter.read("returned")


def load_diffusers(folder: Path, dtype: str) -> dict[str, float]:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    meter = Meter()
    unet: Any = UNet2DConditionModel.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    returned = meter.read("returned")
    for parameter in unet.parameters():
        parameter.detach().view(-1)[::PAGE].sum()
    return {**returned, **meter.read("touched")}


def copy_tensors(folder: Path, dtype: str) -> dict[str, float]:
    from entscale_jax.weights.dtypes import read_dtype
    from entscale_jax.weights.placement import in_threads
    from entscale_jax.weights.safetensors_file import open_safetensors

    meter = Meter()
    tensors = open_safetensors(folder / "diffusion_pytorch_model.safetensors").values()
    copies = in_threads(lambda tensor: tensor.read().astype(read_dtype(dtype)), tensors)
    return {**meter.read("returned"), "copies": len(copies)}


def machine() -> str:
    """What the measurements depend on, in a sentence."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    busy = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, load {busy:.1f} at the end), {total:.0f} GB of memory, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}."
    )


SIDES = {"ours": load_here, "diffusers": load_diffusers, "copy": copy_tensors}


if __name__ == "__main__":
    main()
