"""Measures the tables of docs/parity.md and the README's first: `make parity`, minutes a model."""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers.utils import logging

from ..buckets import Bucket
from ..errors import UserError
from ..marks import find_section, replace_section, table
from ..scales import ScaleRule, Scaling
from ..weights.folder import ModelInfo, describe
from . import random_ldm, random_models, random_sdxl
from .bounds import BOUNDS
from .compare import Pair, Row, precision

SECTION, README_SECTION = "parity", "works"
GRIDS = ((7, 13), (15, 8), (19, 25), (27, 18), (28, 28))
"""Latent cells (h, w), besides the training grid."""
RULES = (Scaling(ScaleRule.ORIGINAL), Scaling(ScaleRule.ENTROPY))
STEPS, GUIDANCE = 25, 5.0

_BUILT_IN = Path(__file__).parents[1] / "scenes" / "model"
_DOUBLE = ("VAE encode", "VAE decode", "UNet", "UNet, other rule")
_SINGLE = ("VAE encode", "VAE decode", "UNet", "DDIM latents", "DDIM, other rule", "DDIM images")


@dataclass(frozen=True)
class Compared:
    """One model at all sizes, in float64 module by module and in float32 as it draws."""

    name: str
    info: ModelInfo
    double: list[Row]
    single: list[Row]

    @property
    def buckets(self) -> list[Bucket]:
        """Sizes that it was compared at."""
        factor = self.info.latent_factor
        return [Bucket(h * factor, w * factor) for h, w in (self.info.train_grid, *GRIDS)]

    def worst(self, module: str, rows: Sequence[Row]) -> float:
        """The largest error of a module, or for a control the smallest, over sizes and rules."""
        found = [row for row in rows if row.module == module]
        return min(row.error for row in found) if found[0].control else max(row.error for row in found)

    @property
    def passed(self) -> bool:
        """Whether every figure meets its bound."""
        return all(row.passed for row in self.double + self.single)


def main(document: Path, readme: Path) -> None:
    """Measures, and replaces section `parity` of `document` and `works` of `readme`.

    Raises UserError, at once, where one of them has no such section.
    """
    find_section(document, SECTION)
    find_section(readme, README_SECTION)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        found = [_compared(name, model) for name, model in _models(Path(folder))]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "diffusers", "transformers"))
    body = [f"With {versions}, on a CPU.", *map(_section, found), "## Bounds", bounds(found)]
    replace_section(document, SECTION, ["\n\n".join(body)])
    replace_section(readme, README_SECTION, works(found))


def works(found: Sequence[Compared]) -> list[str]:
    """The README's table: what opens, and how far it is from PyTorch at worst."""
    header = ("", "works", "UNet in float64", "the other rule there", "pictures in float32, of 1/255")
    lines = [
        (
            each.name,
            "yes" if each.passed else "FAILED",
            f"{each.worst('UNet', each.double):.1e}",
            f"{each.worst('UNet, other rule', each.double):.1e}",
            f"{each.worst('DDIM images', each.single):.2f}",
        )
        for each in found
    ]
    return table(header, lines)


def _models(folder: Path) -> Iterator[tuple[str, Path | str]]:
    build = random_models.build
    yield "Stable Diffusion 1.x", build(folder / "sd1", "sd1", sample_size=16, seed=0)
    yield "Stable Diffusion 2.x base", build(folder / "sd2-base", "sd2-base", sample_size=16, seed=2)
    yield "Stable Diffusion 2.x, v-prediction", build(folder / "sd2", "sd2", sample_size=(12, 20), seed=1)
    yield "Latent Diffusion, AutoencoderKL", random_ldm.build(folder / "kl", "kl", sample_size=16, seed=0)
    yield "Latent Diffusion, VQModel", random_ldm.build(folder / "vq", "vq", sample_size=(12, 20), seed=1)
    yield "Stable Diffusion XL", random_sdxl.build(folder / "sdxl", sample_size=(12, 20))
    if _BUILT_IN.is_dir():
        yield "the built-in model, scenes", "scenes"


