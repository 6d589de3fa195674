"""Cells of the committed tables, drawn again by the sweep's own settings and a worker's own path, without Ray.

`python -m entscale_jax.reports.paper.spot_cells runs/tables tests/data/spot_cells` wrote `tests/data/spot_cells`.
On the processor and versions that drew them pictures are equal bit for bit. Elsewhere they are within BOUND, and
verdicts are equal; measured: 1 of 255 in 2 of 147,456 values of three pictures without XLA's optimisations, whose sums
run in another order.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports.paper.spot_cells import INDEX, processor, write_spot_cells

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "tests" / "data" / "spot_cells"
SPOTS = json.loads((CELLS / INDEX).read_text())
BOUND = 2
"""Of 255, for a pixel on another processor."""
FAR = 20
"""What the picture of another method differs by at least."""
CLIP_BOUND = 1e-3
"""For the cosine of image and caption, of pictures within BOUND."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder with the pictures drawn again, and their columns."""
    out = tmp_path_factory.mktemp("drawn")
    names = [cell["cell"] for cell in SPOTS["cells"]]
    command = [sys.executable, Path(__file__).with_name("spot_redraw.py"), f"sweeps/{SPOTS['sweep']}.yaml", out, *names]
    # As a sweep is drawn: the tests' own switch leaves out XLA's optimisations.
    switches = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **switches}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out, json.loads((out / "rows.json").read_text())


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


def difference(one, other):
    return int(np.abs(pixels(one) - pixels(other)).max())


def same_machine():
    versions = {name: metadata.version(name) for name in SPOTS["versions"]}
    here = versions, processor(), os.cpu_count()
    return here == (SPOTS["versions"], SPOTS["processor"], SPOTS["processors"])


def test_every_cell_is_drawn_again_as_it_was(drawn):
    out, rows = drawn
    assert sorted(rows) == sorted(cell["cell"] for cell in SPOTS["cells"])
    bound = 0 if same_machine() else BOUND
    found = {
        cell["cell"]: difference(CELLS / f"{cell['cell']}.png", out / f"{cell['cell']}.png") for cell in SPOTS["cells"]
    }
    assert max(found.values()) <= bound, f"{found}, bound {bound}"
    for cell in SPOTS["cells"]:
        row = rows[cell["cell"]]
        verdict = {name: row[name] for name in ("objects_exact", "objects_missing", "objects_extra")}
        assert verdict == {name: cell[name] for name in verdict}, cell
        assert row["scenes_clip"] == pytest.approx(cell["scenes_clip"], abs=CLIP_BOUND if bound else 1e-6)


def test_the_picture_of_another_method_would_be_found_out(drawn):
    out, _ = drawn
    others = [cell for cell in SPOTS["cells"] if cell["other"]]
    assert {cell["method"] for cell in others} >= {"original", "entropy", "resize", "multidiffusion"}
    for cell in others:
        far = difference(CELLS / f"{cell['other']}.png", out / f"{cell['cell']}.png")
        assert far > FAR, f"{cell['method']} and {cell['other_method']} at {cell['size']} differ by {far} of 255"


def test_cells_are_chosen_of_every_size_and_method(tmp_path):
    sizes = ((64, 64), (32, 32), (64, 36), (96, 96))
    methods = ("original", "entropy", "resize", "multidiffusion")
    run = SyntheticRun(sizes=sizes, methods=methods, seeds=(0, 1)).write(tmp_path / "run")
    spots = write_spot_cells(run, tmp_path / "spots")
    found = [(str(spot.cell.size), spot.cell.method, spot.other and spot.other.method) for spot in spots]
    assert found == [
        ("64x64", "original", None),
        ("32x32", "entropy", "original"),
        ("64x36", "original", "entropy"),
        *(("96x96", method, "original") for method in ("entropy", "resize", "multidiffusion")),
    ]
    content = json.loads((tmp_path / "spots" / INDEX).read_text())
    assert [cell["cell"] for cell in content["cells"]] == [spot.cell.cell for spot in spots]
    kept = {path.stem for path in (tmp_path / "spots").glob("*.png")}
    assert kept == {one.cell for spot in spots for one in spot if one}
    for spot in spots:
        assert spot.other is None or spot.other.pair == spot.cell.pair
        name = f"{spot.cell.cell}.png"
        assert (tmp_path / "spots" / name).read_bytes() == (run / "images" / name).read_bytes()
    (run / "images" / f"{spots[1].cell.cell}.png").unlink()
    with pytest.raises(UserError, match="is missing"):
        write_spot_cells(run, tmp_path / "spots")
