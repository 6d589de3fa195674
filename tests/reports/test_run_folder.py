"""The report reads what the sweep's own code writes, from rows and from the tables made of them."""

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from entscale_jax.reports.levels import find_levels
from entscale_jax.reports.records import BucketSeconds, Size
from entscale_jax.reports.run_folder import read_run
from entscale_jax.reports.tables import ProgramLine, program_lines
from entscale_jax.scales import Scaling
from entscale_jax.sweep.executor import Compile, Result
from entscale_jax.sweep.plan import Bucket, BucketKey, Cell, Chunk, Program
from entscale_jax.sweep.programs import Ledger
from entscale_jax.sweep.run_spec import dump_spec
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.sweep.store import RunFolder, cell_row
from entscale_jax.sweep.tables import write_tables

PNG = b"\x89PNG\r\n\x1a\n...\x00\x00\x00\x00IEND\xaeB`\x82"  # begins and ends as one; a report copies it unread
PROMPTS = ("no", "a red circle")
METHODS = (Scaling.of("original"), Scaling.of({"rule": "fixed", "multiplier": [0.5, 1.25]}))
SPEC = {
    "name": "written",
    "models": ["scenes"],
    "sizes": ["64x36"],
    "methods": ["original", {"rule": "fixed", "multiplier": [0.5, 1.25]}],
    "prompts": list(PROMPTS),
    "seeds": [3],
}


def make_cell(method: Scaling, prompt: str) -> Cell:
    return Cell(
        model="scenes",
        weights_hash="ab" * 32,
        train_size=(64, 64),
        width=64,
        height=36,
        method=method,
        prompt=prompt,
        seed=3,
        sampler="ddim",
        steps=2,
        guidance=5.0,
    )


@pytest.fixture
def folder(tmp_path):
    """A run of four cells, the last one failed, written by the code of the sweep."""
    run = RunFolder(tmp_path / "run")
    cells = [make_cell(method, prompt) for method in METHODS for prompt in PROMPTS]
    layers = [
        {"layer": "down_blocks/0", "tokens": 144, "train_tokens": 256, "entropy": [4.0, 3.0], "logit_gap": [1.0, 2.0]},
        {"layer": "mid_block", "tokens": 40, "train_tokens": 64, "entropy": [2.0, 1.0], "logit_gap": [0.5, 0.25]},
    ]
    with run.opened():
        run.prepare(dump_spec(SweepSpec.model_validate(SPEC), PROMPTS, {"scenes": "ab" * 32}))
        for number, cell in enumerate(cells[:-1]):
            counts = {"objects_exact": number == 0, "objects_missing": number, "objects_extra": 2 * number}
            run.write(cell, PNG, {**cell_row(cell), **counts, "error": None, "entropy_layers": layers})
        run.write_failure(cells[-1], cell_row(cells[-1]), "RuntimeError: no memory")
        program = Program(BucketKey("scenes", Bucket(36, 64)), METHODS[0], 2, "ddim", 2, True)
        task = Chunk(0, program, 64, 36, tuple(cells[:2])).task({cell.id for cell in cells})
        Ledger(run).add("worker-0", {}, task, Result([], [Compile("convert", True, 1.5)], 2.5, 0.75))
    return run.path


def test_rows_as_the_sweep_writes_them(folder):
    run = read_run(folder)
    assert run.planned == 4
    assert replace(run, spec={**run.spec, "limits": {"original": 1}}).planned == 3
    assert run.pairs == [("no", 3), ("a red circle", 3)]
    assert run.methods == ["original", "fixed:0.5,1.25"]
    size = Size("scenes", 64, 36)
    counts = [run.of(size, method)[pair].objects for method in run.methods for pair in run.pairs]
    assert counts == [(1.0, 0.0, 0.0), (0.0, 1.0, 2.0), (0.0, 2.0, 4.0), None]
    assert run.of(size, "fixed:0.5,1.25")["a red circle", 3].error == "RuntimeError: no memory"
    assert run.weights == {"scenes": "ab" * 32}


def test_seconds_as_the_sweep_writes_them(folder):
    (entry,) = read_run(folder).seconds
    assert entry == BucketSeconds(
        size=Size("scenes", 64, 36), method="original", batch=2, images=2, compile_seconds=2.5, steady_seconds=0.75
    )
    lines = {line.name: line for line in program_lines(read_run(folder))}
    assert lines["convert"] == ProgramLine(name="convert", needed=None, compiled=0, cached=1, seconds=1.5)
    assert lines["denoise"] == ProgramLine(name="denoise", needed=1, compiled=0, cached=0, seconds=0.0)


def test_levels_follow_from_the_entropy_of_the_layers(folder):
    (levels,) = find_levels(read_run(folder)).values()
    assert levels.tokens == (144, 40)
    assert levels.train_tokens == (256, 64)
    assert levels.multipliers == {"original": (1.0, 1.0), "fixed:0.5,1.25": (0.5, 1.25)}
    assert not levels.is_control


def test_tables_serve_where_the_rows_were_removed(folder):
    before = read_run(folder)
    store = RunFolder(folder)
    cells = [make_cell(method, prompt) for method in METHODS for prompt in PROMPTS]
    write_tables(store, cells)
    shutil.rmtree(folder / "rows")
    after = read_run(folder)
    assert {sample.cell: sample for sample in after.samples} == {sample.cell: sample for sample in before.samples}
    assert sorted(after.entropy, key=repr) == sorted(before.entropy, key=repr)
    assert len(after.entropy) == 4
    assert {layer.logit_gap for layer in after.entropy} == {1.5, 0.375}


def test_runs_of_before_the_logit_gap_was_measured_stay_readable(folder):
    for path in (folder / "rows").iterdir():
        row = json.loads(path.read_text())
        for layer in row.get("entropy_layers", ()):
            del layer["logit_gap"]
        path.write_text(json.dumps(row))
    before = read_run(folder)
    assert [layer.logit_gap for layer in before.entropy] == [None] * 4
    store = RunFolder(folder)
    cells = [make_cell(method, prompt) for method in METHODS for prompt in PROMPTS]
    write_tables(store, cells)
    table = folder / "entropy.parquet"
    assert pq.read_table(table).column("logit_gap").null_count == 12
    shutil.rmtree(folder / "rows")
    assert sorted(read_run(folder).entropy, key=repr) == sorted(before.entropy, key=repr)
    pq.write_table(pq.read_table(table).drop_columns(["logit_gap"]), table)
    assert sorted(read_run(folder).entropy, key=repr) == sorted(before.entropy, key=repr)
