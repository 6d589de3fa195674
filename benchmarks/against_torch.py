"""A whole picture, from its caption to bytes, here and by PyTorch diffusers, eager and compiled, in one process.

    python benchmarks/against_torch.py [--cases scenes:64,scenes:128,scenes:256,sd:256] [--rounds 9]

`scenes` is the built-in model, 25 steps of DDIM; `sd` has the shape of Stable Diffusion 1.5 with random weights, 4
steps and one decode. Batch 1 with guidance. PyTorch is in `inference_mode`, channels last; `torch.compile` has its UNet
and its decoder, warmed up for each size. The sides take turns; ratios are by rounds. On CUDA, `--dtype bfloat16`.
"""

import argparse
import gc
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sd_shape import write_sd_shape
from timing import Seconds, alternate, ratio, write

CAPTION = "a red circle and a blue square"
STEPS = {"scenes": 25, "sd": 4}
GUIDANCE = {"scenes": 2.0, "sd": 7.5}
SIDES = ("entscale_jax", "eager", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--cases", default="scenes:64,scenes:128,scenes:256,sd:256")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--name", default="against_torch", help="of the files in benchmarks/results")
    options = parser.parse_args()
    cases: dict[str, list[int]] = {}
    for case in options.cases.split(","):
        model, size = case.split(":")
        cases.setdefault(model, []).append(int(size))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, sizes in cases.items():
            rows += compare(model, sizes, Path(folder), options)
    text = [
        f"One picture by DDIM with guidance, {options.dtype}, {options.rounds} rounds in turn: medians (least to",
        "most); ratios by rounds, with the 95% interval of the median. `scenes`: the built-in model, 25 steps. `sd`:",
        "Stable Diffusion 1.5's shape, random weights, 4 steps and one decode. Every program was compiled before.",
    ]
    names = [side for side in SIDES if side in options.sides.split(",")]
    header = {"model": "model", "size": "size", **{name: name for name in names}}
    header |= {f"to {name}": f"ours / {name}" for name in names if name != "entscale_jax"}
    write(options.name, text, rows, header)


def compare(model: str, sizes: list[int], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a size."""
    sides = options.sides.split(",")
    source = write_sd_shape(folder / "sd") if model == "sd" else scenes_folder()
    draw: dict[str, Callable[[int], np.ndarray]] = {"entscale_jax": ours(model, source, options.dtype)}
    if "eager" in sides:
        draw["eager"] = theirs(model, source, options.dtype, compiled=False)
    rows = []
    for size in sizes:
        if "compiled" in sides:
            # A new one a size: of several sizes PyTorch would make one program for all, which is slower.
            draw["compiled"] = theirs(model, source, options.dtype, compiled=True)
        found = alternate({name: partial(draw[name], size) for name in draw}, options.rounds, warm=2)
        rows.append(row(model, size, found))
        print(rows[-1], flush=True)
        draw.pop("compiled", None)
        gc.collect()
    return rows


def row(model: str, size: int, found: dict[str, Seconds]) -> dict[str, Any]:
    ratios = {
        f"to {name}": ratio(found["entscale_jax"], seconds) for name, seconds in found.items() if name != "entscale_jax"
    }
    return {"model": model, "size": f"{size}x{size}", **found, **ratios}


def ours(model: str, source: Path, dtype: str) -> Callable[[int], np.ndarray]:
    import entscale_jax as es

    pipe = es.TextToImage.from_pretrained(source, dtype=dtype)

    def draw(size: int) -> np.ndarray:
        out = pipe(
            [CAPTION], height=size, width=size, sampler="ddim", steps=STEPS[model], guidance=GUIDANCE[model], seed=0
        )
        return checked(out.images, size)

    return draw


def theirs(model: str, source: Path, dtype: str, *, compiled: bool) -> Callable[[int], np.ndarray]:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch._dynamo.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pipe: Any = StableDiffusionPipeline.from_pretrained(source, torch_dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    if compiled:
        pipe.unet = torch.compile(pipe.unet, dynamic=False)
        pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)

    def draw(size: int) -> np.ndarray:
        with torch.inference_mode():
            keywords = {"num_inference_steps": STEPS[model], "guidance_scale": GUIDANCE[model], "output_type": "np"}
            images = pipe(CAPTION, height=size, width=size, **keywords).images
        return checked((images * 255).round().astype(np.uint8), size)

    return draw


def checked(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape != (1, size, size, 3):
        raise ValueError(f"drew {images.shape} where {size}x{size} was asked for")
    return images


def scenes_folder() -> Path:
    from entscale_jax.weights.folder import describe

    return describe("scenes").folder


if __name__ == "__main__":
    main()
