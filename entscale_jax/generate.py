"""What `entscale generate` does: draws captions and writes each picture with the record of what made it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from .errors import UserError
from .pipeline import TextToImage
from .png import png_bytes
from .scales import Scaling, multiplier_text


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the command. Sizes are (height, width) in pixels."""

    prompts: tuple[str, ...]
    model: str
    size: tuple[int, int] | None
    rule: str
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
        scaling = pipe.info.scaling(job.rule, job.multiplier, job.train_entropy)
        job = replace(job, guidance=pipe.info.guidance if job.guidance is None else job.guidance)
        static: dict[str, Any] = {"height": height, "width": width, "rule": scaling}
        static |= {"sampler": job.sampler, "steps": job.steps, "guidance": job.guidance}
        static |= {"tiling": job.tiling, "max_batch": job.max_batch}
        status.update(f"compiling for {width}x{height}")
        pipe.compile(batch=len(job.prompts), strength=None if image is None else job.strength, **static)
        status.update(f"drawing {len(job.prompts)} of {width}x{height}")
        away = {"negative_prompt": job.negative_prompt}
        out = pipe(job.prompts, seed=job.seed, image=image, strength=job.strength, **away, **static)
    bucket = pipe.info.bucket(height, width)
    multipliers = ", ".join(map(multiplier_text, pipe.info.multipliers(bucket, scaling)))
    for index, (file, image) in enumerate(zip(files, np.asarray(out.images), strict=True)):
        _write(file, png_bytes(image, _record(job, pipe, scaling, index, f"{width}x{height}")))
        console.print(f"{file}: {width}x{height}, multipliers {multipliers}", soft_wrap=True, highlight=False)
    return files


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


def _record(job: Job, pipe: TextToImage, scaling: Scaling, index: int, size: str) -> dict[str, str]:
    return {
        "model": job.model,
        "weights": pipe.info.weights_hash,
        "caption": job.prompts[index],
        "negative_prompt": job.negative_prompt or "",
        **({} if job.image is None else {"image": str(job.image), "strength": str(job.strength)}),
        "seed": str(job.seed + index),
        "rule": scaling.label,
        "size": size,
        "dtype": job.opening["dtype"],
        **({"tiling": "yes"} if job.tiling else {}),
        "sampler": json.dumps(
            {"name": pipe.info.sampler(job.sampler).name, "steps": job.steps, "guidance": job.guidance}
        ),
        "versions": json.dumps({name: _version(name) for name in ("entscale-jax", "jax", "flax")}),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _write(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise UserError(f"{file} can't be written: {error.strerror or error}") from None
