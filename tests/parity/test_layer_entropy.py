"""Entropy of each self-attention layer of the built-in model, against an N x N softmax in PyTorch."""

from itertools import product
from pathlib import Path

import jax
import pytest
from parity_cases import GRIDS, bucket_of

from entscale_jax.parity.compare import precision
from entscale_jax.parity.entropy import BOUNDS, CONTROL, compared

DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"
SIZES = ("128x128", "104x56", "64x120", "200x152", "144x216", "224x224")


@pytest.fixture(autouse=True)
def _quick_compiling():
    jax.config.update("jax_disable_most_optimizations", True)
    # flax asks for the common type of float64 and float32 in its norms, which "strict" refuses.
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("grid", GRIDS["scenes"], ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.full)])
def test_every_layer_agrees_and_under_the_other_rule_none(open_pair, grid, dtype):
    with precision(float64=dtype == "float64"):
        pair = open_pair("scenes", dtype == "float64")
        bucket = bucket_of(pair, grid)
        found = compared(pair, bucket)
        assert set(found) == {"original", "entropy"}
        for difference in found.values():
            assert difference.error <= BOUNDS[dtype] <= 1e-4
            if grid == pair.info.train_grid:
                assert difference.other_rule is None
            else:
                assert difference.other_rule > CONTROL >= 1e-3


def test_the_document_has_every_size_within_today_s_bounds():
    written = DOCUMENT.read_text().split("<!-- measured: entropy -->")[1].split("<!-- end of measured: entropy -->")[0]
    lines = [line.strip("| ").split(" | ") for line in written.splitlines() if line.startswith("| ")]
    assert lines[0][2:4] == [f"{dtype}, bound {bound:.0e}" for dtype, bound in BOUNDS.items()]
    rows = [[*line, ""][:5] for line in lines[2:]]
    assert {tuple(row[:2]) for row in rows} == set(product(SIZES, ("original", "entropy")))
    for size, _, double, single, other in rows:
        assert float(double) <= BOUNDS["float64"]
        assert float(single) <= BOUNDS["float32"]
        assert (size == "128x128") if not other else float(other) > CONTROL
