"""A storm over a sweep: kills its workers, nodes and drivers on a three-node cluster of this machine, by a fixed seed.

Run as `storm.py FOLDER JOB`, in a process of its own: `JOB` is JSON with the spec's path, the number of cells, the
kills of each kind, the seed, and the run's URI where it has one. Leaves the run there or in FOLDER/run, what workers
began in FOLDER/begun.jsonl, and the kills in FOLDER/kills.json.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from entscale_jax.sweep.cell_writer import row_name
from entscale_jax.sweep.storage.places import open_files
from entscale_jax.sweep.worker import Worker

BEGUN = "STORM_BEGUN"
"""The variable with the file to which workers write what they begin."""
GATE = "STORM_GATE"
"""The variable with the file that says at how many rows the next kill is due."""
PLACE = "STORM_PLACE"
"""The variable with the run's folder or URI."""
IN_HAND_SECONDS = 0.3
"""How long a worker holds a chunk before it draws it, so that kills find it in hand."""
HELD_SECONDS = 30
"""How long it holds one at most while a kill is due, so that no run is over before its kills, however slow they are."""
LIMIT_SECONDS = 900
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
"""A node that is killed is missed after three seconds."""


class StormWorker(Worker):
    """Tells what it begins before it draws."""

    def draw(self, task):
        import ray

        node = ray.get_runtime_context().get_node_id()
        entry = {"pid": os.getpid(), "node": node, "time": time.time(), "cells": [c.id for c in task.wanted_cells]}
        with open(os.environ[BEGUN], "a") as file:
            file.write(json.dumps(entry) + "\n")
        time.sleep(IN_HAND_SECONDS)
        files, deadline = open_files(os.environ[PLACE]), time.monotonic() + HELD_SECONDS
        while len(files.list("rows")) >= int(Path(os.environ[GATE]).read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().draw(task)


def drive(spec, out, address):
    """The driver's process: the sweep as the command runs it, with workers that tell."""
    from entscale_jax.sweep.api import _with_ray, run_sweep

    return run_sweep(spec, out=out, open_executor=_with_ray(address, worker=StormWorker))


class Storm:
    """The cluster, the driver that is now, and what was killed."""

    def __init__(self, folder, spec, cells, kills, seed, place=None):
        self.folder, self.spec = folder, spec
        self.files = open_files(place or folder / "run")
        self.rng = random.Random(seed)
        kinds = [kind for kind, count in kills.items() for _ in range(count)]
        self.rng.shuffle(kinds)
        places = sorted(self.rng.sample(range(1, int(0.8 * cells)), len(kinds)))
        self.schedule = list(zip(places, kinds, strict=True))
        self.kills = []
        self.killed = set()
        # Sockets have short paths.
        self.temporary = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="storm")
        os.environ[BEGUN], os.environ[PLACE] = str(folder / "begun.jsonl"), self.files.place
        self.gate = folder / "gate.txt"
        os.environ[GATE] = str(self.gate)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self.cluster.add_node(num_cpus=1)
        self.driver = None

    def start_driver(self):
        with open(self.folder / "log.txt", "a") as log:
            command = [sys.executable, __file__, "drive", str(self.spec), self.files.place, self.cluster.address]
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def rage(self):
        """Kills by the schedule, then lets the run finish; returns the last driver's exit code."""
        self.set_gate(self.schedule[0][0])
        self.start_driver()
        following = [place for place, _ in self.schedule[1:]] + [sys.maxsize]
        for (place, kind), then in zip(self.schedule, following, strict=True):
            self.wait(lambda place=place: self.rows() >= place)
            getattr(self, f"kill_{kind}")()
            self.set_gate(then)
        return self.driver.wait(LIMIT_SECONDS)

    def set_gate(self, rows):
        new = self.gate.with_suffix(".new")
        new.write_text(str(rows))
        new.replace(self.gate)

    def wait(self, until):
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (found := until()):
            if self.driver.poll() is not None:
                begun = read_lines(self.folder / "begun.jsonl")
                late = f"before {self.schedule} was done, after {self.kills}"
                raise RuntimeError(f"the run was over after {self.rows()} cells, {late}: {begun}")
            if time.monotonic() > deadline:
                raise RuntimeError("the run hangs")
            time.sleep(0.1 if self.files.remote else 0.01)
        return found

    def rows(self):
        return len(self.files.list("rows"))

    def busy(self):
        """The last thing that each living worker began and has no row of yet."""
        last = {entry["pid"]: entry for entry in read_lines(self.folder / "begun.jsonl")}
        return [
            entry
            for entry in last.values()
            if entry["pid"] not in self.killed
            and Path(f"/proc/{entry['pid']}").exists()
            and self.files.read(row_name(entry["cells"][-1])) is None
        ]

    def note(self, kind, pids):
        self.killed |= set(pids)
        self.kills.append({"kind": kind, "time": time.time(), "pids": sorted(pids), "rows": self.rows()})

    def kill_worker(self):
        victim = self.rng.choice(sorted(self.wait(self.busy), key=lambda entry: entry["time"]))["pid"]
        os.kill(victim, signal.SIGKILL)
        self.note("worker", [victim])

    def kill_node(self):
        others = {node.node_id: node for node in self.cluster.worker_nodes}
        on_them = self.wait(lambda: [entry for entry in self.busy() if entry["node"] in others])
        name = self.rng.choice(sorted(on_them, key=lambda entry: entry["time"]))["node"]
        self.cluster.remove_node(others[name], allow_graceful=False)
        self.note("node", self.pids(name))
        self.cluster.add_node(num_cpus=1)

    def kill_driver(self):
        self.wait(self.busy)
        self.driver.kill()
        self.driver.wait()
        self.note("driver", self.pids())
        self.start_driver()

    def pids(self, node=None):
        begun = read_lines(self.folder / "begun.jsonl")
        return {entry["pid"] for entry in begun if node in (None, entry["node"])} - self.killed

    def close(self):
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self.cluster.shutdown()
        shutil.rmtree(self.temporary, ignore_errors=True)


def read_lines(path):
    """Values of a file of JSON lines, without a last one that is not whole yet."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def main(folder, job):
    folder = Path(folder)
    storm = Storm(folder, **json.loads(job))
    try:
        code = storm.rage()
    finally:
        storm.close()
        (folder / "kills.json").write_text(json.dumps(storm.kills))
    return code


if __name__ == "__main__":
    import storm

    sys.exit(storm.drive(*sys.argv[2:]) if sys.argv[1] == "drive" else storm.main(*sys.argv[1:]))
