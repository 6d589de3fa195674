"""Baselines as sweep methods: what is planned, what is drawn once for several sizes, and what stands in the rows."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import sweep_fakes as fakes
from PIL import Image, ImageOps
from sweep_fakes import FakeExecutor, FakePipe, small_plan

from entscale_jax import Scaling, TextToImage
from entscale_jax.baselines import MultiDiffusion, Resize, Windows
from entscale_jax.png import read_text
from entscale_jax.reports.run_folder import read_run
from entscale_jax.sweep import run_sweep
from entscale_jax.sweep.compiles import CompileCounter
from entscale_jax.sweep.drawer import Drawer
from entscale_jax.sweep.retries import ALONE, WHOLE, Retries
from entscale_jax.sweep.spec import Metric

SIZES = [(64, 64), (96, 64), (30, 30)]


def _resized(**changes):
    return small_plan(methods=["resize"], **changes)


def _pairs(chunk):
    return list(dict.fromkeys((cell.prompt, cell.seed) for cell in chunk.cells))


def test_sizes_of_resize_share_their_drawings():
    plan = _resized()
    assert [len(_pairs(chunk)) for chunk in plan.chunks] == [4, 4, 2]  # five prompts, two seeds, for all three sizes
    assert len(plan.programs) == 1
    for chunk in plan.chunks:
        assert (chunk.width, chunk.height) == (64, 64)  # of training
        assert {cell.id for cell in chunk.cells} == {
            cell.id for cell in plan.cells if (cell.prompt, cell.seed) in _pairs(chunk)
        }
        assert chunk.sizes == dict.fromkeys(SIZES, len(_pairs(chunk)))
    assert sum(len(chunk.cells) for chunk in plan.chunks) == len({cell.id for cell in plan.cells}) == 30
    assert [(cell.width, cell.height) for cell in plan.cells[::10]] == SIZES  # rows are in the order of the sweep


def test_other_methods_are_planned_as_before_beside_them():
    alone, beside = small_plan(), small_plan(methods=["original", "resize", "entropy"])
    rules = [cell for cell in beside.cells if cell.method != Resize()]
    assert tuple(rules) == alone.cells
    planned = [(chunk.program, chunk.cells) for chunk in beside.chunks if chunk.program.method != Resize()]
    assert planned == [(chunk.program, chunk.cells) for chunk in alone.chunks]


def test_a_cell_of_a_baseline_is_told_apart_by_its_options():
    methods = ["original", "resize", "multidiffusion", {"baseline": "multidiffusion", "stride": 4}]
    plan = small_plan(methods=methods, sizes=["96x64"], prompts=["a"], seeds=[0])
    assert len({cell.id for cell in plan.cells}) == 4
    again = small_plan(methods=[*methods, {"baseline": "multidiffusion", "stride": 8}], sizes=["96x64"], prompts=["a"])
    assert {cell.id for cell in plan.cells} < {cell.id for cell in again.cells}
    assert len(again.cells) == 4 * 2


def test_a_task_holds_what_is_wanted_of_each_drawing():
    (chunk, *_) = _resized().chunks
    size, later = {cell.id for cell in chunk.places[1] if cell.width == 30}, {cell.id for cell in chunk.places[3]}
    task = chunk.task(size | later)
    assert task.wanted == (False, True, False, True)
    assert {cell.id for cell in task.wanted_cells} == size | later
    assert len(task.wanted_cells) == 4
    assert task.drawings == 2
    assert task.cost == chunk.cost / 2
    drawn = [(cell.prompt, cell.seed) for cell in task.cells]
    pairs = _pairs(chunk)
    assert drawn == [pairs[1], pairs[1], pairs[1], pairs[3]]


def test_a_drawing_that_fails_is_found_as_a_cell_that_fails_is():
    plan = _resized()
    (task, *_) = plan.tasks({cell.id for cell in plan.cells})
    retries = Retries()
    for _ in range(WHOLE - 1):
        assert retries.fault(task).again == (task,)
    half, other = retries.fault(task).again
    assert sorted(cell.id for part in (half, other) for cell in part.wanted_cells) == sorted(
        cell.id for cell in task.wanted_cells
    )
    alone, _ = retries.fault(half).again
    assert (alone.drawings, len(alone.wanted_cells)) == (1, 3)
    for _ in range(ALONE - 1):
        assert retries.fault(alone).again == (alone,)
    assert retries.fault(alone).given_up == (alone,)  # all three sizes, as they are of one drawing
    parts = Retries().out_of_memory(task, "1 x cpu").again
    assert [part.drawings for part in parts] == [2, 2]
    assert {part.program.batch for part in parts} == {2}


def test_windows_cost_what_they_denoise():
    plan = small_plan(methods=["original", "multidiffusion"], sizes=["96x64", "64x64", "30x30"], batch=2)
    costs = {(c.width, c.height, c.program.method.label): c.cost for c in plan.chunks}
    # 24x16 latent cells in windows of 16x16 that begin at 0 and at 8.
    assert costs[96, 64, "multidiffusion"] == costs[96, 64, "original"] * 2 * 256 / 384
    assert costs[64, 64, "multidiffusion"] == costs[64, 64, "original"]
    assert costs[30, 30, "multidiffusion"] == costs[30, 30, "original"]


def test_the_drawer_resizes_one_drawing_to_every_size():
    plan, pipe = _resized(sizes=["64x64", "48x64"]), FakePipe()
    drawer = Drawer((Metric.ENTROPY,), lambda cell: pipe, fakes.FakeCounter(), "fake")
    (task, *_) = plan.tasks({cell.id for cell in plan.cells})
    result = drawer.draw(task)
    assert len(result.drawn) == 8
    assert [call["size"] for call in pipe.calls] == [(64, 64)]
    assert pipe.calls[0]["rule"] == "original"
    whole = FakePipe()(
        [cell.prompt for cell in task.cells],
        height=64,
        width=64,
        rule=Scaling.of("original"),
        sampler="ddim",
        steps=25,
        guidance=5.0,
        seed=[c.seed for c in task.cells],
        measure_entropy=False,
    ).images
    cells = {cell.id: cell for cell in task.wanted_cells}
    for drawn in result.drawn:
        cell = cells[drawn.cell]
        place = _pairs(task.chunk).index((cell.prompt, cell.seed))
        fitted = ImageOps.fit(Image.fromarray(whole[place]), (cell.width, cell.height), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(_pixels(drawn.png), np.asarray(fitted))
        assert drawn.entropy == []
        assert "entropy" not in drawn.columns
        assert drawn.columns["seconds"] == result.steady_seconds / 4  # each drawing counts whole for both sizes


def _pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


METHODS = "[original, resize, multidiffusion, {baseline: multidiffusion, stride: 4, at_once: 1}]"


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(fakes.SPEC.replace("[original, entropy]", METHODS))
    return path


def test_a_sweep_of_baselines_is_drawn_stored_and_gone_on_with(sweep, tmp_path):
    executor = FakeExecutor()
    assert sweep(executor) == 0
    run = tmp_path / "run"
    rows = pq.read_table(run / "samples.parquet").to_pylist()
    assert len(rows) == 3 * 4 * 10
    labels = ["original", "resize", "multidiffusion", "multidiffusion:stride=4,at_once=1"]
    assert list(dict.fromkeys(row["method"] for row in rows)) == labels
    for row in rows:
        assert row["error"] is None
        assert row["objects_exact"] is False
        assert (row["entropy"] is None) == (row["method"] != "original")
        with Image.open(run / row["image"]) as image:
            assert image.size == (row["width"], row["height"])
        assert read_text(run / row["image"])["rule"] == row["method"]
    assert {row["method"] for row in pq.read_table(run / "entropy.parquet").to_pylist()} == {"original"}
    tasks = [task for _, task in executor.log if task.program.method == Resize()]
    assert sum(task.drawings for task in tasks) == 10

    # One size of resize is lost: its ten pictures are drawn again, in as many calls, and are the same.
    before = {row["cell"]: (run / row["image"]).read_bytes() for row in rows}
    for row in rows:
        if (row["method"], row["width"]) == ("resize", 30):
            (run / row["image"]).unlink()
    again = FakeExecutor()
    assert sweep(again) == 0
    assert {(task.program.method, cell.width) for _, task in again.log for cell in task.wanted_cells} == {
        (Resize(), 30)
    }
    assert {row["cell"]: (run / row["image"]).read_bytes() for row in rows} == before


def test_the_dry_run_and_the_report_know_them(sweep, console, tmp_path):
    assert sweep(FakeExecutor(), dry_run=True) == 0
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "96x64 64x64 4 256/64/16 resize - 10" in lines
    assert "96x64 96x64 4 384/96/24 multidiffusion - 10" in lines
    # Three of original, which measure; six of MultiDiffusion; one of resize.
    assert any("programs to make ready: 10 denoise, 3 decode, 1 text" in line for line in lines)
    assert sweep(FakeExecutor()) == 0
    run = read_run(tmp_path / "run")
    assert run.methods == ["original", "resize", "multidiffusion", "multidiffusion:stride=4,at_once=1"]
    assert list(run.scalings) == ["original"]
    assert run.planned == 120


def test_windows_are_handed_to_the_pipeline():
    pipe = FakePipe()
    plan = small_plan(methods=[{"baseline": "multidiffusion", "stride": 4}], sizes=["96x64"])
    Drawer((), lambda cell: pipe, fakes.FakeCounter(), "fake").draw(plan.tasks({c.id for c in plan.cells})[0])
    assert pipe.calls[0]["fuse"] == pipe.compiled[0]["fuse"] == Windows((16, 24), (16, 16), 4, 4)
    assert pipe.calls[0]["size"] == (96, 64)
    assert plan.programs[0].method == MultiDiffusion(stride=4)


@pytest.mark.full
@pytest.mark.parametrize("metrics", ["objects", "entropy, objects"])
def test_pictures_of_a_real_sweep_are_those_of_python(tiny_folder, tmp_path, console, metrics):
    """Drawn by the runner with a pipeline of its own; programs are made ready once, as many as are called for."""
    path = tmp_path / "real.yaml"
    text = fakes.SPEC.replace("[original, entropy]", "[original, resize, {baseline: multidiffusion, stride: 3}]")
    text = text.replace("fake", str(tiny_folder)).replace("[64x64, 96x64, 30x30]", "[32x32, 40x24, 46x32]")
    path.write_text(text.replace("[entropy, objects]", f"[{metrics}]").replace("seeds: [0, 7]", "seeds: [3]"))
    own = TextToImage.from_pretrained(tiny_folder)
    executor = FakeExecutor(load=lambda cell: own, counter=CompileCounter)
    run = tmp_path / "run"
    assert run_sweep(path, out=run, console=console, open_executor=fakes.opening(executor)) == 0
    rows = pq.read_table(run / "samples.parquet").to_pylist()
    assert len(rows) == 3 * 3 * 5
    other = TextToImage.from_pretrained(tiny_folder)
    for method in (Resize(), MultiDiffusion(stride=3)):
        for width, height in ((32, 32), (40, 24), (46, 32)):
            mine = [r for r in rows if (r["method"], r["width"], r["height"]) == (method.label, width, height)]
            expected = method.draw(
                other,
                [row["prompt"] for row in mine][:4],
                height=height,
                width=width,
                seed=[3] * 4,
                sampler="ddim",
                steps=3,
                guidance=5.0,
            ).images
            for row, image in zip(mine, expected, strict=False):
                np.testing.assert_array_equal(_pixels((run / row["image"]).read_bytes()), image)
    (worker,) = json.loads((run / "programs.json").read_text())["workers"]
    made = {kind: count["compiled"] + count["cached"] for kind, count in worker["programs"].items()}
    assert made == worker["expected"]
