"""A sweep whose workers, nodes and drivers are killed at random comes home complete, and nothing is drawn in vain."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sweep_fakes as fakes
from rich.console import Console
from storm import read_lines
from tiny_model import write_tiny_model

from entscale_jax.sweep import plan_sweep, run_sweep
from entscale_jax.sweep.drawer import load_pipeline
from entscale_jax.sweep.fetch import fetch_run

HERE = Path(__file__).parent
SPEC = """\
sweep:
  name: storm
  model: {model}
  sizes: [32x32, 40x24]
  methods: [entropy]
  prompts: {{scenes: {prompts}}}
  seeds: {seeds}
  sampler: {{name: ddim, steps: 4, guidance: 5.0}}
  batch: 4
"""
CAPTIONS = {40: 4, 500: 10}
SHORT = {"cells": 40, "kills": {"worker": 2, "node": 1, "driver": 2}, "seed": 8}
FILTERS = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
"""Of botocore and of moto's own server."""
FULL = {"cells": 500, "kills": {"worker": 7, "node": 3, "driver": 2}, "seed": 2}


def _rows(run):
    rows = pq.read_table(run / "samples.parquet").to_pylist()
    return [{name: row[name] for name in row if name not in ("seconds", "device")} for row in rows]


def _draw_undisturbed(folder, spec, model):
    """The same cells by the same code in this process, one after the other, without Ray."""
    executor = fakes.FakeExecutor(load=load_pipeline({str(model): str(model)}))
    with open(folder / "undisturbed.txt", "w") as log:
        code = run_sweep(
            spec, out=folder / "undisturbed", console=Console(file=log), open_executor=fakes.opening(executor)
        )
    assert code == 0


