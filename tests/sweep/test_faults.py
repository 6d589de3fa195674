"""Each fault of a cluster, a device or an image on the fake executor, and what must not happen without it."""

import io
import json
import signal
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import sweep_fakes as fakes
from rich.console import Console
from sweep_fakes import FakeExecutor

from entscale_jax import cli
from entscale_jax.errors import UserError
from entscale_jax.sweep import plan_sweep, run_sweep
from entscale_jax.sweep.executor import Compile, Lost

CELLS = 3 * 2 * 5 * 2


def _rows(run):
    rows = pq.read_table(run / "samples.parquet").to_pylist()
    return {row["cell"]: {name: row[name] for name in row if name not in ("seconds", "device")} for row in rows}


def _bucket(task):
    return str(task.chunk.program.key.bucket)


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch):
    """Nothing here is about files that a machine loses, and waiting for the disk is half of a fake run."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Rows of the small sweep without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.yaml").write_text(fakes.SPEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entscale_jax.sweep.api.describe", lambda model, train_size=None: fakes.FakeInfo(str(model)))
        opening = fakes.opening(FakeExecutor())
        console = Console(file=io.StringIO())
        assert run_sweep(folder / "small.yaml", out=folder / "run", console=console, open_executor=opening) == 0
    return _rows(folder / "run")


@pytest.fixture
def cells(spec_file, fake_models):
    return plan_sweep(spec_file).plan.cells


def _with(poisons, fault):
    ids = {cell.id for cell in poisons}
    return lambda worker, task: fault if ids & {cell.id for cell in task.cells} else None


class Once:
    """A fault at the given calls (from 0) only."""

    def __init__(self, fault, *calls):
        self.fault, self.calls, self.seen = fault, calls, -1

    def __call__(self, worker, task):
        self.seen += 1
        return self.fault if self.seen in self.calls else None


@pytest.mark.parametrize(
    ("fault", "error"), [("die", "the worker died: killed"), ("ValueError: bad", "ValueError: bad")]
)
@pytest.mark.parametrize("count", [1, 2])
def test_of_a_chunk_with_a_poison_cell_the_others_are_drawn(
    sweep, tmp_path, cells, undisturbed, console, fault, error, count
):
    poisons = (cells[21], cells[46])[:count]
    executor = FakeExecutor(2, fault=_with(poisons, fault))
    assert sweep(executor) == 1
    rows = _rows(tmp_path / "run")
    assert {cell for cell, row in rows.items() if row["error"]} == {cell.id for cell in poisons}
    assert {row["error"] for row in rows.values() if row["error"]} == {error}
    bad = {cell.id for cell in poisons}
    assert {key: row for key, row in rows.items() if key not in bad} == {
        key: row for key, row in undisturbed.items() if key not in bad
    }
    # Twice whole, once as a half of two, twice alone.
    assert sum(executor.fault("", task) is not None for _, task in executor.log) == 5 * count
    assert "trying again as 2 + 2 cells" in console.file.getvalue()


def test_without_a_poison_cell_nothing_is_split(sweep, tmp_path, undisturbed):
    executor = FakeExecutor(2, fault=Once("die", 4))
    assert sweep(executor) == 0
    assert _rows(tmp_path / "run") == undisturbed
    assert all(len(task.wanted_cells) == sum(1 for _ in task.chunk.cells) for _, task in executor.log)


def test_a_program_that_kills_every_worker_is_given_up_before_all_of_it_was_tried(sweep, tmp_path, undisturbed):
    executor = FakeExecutor(fault=lambda worker, task: "die" if task.chunk.program.method.label == "entropy" else None)
    assert sweep(executor) == 1
    rows = _rows(tmp_path / "run")
    assert {row["method"] for row in rows.values() if row["error"]} == {"entropy"}
    assert {key: row for key, row in rows.items() if row["method"] == "original"} == {
        key: row for key, row in undisturbed.items() if row["method"] == "original"
    }
    deaths = Counter(_bucket(task) for _, task in executor.log if task.chunk.program.method.label == "entropy")
    # Of three chunks: the first ones twice whole, then parts until two cells alone have each died twice.
    assert all(count <= 12 for count in deaths.values())
    assert any("not tried" in row["error"] for row in rows.values() if row["error"])


@pytest.mark.parametrize("fits", [2, 1])
def test_out_of_memory_halves_the_batch_of_that_bucket_and_no_other(sweep, tmp_path, console, fits):
    def fault(worker, task):
        too_large = _bucket(task) == "96x64" and len(task.cells) > fits
        return "memory XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory" if too_large else None

    executor = FakeExecutor(fault=fault)
    assert sweep(executor) == 0
    batches = {bucket: [len(t.cells) for _, t in executor.log if _bucket(t) == bucket] for bucket in ("64x64", "96x64")}
    assert set(batches["64x64"]) == {4}
    expected = {2: [4] + [2] * 10, 1: [4, 2] + [1] * 20}[fits]
    assert batches["96x64"] == expected
    drawn = [cell.id for _, task in executor.log if fault("", task) is None for cell in task.wanted_cells]
    assert len(drawn) == len(set(drawn)) == CELLS
    assert "in batches of 2: 96x64 original: XlaRuntimeError: RESOURCE_EXHAUSTED" in console.file.getvalue()
    compiled = [call["batch"] for call in executor.drawers["w0"]._pipes["fake"].compiled if call["width"] == 96]
    assert compiled == [fits] * 2
    buckets = json.loads((tmp_path / "run" / "programs.json").read_text())["buckets"]
    assert {entry["batch"] for entry in buckets if entry["width"] == 96} == {fits}


def _too_large(most):
    """A fault where more than so many images of 96x64 are drawn at once."""
    word = "memory XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    return lambda worker, task: word if _bucket(task) == "96x64" and len(task.cells) > most else None


def _batches(executor):
    """The batches of 96x64 that were tried."""
    return [len(task.cells) for _, task in executor.log if _bucket(task) == "96x64"]


@pytest.mark.parametrize(("kind", "forgotten"), [("fake", False), ("larger", False), ("fake", True)])
def test_a_run_that_goes_on_remembers_a_halved_batch_on_that_kind_of_device(sweep, tmp_path, kind, forgotten):
    assert sweep(FakeExecutor(fault=_too_large(2)), tmp_path / "whole") == 0
    stops = FakeExecutor(fault=lambda worker, task: "fatal stop" if len(stops.log) == 12 else _too_large(2)("", task))
    with pytest.raises(UserError, match="stop"):
        sweep(stops)
    assert _batches(stops)[:2] == [4, 2]
    file = tmp_path / "run" / "programs.json"
    ledger = json.loads(file.read_text())
    entry = {"model": "fake", "width": 96, "height": 64, "device": "1 x fake", "batch": 2}
    assert ledger["batches"] == [entry]
    if forgotten:
        file.write_text(json.dumps({**ledger, "batches": []}))
    # A chunk that a driver left half-stored: the cell that is missing comes to its place.
    lost = sorted((tmp_path / "run" / "rows").glob("*.json"))[::3]
    for path in lost:
        path.unlink()
    rest = FakeExecutor(fault=_too_large(4 if kind == "larger" else 2), kinds=[kind])
    assert sweep(rest) == 0
    assert (4 in _batches(rest)) == (kind == "larger" or forgotten)
    assert len(rest.log) < 18 + 10
    same = _rows(tmp_path / "run") == _rows(tmp_path / "whole")
    assert same == (kind != "larger")


def test_at_a_batch_of_one_the_cell_has_failed_with_that_word(sweep, tmp_path, undisturbed):
    word = "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    executor = FakeExecutor(fault=lambda worker, task: f"memory {word}" if _bucket(task) == "96x64" else None)
    assert sweep(executor) == 1
    rows = _rows(tmp_path / "run")
    failed = {row["width"]: row["error"] for row in rows.values() if row["error"]}
    assert failed.keys() == {96}
    assert failed[96] == word or failed[96].startswith("not tried")
    assert sum(row["error"] is None for row in rows.values()) == 40


def test_an_error_that_is_not_of_memory_halves_no_batch(sweep):
    executor = FakeExecutor(fault=Once("RuntimeError: no", 0))
    assert sweep(executor) == 0
    assert {len(task.cells) for _, task in executor.log} == {4}


@pytest.mark.parametrize(("fault", "whole"), [("node", True), ("die", False)])
def test_a_lost_node_is_not_the_fault_of_its_chunk_and_a_killed_worker_may_be(
    sweep, tmp_path, undisturbed, fault, whole
):
    executor = FakeExecutor(
        fault=lambda worker, task: fault if worker.count("+") < 2 and task.chunk.index == 0 else None
    )
    assert sweep(executor) == 0
    assert _rows(tmp_path / "run") == undisturbed
    parts = [len(task.wanted_cells) for _, task in executor.log if task.chunk.index == 0]
    assert parts == ([4, 4, 4] if whole else [4, 4, 2, 2])


def test_while_a_preempted_worker_is_away_the_others_draw(sweep, tmp_path, undisturbed):
    executor = FakeExecutor(2, fault=Once("node", 2), late=9)
    assert sweep(executor) == 0
    assert _rows(tmp_path / "run") == undisturbed
    workers = [worker for worker, _ in executor.log]
    assert "w0+" in workers[8:]
    assert "w0+" not in workers[:8]


def test_where_no_worker_comes_back_the_run_ends_and_keeps_what_it_has(sweep, tmp_path, undisturbed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("entscale_jax.sweep.runner.GONE_SECONDS", 0.02)
        with pytest.raises(UserError, match=r"none came back within 0 s; the last one died of: killed\. What is"):
            sweep(FakeExecutor(fault=Once("node", 3), late=10**9))
    rest = FakeExecutor(fault=Once("node", 3), late=2)
    assert sweep(rest) == 0
    assert len(rest.log) == 18 - 3 + 1
    assert _rows(tmp_path / "run") == undisturbed


def test_nodes_without_a_device_do_not_end_a_run_that_draws_on_another(sweep, tmp_path, undisturbed):
    class Barren(FakeExecutor):
        """Nodes come by the dozen on which no worker lives, while the only one that does draws its first chunk."""

        barren = 0

        def wait(self, seconds):
            if self.barren < 40:
                self.barren += 1
                return [Lost(f"late-{self.barren}", None, "Ray offers a GPU and JAX finds only cpu")]
            return super().wait(seconds)

        def replace(self, worker):
            return worker + "+" if worker.startswith("late") else super().replace(worker)

    assert sweep(Barren()) == 0
    assert _rows(tmp_path / "run") == undisturbed


def test_a_full_object_store_is_waited_for(sweep, tmp_path, undisturbed, monkeypatch, console):
    monkeypatch.setattr("entscale_jax.sweep.runner.PAUSE_SECONDS", 0.001)
    full = "passing ObjectStoreFullError: no room"
    executor = FakeExecutor(fault=Once(full, *range(12)))
    assert sweep(executor) == 0
    assert _rows(tmp_path / "run") == undisturbed
    assert "trying again (3): 96x64 original: ObjectStoreFullError: no room" in console.file.getvalue()


def test_an_error_that_does_not_pass_is_not_waited_for(sweep, tmp_path, cells):
    executor = FakeExecutor(fault=_with(cells[:1], "RuntimeError: no room"))
    assert sweep(executor) == 1
    assert sum(cells[0].id in {cell.id for cell in task.cells} for _, task in executor.log) == 5


class HalfBroken(fakes.FakePipe):
    """Draws pictures of one caption with a NaN in the latents, or with some that arose in the decoder."""

    def __init__(self, where, caption="a green triangle"):
        super().__init__()
        self.where, self.caption = where, caption

    def __call__(self, prompts, **keywords):
        output = super().__call__(prompts, **keywords)
        hit = [prompt == self.caption for prompt in prompts]
        if self.where == "latents":
            output.latents[hit, 1, 1, 3] = np.nan
        else:
            output.broken[hit] = 7
        return output


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("latents", "1 of 16 values of the latents are NaN or infinite"),
        ("decoder", "7 values of the decoded image are NaN or infinite, and none of its latents"),
    ],
)
def test_an_image_with_nan_fails_alone(sweep, tmp_path, undisturbed, where, error):
    assert sweep(FakeExecutor(load=lambda cell: HalfBroken(where))) == 1
    rows = _rows(tmp_path / "run")
    broken = {key for key, row in rows.items() if row["prompt"] == "a green triangle"}
    assert {rows[key]["error"].split(" (")[0] for key in broken} == {f"ArithmeticError: {error}"}
    assert {key: row for key, row in rows.items() if key not in broken} == {
        key: row for key, row in undisturbed.items() if key not in broken
    }


def test_finite_images_fail_nothing(sweep, tmp_path, undisturbed):
    assert sweep(FakeExecutor(load=lambda cell: HalfBroken("latents", caption="of no cell"))) == 0
    assert _rows(tmp_path / "run") == undisturbed


class Pressed(FakeExecutor):
    """Ctrl-C is pressed so often before the fourth wait."""

    def __init__(self, times):
        super().__init__(2)
        self.times, self.waits = times, 0

    def wait(self, seconds):
        self.waits += 1
        if self.waits == 4:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super().wait(seconds)


@pytest.mark.parametrize(("times", "stored"), [(1, 5), (2, 3)])
def test_ctrl_c_once_finishes_what_is_in_hand_and_twice_stops_now(sweep, tmp_path, undisturbed, console, times, stored):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    executor = Pressed(times)
    assert sweep(executor) == 130
    assert executor.closed == 1
    run = tmp_path / "run"
    whole = {cell.id for _, task in executor.log[:stored] for cell in task.wanted_cells}
    assert {path.stem for path in (run / "rows").glob("*.json")} == whole
    printed = console.file.getvalue()
    assert ("finishing the 1 calls in hand; Ctrl-C again stops at once" in printed) == (times == 1)
    assert f"Stopped with {len(whole)} of 60 cells finished. This goes on from there:\n  entscale sweep" in printed
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert len(rest.log) == 18 - stored
    assert _rows(run) == undisturbed


def test_without_ctrl_c_nothing_stops(sweep):
    assert sweep(Pressed(0)) == 0


def test_ctrl_c_while_workers_start_stops_at_once(sweep, console):
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Starting(FakeExecutor):
        def start(self):
            signal.raise_signal(signal.SIGINT)
            return super().start()

    executor = Starting()
    assert sweep(executor) == 130
    assert (executor.log, executor.started) == ([], 0)
    assert "Stopped with 0 of 60 cells finished" in console.file.getvalue()


@pytest.mark.parametrize(("most", "failed"), [(1, 1), (2, 2), (3, 3), (None, 5)])
def test_so_many_failures_stop_the_run(sweep, tmp_path, undisturbed, console, cells, most, failed):
    poisons = [cell for cell in cells if (cell.width, cell.seed, cell.method.label) == (96, 7, "original")]
    executor = FakeExecutor(fault=_with(poisons, "ValueError: bad"))
    assert sweep(executor, max_failures=most) == 1
    run = tmp_path / "run"
    rows = [json.loads(path.read_text()) for path in (run / "rows").glob("*.json")]
    assert sum(row["error"] is not None for row in rows) == failed
    assert ("too many cells failed: finishing the" in console.file.getvalue()) == (most is not None)
    assert (len(rows) == CELLS) == (most is None)
    assert sweep(FakeExecutor()) == 1
    assert sweep(FakeExecutor(), retry_failed=True) == 0
    assert _rows(run) == undisturbed


def test_a_number_of_failures_below_one_is_refused(sweep):
    with pytest.raises(UserError, match="max_failures is 0: give a whole number from 1"):
        sweep(FakeExecutor(), max_failures=0)


class Made:
    """Counts what the pipeline of the same worker makes ready: text once, the others at each new shape."""

    last: "Made"

    def __init__(self):
        self.new, self.shapes = [], set()
        Made.last = self

    def take(self):
        taken, self.new = self.new, []
        return taken, 1.0 * len(taken)


class CountedPipe(fakes.FakePipe):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def compile(self, *, batch, height, width, rule, **keywords):
        super().compile(batch=batch, height=height, width=width, rule=rule, **keywords)
        shape = batch, height, width
        kinds = {("encode_text",), ("decode_latents", shape), ("denoise_latents", shape, rule.label)}
        self.made.new += [Compile(kind[0], False, 1.0) for kind in kinds - self.made.shapes]
        self.made.shapes |= kinds


@pytest.mark.parametrize(
    ("workers", "fault"), [(1, None), (4, None), (7, None), (2, "die"), (3, "memory RESOURCE_EXHAUSTED")]
)
def test_programs_are_made_once_a_worker_and_again_only_where_a_takeover_explains_it(sweep, tmp_path, workers, fault):
    executor = FakeExecutor(
        workers, fault=Once(fault, 3), load=lambda cell: CountedPipe(Made.last), counter=lambda: Made()
    )
    assert sweep(executor) == 0
    entries = json.loads((tmp_path / "run" / "programs.json").read_text())["workers"]
    for entry in entries:
        made = {kind: count["compiled"] + count["cached"] for kind, count in entry["programs"].items()}
        # What failed for want of memory was called for before anything was made.
        assert all(made[kind] <= entry["expected"][kind] for kind in made)
        assert made == entry["expected"] or (fault or "").startswith("memory")
    takeovers = sum(len(entry["takeovers"]) for entry in entries)
    again = sum(entry["again"]["denoise"] for entry in entries)
    if fault is None:
        assert sum(entry["programs"]["denoise"]["compiled"] for entry in entries) == 6 + again
    # Six programs are shared out before a seventh worker makes one of them again; decoders are made by each worker.
    assert (again > 0) == (workers > 6 or fault == "die")
    assert again <= 2 * takeovers
    assert any(entry["again"]["decode"] for entry in entries) == (takeovers > 0) == (workers > 3 or fault == "die")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"max_failures": None, "retry_failed": False, "resume": True}),
        (["--fail-fast"], {"max_failures": 1}),
        (["--max-failures", "3", "--retry-failed"], {"max_failures": 3, "retry_failed": True}),
        (["--fail-fast", "--max-failures", "3"], {"max_failures": 1}),
        (["--no-resume"], {"resume": False}),
    ],
)
@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_command_hands_on_its_options_and_the_exit_code(monkeypatch, arguments, expected, code):
    asked = {}

    def run_sweep(file, **keywords):
        asked.update(keywords)
        return code

    monkeypatch.setattr("entscale_jax.sweep.run_sweep", run_sweep)
    monkeypatch.setattr("sys.argv", ["entscale", "sweep", "s.yaml", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert expected.items() <= asked.items()


@pytest.mark.parametrize("arguments", [["nowhere.yaml"], ["nowhere.yaml", "--max-failures", "0"]])
def test_bad_input_is_exit_code_2_and_one_line(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["entscale", "sweep", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
