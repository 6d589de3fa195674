"""Measures the tables of docs/parity.md: `python -m entscale_jax.parity.document docs/parity.md`, minutes a model."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from ..buckets import Bucket
from ..errors import UserError
from ..marks import find_section, replace_section, table
from ..scales import ScaleRule, Scaling
from ..weights.folder import describe
from . import random_models
from .bounds import BOUNDS
from .compare import Pair, Row, precision

SECTION = "parity"
GRIDS = ((7, 13), (15, 8), (19, 25), (27, 18), (28, 28))
"""Latent cells (h, w), besides the training grid."""
RULES = (Scaling(ScaleRule.ORIGINAL), Scaling(ScaleRule.ENTROPY))
STEPS, GUIDANCE = 25, 5.0
RANDOM = (("random SD 1.x", "sd1", 16), ("random SD 2.x", "sd2", (12, 20)))

_BUILT_IN = Path(__file__).parents[1] / "scenes" / "model"
_COLUMNS = ("VAE decode", "UNet", "UNet, other rule", "DDIM latents", "DDIM, other rule", "DDIM images")


def main(document: Path) -> None:
    """Measures, and replaces section `parity` of `document`. Raises UserError, at once, where it has none."""
    find_section(document, SECTION)
    with tempfile.TemporaryDirectory() as folder:
        sections = [_section(name, model) for name, model in _models(Path(folder))]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "diffusers", "transformers"))
    body = [f"With {versions}, on a CPU.", *sections, "## Bounds", _bounds()]
    replace_section(document, SECTION, ["\n\n".join(body)])


def _models(folder: Path) -> Iterator[tuple[str, Path | str]]:
    for seed, (name, family, size) in enumerate(RANDOM):
        yield name, random_models.build(folder / family, family, sample_size=size, seed=seed)
    if _BUILT_IN.is_dir():
        yield "scenes", "scenes"


def _section(name: str, model: Path | str) -> str:
    info = describe(model)
    height, width = info.train_grid
    buckets = [Bucket(h * info.latent_factor, w * info.latent_factor) for h, w in (info.train_grid, *GRIDS)]
    double, single = (_rows(model, buckets, float64) for float64 in (True, False))
    text = ", ".join(f"{row.module} {row.error:.1e}" for row in double if row.size == "-")
    lines = [_line(double, single, bucket, scaling) for bucket in buckets for scaling in RULES]
    header = ("size", "rule", *_COLUMNS)
    cells = "\n".join(table(header, lines))
    return f"## {name}: trained on {width}x{height} cells, {info.levels} levels\n\nIn float64: {text}.\n\n{cells}"


def _rows(model: Path | str, buckets: Sequence[Bucket], float64: bool) -> list[Row]:
    with precision(float64):
        pair = Pair(model, float64=float64)
        if not float64:
            options = {"steps": STEPS, "guidance": GUIDANCE}
            return [row for each in buckets for scaling in RULES for row in pair.ddim_rows(each, scaling, **options)]
        rows = [pair.text(), pair.time_embedding(), *map(pair.decode, buckets)]
        return rows + [row for each in buckets for scaling in RULES for row in pair.unet_rows(each, scaling)]


def _line(double: list[Row], single: list[Row], bucket: Bucket, scaling: Scaling) -> tuple[str, ...]:
    found = {
        row.module: f"{row.error:.1e}{'' if row.passed else ' FAILED'}"
        for row in double + single
        if row.size == str(bucket) and row.rule in ("-", scaling.label)
    }
    return (str(bucket), scaling.label, *(found.get(column, "") for column in _COLUMNS))


def _bounds() -> str:
    header = ("module", "in", "bound", "measured at most", "why no smaller")
    lines = [
        (module, dtype, f"{bound.limit:.0e}", bound.measured, bound.reason) for (module, dtype), bound in BOUNDS.items()
    ]
    return "\n".join(table(header, lines))


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description="Measures the tables of parity.")
    _parser.add_argument("document", type=Path, help="Markdown with the section's marks, such as docs/parity.md")
    try:
        main(_parser.parse_args().document)
    except UserError as error:
        _parser.exit(2, f"{error}\n")
