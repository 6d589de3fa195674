"""Keeps some pictures of a run with their verdicts in a small folder, so that a test can draw them again and compare.

`python -m entscale_jax.reports.paper.spot_cells RUN OUT` writes OUT/cells.json and a PNG for each cell, and one of the
same caption and seed by another method, which the picture drawn again must not be taken for.
"""

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError
from ..levels import find_levels
from ..records import Run, Sample, Size
from ..run_folder import read_run
from .reference_pictures import decode_picture

INDEX = "cells.json"
IN_TURN = ("entropy", "original", "resize")
"""Methods that the sizes off the training size have in turn; the largest has those that tell most."""
AT_LARGEST = ("entropy", "resize", "multidiffusion")
PAIRS = 64
"""First pairs of caption and seed, of which the one is kept whose two pictures differ most."""


class Spot(NamedTuple):
    """A cell to draw again, and the same pair by another method, where that draws something else."""

    cell: Sample
    other: Sample | None


def write_spot_cells(folder: Path, out: Path) -> list[Spot]:
    """Chooses cells of the finished run in `folder` and writes them to `out`, in place of what was there.

    Raises UserError where the run lacks every cell that would be chosen, or a picture of them.
    """
    run = read_run(folder)
    spots = list(choose_spots(run))
    if not spots:
        raise UserError(f"run {folder} has none of the cells to keep: it needs methods {', '.join(IN_TURN)}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for sample in {one.cell: one for spot in spots for one in spot if one is not None}.values():
        shutil.copyfile(run.folder / str(sample.image), out / f"{sample.cell}.png")
    content = {"sweep": run.name, **_machine(run), "cells": [_entry(spot) for spot in spots]}
    (out / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return spots


def choose_spots(run: Run) -> Iterator[Spot]:
    """One cell of the training size, one of each other in turn of methods, and three of the largest."""
    levels = find_levels(run)
    off = [size for size in run.sizes if not (size in levels and levels[size].is_control)]
    for size in run.sizes:
        if size not in off:
            yield from (Spot(sample, None) for sample in list(_drawn(run, size, "original").values())[:1])
    largest = max(off, key=lambda size: size.width * size.height, default=None)
    turn = cycle(IN_TURN)
    for size in off:
        for method in AT_LARGEST if size == largest else (next(turn),):
            yield from _spot(run, size, method)


def _spot(run: Run, size: Size, method: str) -> Iterator[Spot]:
    against = _drawn(run, size, "entropy" if method == "original" else "original")
    both = [Spot(sample, against[pair]) for pair, sample in _drawn(run, size, method).items() if pair in against]
    if both:
        yield max(both[:PAIRS], key=lambda spot: _difference(run, spot))


def _drawn(run: Run, size: Size, method: str) -> Mapping[Any, Sample]:
    found = run.of(size, method)
    return {pair: found[pair] for pair in run.pairs if pair in found and found[pair].error is None}


def _difference(run: Run, spot: Spot) -> int:
    """The largest of a pixel, of 255."""
    first, second = (np.asarray(_picture(run, one), np.int16) for one in spot if one is not None)
    return int(np.abs(first - second).max())


def _picture(run: Run, sample: Sample) -> np.ndarray:
    file = run.folder / str(sample.image)
    try:
        return decode_picture(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: bring the run's pictures home, or draw it again") from None


def _machine(run: Run) -> dict[str, Any]:
    """What the bits of a picture depend on beside the sweep; the processor only where this machine drew the run."""
    nodes = {device.get("node") for device in run.environment.get("devices", ())}
    here = nodes == {platform.node()}
    versions = run.environment.get("versions", {})
    return {
        "commit": run.environment.get("commit"),
        "versions": {name: versions.get(name) for name in ("jax", "jaxlib", "flax", "numpy", "pillow")},
        "processor": processor() if here else None,
        "processors": run.environment.get("cpus"),
    }


def processor() -> str | None:
    """The processor's name and what it can do, as Linux tells them: XLA compiles for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {name.strip(): value.strip() for name, value in told.items()}
    names = ("model name", "cpu family", "model", "stepping")
    return ", ".join(known[name] for name in names if name in known) or None


def _entry(spot: Spot) -> dict[str, Any]:
    cell, other = spot
    exact, missing, extra = cell.objects or (None, None, None)
    return {
        "cell": cell.cell,
        "size": str(cell.size),
        "method": cell.method,
        "prompt": cell.prompt,
        "seed": cell.seed,
        "objects_exact": None if exact is None else bool(exact),
        "objects_missing": None if missing is None else int(missing),
        "objects_extra": None if extra is None else int(extra),
        "scenes_clip": cell.clip.get("scenes_clip"),
        "sha256": cell.sha256,
        "other": None if other is None else other.cell,
        "other_method": None if other is None else other.method,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m entscale_jax.reports.paper.spot_cells RUN OUT")
    try:
        print(f"{len(write_spot_cells(*map(Path, sys.argv[1:])))} cells in {sys.argv[2]}")
    except UserError as error:
        sys.exit(f"spot_cells: {error}")