def _compared(name: str, model: Path | str) -> Compared:
    compared, start = Compared(name, describe(model), [], []), time.perf_counter()
    for rows, float64 in ((compared.double, True), (compared.single, False)):
        rows += _rows(model, compared.buckets, float64)
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return compared


def _section(compared: Compared) -> str:
    height, width = compared.info.train_grid
    lines = [
        _line(compared.double, compared.single, bucket, scaling) for bucket in compared.buckets for scaling in RULES
    ]
    header = ("size", "rule", *(f"{name}, float64" for name in _DOUBLE), *(f"{name}, float32" for name in _SINGLE))
    cells = "\n".join(table(header, lines))
    trained = f"trained on {width}x{height} cells, {compared.info.levels} levels"
    return f"## {compared.name}: {trained}\n\n{_without_size(compared)}\n\n{cells}"


def _without_size(compared: Compared) -> str:
    """The modules that have no size, and the least of the controls that are no column, in sentences."""
    sentences = []
    for dtype, rows in (("float64", compared.double), ("float32", compared.single)):
        text = [f"{row.module} {_error(row)}" for row in rows if row.size == "-" and not row.control]
        swapped = [row for row in rows if row.module.endswith(", swapped")]
        least = {row.module: row for row in sorted(swapped, key=lambda row: -row.error)}
        wrong = [f"{name.removesuffix(', swapped')} {_error(row)}" for name, row in sorted(least.items())]
        sentences.append(f"In {dtype}: {', '.join(text)}. Axes or captions swapped, at least: {', '.join(wrong)}.")
    return " ".join(sentences)


def _rows(model: Path | str, buckets: Sequence[Bucket], float64: bool) -> list[Row]:
    with precision(float64):
        pair = Pair(model, float64=float64)
        rows = [*pair.text(), pair.time_embedding()]
        for bucket in buckets:
            rows += pair.encode(bucket) + pair.decode(bucket)
            for scaling in RULES:
                rows += pair.unet_rows(bucket, scaling)
                rows += [] if float64 else pair.ddim_rows(bucket, scaling, steps=STEPS, guidance=GUIDANCE)
        return rows


def _line(double: list[Row], single: list[Row], bucket: Bucket, scaling: Scaling) -> tuple[str, ...]:
    cells = []
    for names, rows in ((_DOUBLE, double), (_SINGLE, single)):
        found = {
            row.module: _error(row) for row in rows if row.size == str(bucket) and row.rule in ("-", scaling.label)
        }
        cells += [found.get(name, "") for name in names]
    return (str(bucket), scaling.label, *cells)


def _error(row: Row) -> str:
    return f"{row.error:.1e}{'' if row.passed else ' FAILED'}"


def bounds(found: Sequence[Compared]) -> str:
    """The bounds beside the largest error of each over all models."""
    measured: dict[tuple[str, str], float] = {}
    for each in found:
        for dtype, rows in (("float64", each.double), ("float32", each.single)):
            for row in rows:
                key = row.module, dtype
                measured[key] = max(measured.get(key, 0.0), row.error)
    header = ("module", "in", "bound", "measured at most", "why no smaller")
    lines = [
        (*key, f"{bound.limit:.0e}", f"{measured[key]:.1e}" if key in measured else "", bound.reason)
        for key, bound in BOUNDS.items()
    ]
    return "\n".join(table(header, lines))


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description="Measures the tables of parity.")
    _parser.add_argument("document", type=Path, help="Markdown with the marks of section parity: docs/parity.md")
    _parser.add_argument("readme", type=Path, help="Markdown with the marks of section works: README.md")
    _arguments = _parser.parse_args()
    try:
        main(_arguments.document, _arguments.readme)
    except UserError as error:
        _parser.exit(2, f"{error}\n")
