"""Faults of workers, devices, stores and nodes on a real cluster of this machine: what the fake executor only plays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trouble
from storm import read_lines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(650)]

HERE = Path(__file__).parent
DISK = "OutOfDiskError"
"""What Ray raises where an object store is full and what is in it can't be spilled."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What came of each run, with the errors and images of its cells by size and caption."""
    folder = tmp_path_factory.mktemp("trouble")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "JAX_"))} | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }
    with open(folder / "log.txt", "w") as log:
        command = [sys.executable, str(HERE / "trouble.py"), str(folder)]
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=600).returncode
    assert code == 0, (folder / "log.txt").read_text()
    found = json.loads((folder / "trouble.json").read_text())
    for name, run in found.items():
        rows = pq.read_table(folder / name / "samples.parquet").to_pylist()
        run["errors"] = {(row["width"], row["prompt"]): row["error"] for row in rows}
        run["images"] = {(row["width"], row["prompt"]): row["sha256"] for row in rows}
        run["told"] = [event["event"] for event in read_lines(folder / name / "events.jsonl")]
    return found


def _drawn(run, width):
    return {key: image for key, image in run["images"].items() if key[0] == width and image is not None}


def test_without_a_fault_each_cell_is_begun_once(runs):
    run = runs["faultless"]
    assert (run["code"], run["heard"]) == (0, [])
    assert [entry["batch"] for entry in run["begun"]] == [2] * 4
    assert set(run["errors"].values()) == {None}


def test_of_a_chunk_with_a_cell_that_kills_its_worker_the_others_are_drawn_with_the_same_bits(runs):
    run, poison = runs["troubled"], (64, trouble.POISON)
    assert run["code"] == 1
    assert {key for key, error in run["errors"].items() if error} == {poison}
    assert run["errors"][poison].startswith("the worker died: ")
    expected = _drawn(runs["faultless"], 64)
    assert len(expected) == 4
    del expected[poison]
    assert _drawn(run, 64) == expected
    killed = [len(entry["prompts"]) for entry in run["begun"] if entry["size"] == 64 and poison[1] in entry["prompts"]]
    # Under load a death may be told as an unreachable worker's, which is tried once more.
    unreachable = sum(loss.get("node", False) for loss in run["heard"])
    assert len(killed) == 4 + unreachable
    assert (killed[0], killed[-1]) == (2, 1)


def test_where_jax_has_too_little_memory_that_bucket_goes_on_in_halves(runs):
    run = runs["troubled"]
    (failure,) = [failure for failure in run["heard"] if "failed" in failure]
    assert failure["failed"].startswith("JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory")
    assert failure["memory"]
    assert [entry["batch"] for entry in run["begun"] if entry["size"] == 96] == [2, 1, 1, 1, 1]
    assert len(_drawn(run, 96)) == 4
    assert {entry["batch"] for entry in run["begun"] if entry["size"] == 64} == {2}


def test_an_object_store_that_is_full_is_waited_for(runs):
    run, control = runs["crowded"], runs["unremedied"]
    assert run["code"] == 0
    assert [failure["failed"].split(":")[0] for failure in run["heard"]] == [DISK] * 2
    assert run["told"].count("retry") == len(run["begun"]) - 1 == 2
    assert "divided" not in run["told"]
    assert len(set(_drawn(run, 1600).values())) == 4
    # Not waited for, the same is the fault of the chunk, which is split.
    assert control["heard"][0]["failed"].startswith(DISK)
    assert "divided" in control["told"]


def test_a_preempted_worker_and_one_whose_node_dies_are_no_fault_of_their_chunk(runs):
    run = runs["preempted"]
    assert run["code"] == 0
    lost = [loss for loss in run["heard"] if "lost" in loss]
    assert [loss["node"] for loss in lost] == [True, True]
    assert "preempted" in lost[0]["lost"]
    assert "preempted" not in lost[1]["lost"]
    assert len({entry["node"] for entry in run["begun"]}) == 3
    assert "divided" not in run["told"]
    assert [len(entry["prompts"]) for entry in run["begun"]] == [4, 4, 4]
    assert len(_drawn(run, 64)) == 4
    # A worker that dies alone is told apart: the chunk of one that was killed twice is split.
    assert not all(loss["node"] for loss in runs["troubled"]["heard"] if "lost" in loss)
    assert "divided" in runs["troubled"]["told"]