def _rage(folder, spec, job):
    keep = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = keep | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }
    command = [sys.executable, str(HERE / "storm.py"), str(folder), json.dumps({"spec": str(spec), **job})]
    with open(folder / "storm.txt", "w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=1500).returncode
    log = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
    assert code == 0, (folder / "storm.txt").read_text() + log


def _unexplained(begun, kills):
    """Cells that were drawn again though nobody who had them in hand was killed.

    In hand of a process is what it began last. A kill explains that what each process that it ended had in hand is
    drawn once more.
    """
    last = {entry["pid"]: number for number, entry in enumerate(begun)}
    ended = {pid for kill in kills for pid in kill["pids"]}
    excused = {last[pid] for pid in ended}
    draws = Counter(cell for entry in begun for cell in entry["cells"])
    allowed = Counter(cell for number in excused for cell in begun[number]["cells"])
    return {cell: count for cell, count in draws.items() if count > 1 + allowed[cell]}


def _check(folder, job, place=None):
    model = write_tiny_model(folder / "model")
    spec, captions = folder / "s.yaml", CAPTIONS[job["cells"]]
    spec.write_text(SPEC.format(model=model, prompts=captions, seeds=list(range(job["cells"] // 2 // captions))))
    _draw_undisturbed(folder, spec, model)
    _rage(folder, spec, {**job, "place": place})
    if place is not None:
        fetch_run(place, folder / "run")
    rows, expected = _rows(folder / "run"), _rows(folder / "undisturbed")
    assert len({row["sha256"] for row in expected}) == len(expected) == job["cells"]
    assert rows == expected
    assert all(row["error"] is None for row in rows)
    assert _count_rows(folder / "run") == job["cells"]
    for row in rows:
        assert hashlib.sha256((folder / "run" / row["image"]).read_bytes()).hexdigest() == row["sha256"]
    kills, begun = (json.loads((folder / "kills.json").read_text()), read_lines(folder / "begun.jsonl"))
    assert Counter(kill["kind"] for kill in kills) == job["kills"]
    assert all(kill["pids"] and kill["rows"] < job["cells"] for kill in kills)
    assert _unexplained(begun, kills) == {}
    # The control: without its kills the same record has cells that nothing explains.
    assert _unexplained(begun, [])
    if place is None:  # in a bucket the ledger of a driver that is killed is behind by seconds
        _check_programs(folder, begun, kills)


def _count_rows(run):
    parts = [pq.read_table(path).num_rows for path in (run / "samples").glob("part-*.parquet")]
    return sum(parts) + len(list((run / "rows").glob("*.json")))


def _check_programs(folder, begun, kills):
    bucket_of = {cell.id: (cell.width, cell.height) for cell in plan_sweep(folder / "s.yaml").plan.cells}
    workers = json.loads((folder / "run" / "programs.json").read_text())["workers"]
    killed = {pid for kill in kills for pid in kill["pids"]}
    assert _miscounted(workers, begun, killed, bucket_of) == []
    # The control: one compile more or less, of whichever worker and kind, is noticed, and so is a takeover too few.
    for number, kind, change in product(range(len(workers)), ("text", "denoise", "decode"), (1, -1)):
        wrong = copy.deepcopy(workers)
        wrong[number]["programs"][kind]["compiled"] += change
        assert _miscounted(wrong, begun, killed, bucket_of)
    without = [{**worker, "takeovers": []} for worker in workers]
    again = any(worker["again"]["denoise"] for worker in workers)
    assert bool(_miscounted(without, begun, killed, bucket_of)) == again


def _miscounted(workers, begun, killed, bucket_of):
    """What is wrong with the counts of programs, held to what worker processes wrote themselves when they began.

    A worker makes the text program, and a denoising and a decoding one for each bucket that it draws. In a run each is
    made once, and once more for each takeover at most.
    """
    wrong = []
    for run in {worker["run"] for worker in workers}:
        of_run, together, made_in_all = [worker for worker in workers if worker["run"] == run], set(), Counter()
        for worker in of_run:
            made = {kind: count["compiled"] + count["cached"] for kind, count in worker["programs"].items()}
            pid = worker["device"]["pid"]
            buckets = [bucket_of[entry["cells"][0]] for entry in begun if entry["pid"] == pid]
            # Of what it had in hand when it was killed nobody heard.
            heard = [buckets, buckets[:-1]] if pid in killed else [buckets]
            drawn = [set(some) for some in heard if made == _programs(set(some)) == worker["expected"]]
            if not drawn:
                wrong.append(f"run {run} {worker['worker']}: made {made} for {buckets}")
                continue
            together |= drawn[0]
            made_in_all.update(made)
        again = Counter()
        for worker in of_run:
            again.update(worker["again"])
        if made_in_all != Counter(_programs(together)) + again:
            wrong.append(f"run {run}: made {made_in_all} for {together}, of which {again} again")
        if again["denoise"] > sum(len(worker["takeovers"]) for worker in of_run):
            wrong.append(f"run {run}: more made again than takeovers explain")
    return wrong


def _programs(buckets):
    return {"text": 1, "denoise": len(buckets), "decode": len(buckets)}


def test_counts_of_programs_are_held_to_what_was_begun():
    bucket_of = {"a": 1, "b": 2}
    begun = [{"pid": 1, "cells": ["a"]}, {"pid": 2, "cells": ["b"]}, {"pid": 2, "cells": ["a"]}]

    def worker(pid, buckets, again, takeovers):
        made = {"text": 1, "denoise": buckets, "decode": buckets}
        counts = {kind: {"compiled": count, "cached": 0} for kind, count in made.items()}
        known = {"text": int(pid > 1), "denoise": again, "decode": again}
        more = {"takeovers": [{}] * takeovers, "expected": made, "again": known}
        return {"run": 1, "worker": f"w{pid}", "device": {"pid": pid}, "programs": counts, **more}

    assert _miscounted([worker(1, 1, 0, 0), worker(2, 2, 1, 1)], begun, set(), bucket_of) == []
    assert _miscounted([worker(1, 1, 0, 0), worker(2, 1, 0, 0)], begun, {2}, bucket_of) == []
    # Made without a takeover, made in vain, and not made at all.
    assert _miscounted([worker(1, 1, 0, 0), worker(2, 2, 1, 0)], begun, set(), bucket_of)
    assert _miscounted([worker(1, 2, 0, 0), worker(2, 2, 1, 1)], begun, set(), bucket_of)
    assert _miscounted([worker(1, 1, 0, 0), worker(2, 1, 0, 1)], begun, set(), bucket_of)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_short_storm_loses_nothing(tmp_path):
    _check(tmp_path, SHORT)


@pytest.mark.ray
@pytest.mark.timeout(600)
@FILTERS
def test_a_short_storm_over_a_bucket_loses_nothing(tmp_path, s3):
    _check(tmp_path, SHORT, f"{s3}/run")


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_storm_over_five_hundred_cells_loses_nothing(tmp_path):
    _check(tmp_path, FULL)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.timeout(1800)
@FILTERS
def test_a_storm_over_a_bucket_loses_nothing(tmp_path, s3):
    _check(tmp_path, FULL, f"{s3}/run")


def test_what_was_drawn_again_without_need_is_noticed():
    begun = [{"pid": 1, "cells": ["a", "b"]}, {"pid": 1, "cells": ["c"]}, {"pid": 2, "cells": ["c"]}]
    assert _unexplained(begun, [{"pids": [1]}]) == {}
    assert _unexplained(begun, []) == {"c": 2}
    assert _unexplained([*begun, {"pid": 2, "cells": ["a"]}], [{"pids": [1]}]) == {"a": 2}
