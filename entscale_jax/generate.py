"""What `entscale generate` does: draws captions and writes each picture with the record of what made it."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from .baselines import METHODS, Baseline, Method, Upscale, read_baseline
from .environment import versions
from .errors import UserError
from .pipeline import Output, TextToImage
from .png import png_bytes
from .scales import ScaleRule, multiplier_text


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the command. Sizes are (height, width) in pixels."""

    prompts: tuple[str, ...]
    model: str
    size: tuple[int, int] | None
    rule: str
    """A scale rule's name, or a baseline's."""
    upscaler: str | None
    """Of baseline `upscale`: the folder or hub id of what it enlarges with."""
    multiplier: float | tuple[float, ...]
    train_entropy: Path | None
    """Of rule `calibrated`; the model's own if None."""
    sampler: str | None
    """The model's if None."""
    steps: int
    guidance: float | None
    """The model's default if None."""
    seed: int
    negative_prompt: str | None
    image: Path | None
    strength: float
    tiling: bool
    max_batch: int | None
    opening: Mapping[str, Any]
    """How `TextToImage.from_pretrained` opens the model: dtype, revision, variant, allow_pickle, train_size."""
    out: Path


def run(job: Job, console: Console) -> list[Path]:
    """Draws the job, writes its files and returns their paths. Nothing is written where something is wrong."""
    files = _files(job.out, len(job.prompts))
    with console.status(f"opening {job.model}") as status:
        pipe = TextToImage.from_pretrained(job.model, **job.opening)
        image = None if job.image is None else _read_image(job.image)
        height, width = job.size or (pipe.info.train_size if image is None else image.shape[:2])
        method = _method(job, pipe)
        job = replace(job, guidance=pipe.info.guidance if job.guidance is None else job.guidance)
        static: dict[str, Any] = {"height": height, "width": width}
        static |= {"sampler": job.sampler, "steps": job.steps, "guidance": job.guidance}
        static |= {"tiling": job.tiling, "max_batch": job.max_batch}
        status.update(f"compiling for {width}x{height}")
        draw, make_ready = _ways(method, pipe)
        make_ready(batch=len(job.prompts), strength=None if image is None else job.strength, **static)
        status.update(f"drawing {len(job.prompts)} of {width}x{height}")
        away = {"negative_prompt": job.negative_prompt}
        out = draw(job.prompts, seed=job.seed, image=image, strength=job.strength, **away, **static)
    said = _said(method, pipe, (height, width))
    for index, (file, image) in enumerate(zip(files, np.asarray(out.images), strict=True)):
        _write(file, png_bytes(image, _record(job, pipe, method, index, f"{width}x{height}")))
        console.print(f"{file}: {width}x{height}, {said}", soft_wrap=True, highlight=False)
    return files


def _method(job: Job, pipe: TextToImage) -> Method:
    """A scale rule that fits the model, or a baseline, which has none of a rule's options."""
    if job.upscaler is not None and job.rule != Upscale.name:
        raise UserError(f"--upscaler is of --rule {Upscale.name}, and --rule is {job.rule}: leave out one of them")
    if job.rule not in [*ScaleRule, *METHODS]:
        raise UserError(f"unknown rule {job.rule!r}: use one of {', '.join([*ScaleRule, *METHODS])}")
    if job.rule not in METHODS:
        return pipe.info.scaling(job.rule, job.multiplier, job.train_entropy)
    if job.multiplier != 1.0 or job.train_entropy is not None:
        raise UserError(f"--rule {job.rule} has the scale of training: leave out --multiplier and --train-entropy")
    if job.image is not None:
        raise UserError(f"--rule {job.rule} draws from noise: leave out --image")
    if job.rule == Upscale.name and job.upscaler is None:
        raise UserError(f"--rule {Upscale.name} needs --upscaler: a diffusers folder or hub id that enlarges pictures")
    baseline = read_baseline(job.rule if job.upscaler is None else {"baseline": job.rule, "upscaler": job.upscaler})
    baseline.check(pipe.info)
    return baseline


def _ways(method: Method, pipe: TextToImage) -> tuple[Callable[..., Output], Callable[..., object]]:
    """How the method draws, and how it compiles."""
    if isinstance(method, Baseline):
        return partial(method.draw, pipe), partial(method.compile, pipe)
    return partial(pipe, rule=method), partial(pipe.compile, rule=method)


def _said(method: Method, pipe: TextToImage, size: tuple[int, int]) -> str:
    if isinstance(method, Baseline):
        return method.label
    multipliers = pipe.info.multipliers(pipe.info.bucket(*size), method)
    return f"multipliers {', '.join(map(multiplier_text, multipliers))}"


def _files(out: Path, count: int) -> list[Path]:
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} is no .png file: pictures are written as PNG")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: folder {out.parent} does not exist or can't be written")
    files = [out] if count == 1 else [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(count)]
    if folders := [str(file) for file in files if file.is_dir()]:
        raise UserError(f"--out: {', '.join(folders)} is a folder: give the name of a picture")
    return files


def _read_image(file: Path) -> np.ndarray:
    """RGB bytes [height width 3], whatever the file's mode."""
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"--image {file} can't be read as a picture: {error}") from None


def _record(job: Job, pipe: TextToImage, method: Method, index: int, size: str) -> dict[str, str]:
    return {
        "model": job.model,
        "weights": pipe.info.weights_hash,
        "caption": job.prompts[index],
        "negative_prompt": job.negative_prompt or "",
        **({} if job.image is None else {"image": str(job.image), "strength": str(job.strength)}),
        "seed": str(job.seed + index),
        "rule": method.label,
        "size": size,
        "dtype": job.opening["dtype"],
        **({"tiling": "yes"} if job.tiling else {}),
        "sampler": json.dumps(
            {"name": pipe.info.sampler(job.sampler).name, "steps": job.steps, "guidance": job.guidance}
        ),
        "versions": json.dumps(versions(("entscale-jax", "jax", "flax"))),
    }


def _write(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise UserError(f"{file} can't be written: {error.strerror or error}") from None
