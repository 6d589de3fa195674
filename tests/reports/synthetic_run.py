"""A run folder as a sweep leaves it, made of drawn rectangles and stated numbers, for the tests of reports."""

import json
import math
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

TRAIN_TOKENS = (256, 64)


@dataclass
class SyntheticRun:
    """What the run holds; `objects` maps (width, height), method, prompt to (exact, missing, extra)."""

    sizes: tuple[tuple[int, int], ...] = ((64, 64), (96, 64))
    methods: tuple[Any, ...] = ("original", "entropy")
    prompts: tuple[str, ...] = ("a red circle", "a blue square")
    seeds: tuple[int, ...] | dict[str, int] = (0,)
    models: tuple[str, ...] = ("scenes",)
    metrics: tuple[str, ...] = ("objects", "entropy")
    objects: dict[Any, tuple[bool, int, int]] = field(default_factory=dict)
    errors: dict[Any, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """Goes into the spec alone: every cell is written."""
    name: str = "synthetic"
    weights: str = "0123abcd" * 8
    steps: int = 2
    cell_pixels: int = 4
    """Pixels along a side of a latent cell; levels are of 256 and 64 tokens in training."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Writes the folder as a finished sweep does, without its tables, and returns it."""
        for name in ("images", "rows"):
            (folder / name).mkdir(parents=True)
        self._write_spec(folder)
        cells = [
            (model, size, method, prompt, seed)
            for model in self.models
            for size in self.sizes
            for method in self.methods
            for prompt, seed in self._pairs()
        ]
        self.rows = [self._row(folder, sha256(repr(cell).encode()).hexdigest()[:16], *cell) for cell in cells]
        for row in self.rows:
            (folder / "rows" / f"{row['cell']}.json").write_text(json.dumps(row))
        self._write_records(folder)
        return folder

    def _pairs(self) -> list[tuple[str, int]]:
        if isinstance(self.seeds, dict):
            return [(prompt, seed) for seed, prompt in enumerate(self.prompts, self.seeds["first"])]
        return [(prompt, seed) for seed in self.seeds for prompt in self.prompts]

    def _write_spec(self, folder: Path) -> None:
        sweep = {
            "name": self.name,
            "models": list(self.models),
            "sizes": [f"{width}x{height}" for width, height in self.sizes],
            "methods": list(self.methods),
            "prompts": list(self.prompts),
            "seeds": self.seeds if isinstance(self.seeds, dict) else list(self.seeds),
            "sampler": {"name": "ddim", "steps": self.steps, "guidance": 5.0},
            "metrics": list(self.metrics),
        }
        if self.limits:
            sweep["limits"] = self.limits
        weights = dict.fromkeys(self.models, self.weights)
        (folder / "spec.yaml").write_text(yaml.safe_dump({"sweep": sweep, "weights": weights}, sort_keys=False))

    def _row(self, folder: Path, cell: str, model: str, size: tuple[int, int], method: Any, prompt: str, seed: int):
        label = method if isinstance(method, str) else f"fixed:{_joined(method['multiplier'])}"
        row = {
            **{"cell": cell, "model": model, "width": size[0], "height": size[1]},
            **{"method": label, "prompt": prompt, "seed": seed},
        }
        if error := self.errors.get((size, label, prompt)):
            return {**row, "image": None, "error": error}
        colour = (hash_free(prompt), hash_free(label), 40 * seed % 256)
        Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(folder / "images" / f"{cell}.png")
        row |= {"image": f"images/{cell}.png", "seconds": 0.5, "device": "cpu", "error": None}
        if "objects" in self.metrics:
            counts = self.objects.get((size, label, prompt), (True, 0, 0))
            row |= dict(zip(("objects_exact", "objects_missing", "objects_extra"), counts, strict=True))
        if "entropy" in self.metrics:
            layers = list(entropy_layers(size, label, self.cell_pixels))
            mean = np.mean([layer["entropy"] for layer in layers])
            row |= {"entropy": float(mean), "entropy_layers": layers}
        return row

    def _write_records(self, folder: Path) -> None:
        buckets = [
            {
                **{"model": model, "width": width, "height": height, "method": row_method, "batch": 4, "calls": 1},
                **{"compile_seconds": 12.25, "steady_seconds": 3.5, "images": 7},
            }
            for model in self.models
            for width, height in self.sizes
            for row_method in dict.fromkeys(row["method"] for row in self.rows)
        ]
        made = {"compiled": 3, "cached": 1, "seconds": 9.75}
        worker = {"run": 1, "worker": "worker-0", "device": {}, "expected": {"denoise": 4}}
        workers = [{**worker, "programs": {"denoise": made}, "other": {"convert": {**made, "seconds": 0.25}}}]
        (folder / "programs.json").write_text(json.dumps({"workers": workers, "buckets": buckets}))
        environment = {
            **{"commit": "c0ffee", "python": "3.11.7", "versions": {"jax": "0.10.2"}},
            "devices": [{"worker": "worker-0", "device": "TFRT_CPU_0"}],
        }
        (folder / "environment.json").write_text(json.dumps(environment))


def hash_free(text: str) -> int:
    """A byte that follows from the text, the same in every process."""
    return sum(text.encode()) % 256


def _joined(multiplier: float | list[float]) -> str:
    return ",".join(f"{value:g}" for value in (multiplier if isinstance(multiplier, list) else [multiplier]))


def entropy_layers(size: tuple[int, int], label: str, cell: int):
    """Two layers at each of two levels, of a model with `cell` pixels along a side of a latent cell; two steps each."""
    height, width = math.ceil(size[1] / cell), math.ceil(size[0] / cell)
    for level, train_tokens in enumerate(TRAIN_TOKENS):
        tokens = math.ceil(height / 2**level) * math.ceil(width / 2**level)
        mean = math.log(tokens) - (0.5 if label == "original" else 0.75)
        for number in range(2):
            yield {
                **{"layer": f"down_blocks/{level}/attentions/{number}", "tokens": tokens},
                **{"train_tokens": train_tokens, "entropy": [mean + 0.1, mean - 0.1], "logit_gap": [2.5, 1.5 + level]},
            }
