"""Whole runs with Ray, in processes of their own that are killed on the way: what the fake executor only plays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from storm import BEGUN, GATE, PLACE
from tiny_model import write_tiny_model

from entscale_jax.sweep import plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "sweeps" / "run.py"
GATED = HERE / "gated_sweep.py"
SECONDS = 900
"""Each run takes some 20 s on two idle cores; the limit is for busy ones."""
SPEC = """\
sweep:
  name: killed
  model: {model}
  sizes: [32x32, 48x30]
  methods: [entropy, {{rule: fixed, multiplier: 0.8}}]
  prompts: {{scenes: 8}}
  seeds: [0, 1, 2]
  sampler: {{name: ddim, steps: 8, guidance: 5.0}}
  batch: 2
  metrics: [entropy, objects]
"""
CELLS = 2 * 2 * 8 * 3


class Run:
    """A sweep as a command, in a process group of its own."""

    def __init__(self, folder, name, script=SCRIPT):
        self.out = folder / name
        self.log = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "JAX_"))}
        self.environment = {**environment, "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
        self.command = [
            sys.executable,
            str(script),
            str(folder / "s.yaml"),
            "--out",
            str(self.out),
            "--address",
            "local",
        ]
        self.process: subprocess.Popen
        self.lost: list[str] = []
        self.kept: dict[Path, int] = {}
        """Finished cells' files as they were when a driver ended, and their times."""

    def start(self):
        with open(self.log, "a") as log:
            # Shells start background jobs with Ctrl-C ignored, and processes inherit that.
            command = ("env", "--default-signal=INT", *self.command)
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def finish(self):
        code = self.process.wait(SECONDS)
        assert code == 0, self.log.read_text()

    def rows(self):
        return len(list((self.out / "rows").glob("*.json")))

    def wait_for_rows(self, count):
        """Waits until so many rows are there; a gated run then holds what it has in hand."""
        deadline = time.monotonic() + SECONDS
        while self.rows() < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        assert self.rows() < CELLS

    def keep(self):
        rows = [path for path in (self.out / "rows").glob("*.json") if path.stem not in self.lost]
        images = [self.out / "images" / f"{row.stem}.png" for row in rows]
        self.kept.update({path: path.stat().st_mtime_ns for path in [*rows, *images] if path not in self.kept})

    def lose(self):
        """Loses a row and an image, of two chunks that are whole, as a failing disk would."""
        order = [cell.id for cell in plan_sweep(self.command[2]).plan.cells]
        whole = [cell for cell in order[:-1] if (self.out / "rows" / f"{cell}.json").is_file()]
        self.lost = [whole[0], whole[5]]
        (self.out / "rows" / f"{whole[0]}.json").unlink()
        (self.out / "images" / f"{whole[5]}.png").unlink()

    def worker(self):
        return json.loads((self.out / "environment.json").read_text())["devices"][0]["pid"]

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def table(self):
        rows = pq.read_table(self.out / "samples.parquet").to_pylist()
        return [{name: value for name, value in row.items() if name not in ("seconds", "device")} for row in rows]

    def programs(self):
        return json.loads((self.out / "programs.json").read_text())["workers"]


class Gated(Run):
    """One whose workers hold what they have in hand from some number of rows on, until the next is set."""

    def __init__(self, folder, name):
        super().__init__(folder, name, GATED)
        self.gate = folder / "gate.txt"
        self.environment |= {
            BEGUN: str(folder / "begun.jsonl"),
            GATE: str(self.gate),
            PLACE: str(self.out),
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        }

    def set_gate(self, rows):
        new = self.gate.with_suffix(".new")
        new.write_text(str(rows))
        new.replace(self.gate)

    def wait_for_more(self, rows):
        """Lets so many more rows through and waits for them."""
        count = self.rows() + rows
        self.set_gate(count)
        self.wait_for_rows(count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    model = write_tiny_model(folder / "model")
    (folder / "s.yaml").write_text(SPEC.format(model=model))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    run = Run(folder, "undisturbed")
    run.start()
    try:
        run.finish()
    finally:
        run.stop()
    return run


@pytest.fixture(scope="module")
def disturbed(folder, undisturbed):
    """Its worker is killed, then its driver, a row and an image are lost, Ctrl-C is pressed; then it may finish."""
    run = Gated(folder, "disturbed")
    try:
        run.set_gate(10)
        run.start()
        run.wait_for_rows(10)
        killed = run.worker()
        os.kill(killed, signal.SIGKILL)
        run.wait_for_more(16)
        run.process.kill()
        run.process.wait()
        run.lose()
        run.keep()
        run.start()
        run.wait_for_more(16)
        os.killpg(run.process.pid, signal.SIGINT)
        run.set_gate(CELLS)
        assert run.process.wait(SECONDS) == 130, run.log.read_text()
        run.keep()
        run.start()
        run.finish()
    finally:
        run.stop()
    return run


def test_a_run_that_was_killed_twice_has_the_rows_of_an_undisturbed_one(undisturbed, disturbed):
    rows = undisturbed.table()
    assert len({row["cell"] for row in rows}) == len(rows) == CELLS
    assert disturbed.table() == rows
    assert all(row["error"] is None for row in rows)
    layers = [pq.read_table(run.out / "entropy.parquet") for run in (undisturbed, disturbed)]
    assert layers[0] == layers[1]
    assert layers[0].num_rows > CELLS
    assert len({(undisturbed.out / row["image"]).read_bytes() for row in rows}) == CELLS
    for row in rows:
        assert (disturbed.out / row["image"]).read_bytes() == (undisturbed.out / row["image"]).read_bytes()
    log = disturbed.log.read_text()
    assert "trying again (2)" in log
    assert "Stopped with" in log


def test_what_was_whole_was_never_drawn_again(disturbed):
    assert len(disturbed.kept) >= 2 * (10 + 16 + 16 - 2)
    assert {path: path.stat().st_mtime_ns for path in disturbed.kept} == disturbed.kept


def test_every_program_is_made_ready_once_a_worker_and_read_from_the_cache_by_the_next(undisturbed, disturbed):
    (first,) = undisturbed.programs()
    assert first["expected"] == {"text": 1, "denoise": 4, "decode": 2}
    made = {name: count["compiled"] + count["cached"] for name, count in first["programs"].items()}
    assert made == first["expected"]
    assert all(count["compiled"] == first["expected"][name] for name, count in first["programs"].items())
    later = disturbed.programs()
    assert [worker["run"] for worker in later] == [1, 1, 2, 3]
    for worker in later:
        cached = {name: count["cached"] for name, count in worker["programs"].items()}
        assert cached == worker["expected"]
        assert not any(count["compiled"] for count in [*worker["programs"].values(), *worker["other"].values()])


def test_the_finished_run_given_again_starts_no_worker(undisturbed):
    log, events = undisturbed.log, undisturbed.out / "events.jsonl"
    told, before = events.read_bytes(), len(log.read_text())
    assert "starting workers" in log.read_text()
    undisturbed.start()
    undisturbed.finish()
    again = log.read_text()[before:]
    assert "drawing nothing" in again.splitlines()[-2]
    assert "starting workers" not in again
    assert events.read_bytes() == told
