"""What `entscale calibrate` does: measures E_T of each self-attention layer at the training size and writes it down."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from . import environment
from .caption_file import captions_of, is_caption_file
from .errors import UserError
from .pipeline import TextToImage
from .scales import ScaleRule
from .scenes.captions import balanced_captions
from .weights.folder import BUILT_IN

SCENE_CAPTIONS = 64
"""Balanced captions, where `prompts` is the word `scenes`."""
BATCH = 8
_PACKAGES = ("entscale-jax", "jax", "jaxlib", "flax")


@dataclass(frozen=True)
class LayerMean:
    """E_T of one layer in nats: a mean over images of the mean over steps, heads and rows."""

    train_tokens: int
    """T."""
    entropy: float
    standard_error: float | None
    """Of that mean, over images; None of a single one."""


def read_prompts(given: Sequence[str], model: str) -> tuple[str, tuple[str, ...]]:
    """Where captions come from, and the captions.

    Args:
        given: captions, or files with one a line, or `scenes`; empty for the built-in model's own.
        model: the model that they are for.

    Raises UserError for a file that can't be read, and where there is no caption.
    """
    if not given and model != BUILT_IN:
        raise UserError(f"prompts are missing: give --prompts, captions such as model {model!r} is used with")
    found: list[str] = []
    sources = list(given) or [BUILT_IN]
    for source in sources:
        found += balanced_captions(SCENE_CAPTIONS) if source == BUILT_IN else captions_of(source)
    files = [source for source in sources if source == BUILT_IN or is_caption_file(source)]
    return ", ".join(Path(file).name for file in files) or "command line", tuple(found)


def run(
    model: str,
    prompts: Sequence[str],
    out: Path,
    *,
    console: Console,
    steps: int,
    seeds: Sequence[int],
    guidance: float | None,
    sampler: str | None,
    **opening: Any,
) -> None:
    """The command: measures and writes `out`. `opening` is how `TextToImage.from_pretrained` opens the model."""
    source, captions = read_prompts(prompts, model)
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out {out}: give the name of a file in a folder that exists")
    options: dict[str, Any] = {"steps": steps, "seeds": seeds, "guidance": guidance, "sampler": sampler}
    with console.status(f"opening {model}") as status:
        pipe = TextToImage.from_pretrained(model, **opening)
        status.update(f"drawing {len(captions) * len(seeds)} images of {model}")
        layers = calibrate(pipe, captions, **options)
    _write(out, document(pipe, layers, captions, source=source, **options))
    for name, layer in layers.items():
        error = "" if layer.standard_error is None else f" +- {layer.standard_error:.3f}"
        line = f"{name}: E_T {layer.entropy:.3f}{error}, log T {math.log(layer.train_tokens):.3f}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


def calibrate(
    pipe: TextToImage,
    captions: Sequence[str],
    *,
    steps: int = 50,
    seeds: Sequence[int] = (0,),
    guidance: float | None = None,
    sampler: str | None = None,
    batch: int = BATCH,
) -> dict[str, LayerMean]:
    """E_T of each layer of a model, under rule `original` at its training size.

    Args:
        pipe: the model.
        captions: caption i is drawn from the noise of seed s + i, once for each s of `seeds`.
        steps: of the sampler; every step counts alike.
        seeds: where to count from.
        guidance: the model's own if None. With guidance the caption's half of the batch counts alone.
        sampler: the model's own if None.
        batch: images at once.
    """
    options: dict[str, Any] = {"rule": ScaleRule.ORIGINAL, "steps": steps, "guidance": guidance, "sampler": sampler}
    options |= {"decode": False, "max_batch": min(batch, len(captions)), "measure_entropy": True}
    measured = [pipe(captions, seed=seed, **options).entropy or {} for seed in seeds]
    found = {}
    for name, (level, _, _) in pipe.layers.items():
        images = np.concatenate([layers[name].mean(axis=(0, 2), dtype=np.float64) for layers in measured])
        error = float(images.std(ddof=1) / math.sqrt(len(images))) if len(images) > 1 else None
        found[name] = LayerMean(pipe.info.train_tokens[level], float(images.mean()), error)
    return found


def document(
    pipe: TextToImage,
    layers: Mapping[str, LayerMean],
    captions: Sequence[str],
    *,
    source: str,
    steps: int,
    seeds: Sequence[int],
    guidance: float | None,
    sampler: str | None,
) -> dict[str, Any]:
    """The contents of the file: E_T of each layer, after all that a reader needs to measure it again."""
    info = pipe.info
    height, width = info.train_size
    return {
        "model": info.name,
        "weights_hash": info.weights_hash,
        "train_size": f"{width}x{height}",
        "rule": ScaleRule.ORIGINAL.value,
        "sampler": info.sampler(sampler).name,
        "steps": steps,
        "guidance": info.guidance if guidance is None else guidance,
        "prompts": {
            "source": source,
            "count": len(captions),
            "sha256": sha256("\n".join(captions).encode()).hexdigest(),
        },
        "seeds": list(seeds),
        "images": len(captions) * len(seeds),
        "mean_over": "steps, heads and rows of the caption's half; then images, of which standard_error is",
        "versions": environment.versions(_PACKAGES),
        "layers": {
            name: {
                "train_tokens": layer.train_tokens,
                "entropy": round(layer.entropy, 6),
                "standard_error": None if layer.standard_error is None else round(layer.standard_error, 6),
            }
            for name, layer in layers.items()
        },
    }


def _write(file: Path, content: Mapping[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror or error}") from None
