"""Sweeps on a real cluster of this machine, whose workers misbehave by the cell and whose nodes go.

Run as `trouble.py FOLDER`, in a process of its own. Leaves each run in FOLDER/NAME, and in FOLDER/trouble.json what
came of it: the exit code, what workers began, and what the executor told of workers and tasks.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sweep_fakes as fakes

FOLDER = "TROUBLE_FOLDER"
"""The variable with the folder that workers write to."""
STORE = 80 * 2**20
"""Bytes of each node's object store; Ray asks for 75 MiB at least."""
SYSTEM = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 6,
    # Nothing is moved out of an object store, and as any disk counts as full, nothing is put beside it.
    "automatic_object_spilling_enabled": False,
    "local_fs_capacity_threshold": 0.0,
}
SPEC = """\
sweep:
  name: trouble
  model: fake
  sizes: {sizes}
  methods: [original]
  prompts: [a red circle, a blue square, a green triangle, a yellow square]
  sampler: {{name: ddim, steps: 3, guidance: 5.0}}
  batch: {batch}
  workers: 1
  device: {{kind: {kind}}}
"""
SMALL = {"sizes": "[64x64, 96x64]", "batch": 2, "kind": "cpu"}
LARGE = {"sizes": "[1600x1200]", "batch": 4, "kind": "cpu"}
"""Four of these images, noise that can't be compressed, are more than is left of a store that is filled."""
ON_TPU = {"sizes": "[64x64]", "batch": 4, "kind": "tpu"}
POISON = "a green triangle"


class Faultless:
    """Draws what `FakePipe` does, and tells what it begins."""

    pipe = fakes.FakePipe

    def __init__(self, metrics, *arguments):
        from entscale_jax.sweep.drawer import Drawer

        self.drawer = Drawer(metrics, lambda cell: self.pipe(), fakes.FakeCounter(), "fake")

    def hello(self, kind, devices=1):
        return {"pid": os.getpid(), "kind": "fake", "platform": kind}

    def draw(self, task):
        self.tell(task)
        return self.drawer.draw(task)

    def tell(self, task):
        import ray

        node = ray.get_runtime_context().get_node_id()
        entry = {"node": node, "size": task.chunk.width, "prompts": [cell.prompt for cell in task.wanted_cells]}
        with open(Path(os.environ[FOLDER]) / f"{type(self).__name__}.jsonl", "a") as file:
            file.write(json.dumps({**entry, "batch": len(task.cells)}) + "\n")


class HungryPipe(fakes.FakePipe):
    """Asks JAX for more memory than there is where it is to draw two images of the wider size."""

    def __call__(self, prompts, **keywords):
        import jax.numpy as jnp

        if keywords["width"] == 96 and len(prompts) > 1:
            jnp.zeros((2**46,), jnp.int8).block_until_ready()
        return super().__call__(prompts, **keywords)


class Troubled(Faultless):
    """Is killed by one cell, and has too little memory for two of another size."""

    pipe = HungryPipe

    def draw(self, task):
        if any(cell.prompt == POISON and cell.width == 64 for cell in task.wanted_cells):
            self.tell(task)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(task)


class Crowded(Faultless):
    """Shares its node's object store with objects that fill it until the third try."""

    tries = 0

    def draw(self, task):
        import numpy as np
        import ray

        self.tries += 1
        if self.tries == 1:
            self.held = [ray.put(np.zeros(5 * 2**20, np.uint8)) for _ in range(15)]
        elif self.tries == 3:
            self.held.clear()
        return super().draw(task)


class Unremedied(Crowded):
    """The same, for a run that does not know that this passes."""


class Preempted(Faultless):
    """Holds its chunk until the nodes that are to go are gone."""

    def draw(self, task):
        result = super().draw(task)
        while not (Path(os.environ[FOLDER]) / "gone").exists():
            time.sleep(0.05)
        return result


class Trouble:
    """The cluster, and what was heard."""

    def __init__(self, folder):
        self.folder, self.heard, self.steps = folder, [], iter(())
        # Sockets have short paths.
        self.temporary = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="trouble")
        os.environ[FOLDER] = str(folder)
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE, "_system_config": SYSTEM}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, log_to_driver=False)

    def play(self, name, worker, keys):
        """One sweep, and what came of it."""
        from rich.console import Console

        from entscale_jax.sweep.api import _with_ray, run_sweep

        spec, self.heard[:] = self.folder / f"{name}.yaml", []
        spec.write_text(SPEC.format(**keys))
        start, opening = time.monotonic(), _with_ray(self.cluster.address, worker=worker)
        code = run_sweep(spec, out=self.folder / name, console=Console(file=io.StringIO()), open_executor=opening)
        seconds = time.monotonic() - start
        return {"code": code, "begun": self.begun(worker), "heard": list(self.heard), "seconds": seconds}

    def begun(self, worker):
        path = self.folder / f"{worker.__name__}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def losing_nodes(self, worker):
        """Lends a node with a TPU chip, preempts it while it draws; lends another, which dies; lends a third.

        A step for each time that the driver looks, in its own thread, where alone Ray adds nodes.
        """
        for number, dies in enumerate((self.preempt, self.kill)):
            node = self.lend()
            while len(self.begun(worker)) <= number:
                yield
            dies(node)
        self.lend()
        (self.folder / "gone").touch()

    def lend(self):
        return self.cluster.add_node(num_cpus=0, resources={"TPU": 1}, object_store_memory=STORE)

    def preempt(self, node):
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.cluster.address]
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud wants it back"]
        which = ["--node-id", node.node_id, "--deadline-remaining-seconds", "1"]
        subprocess.run([*command, *why, *which], check=True, capture_output=True)
        self.kill(node)

    def kill(self, node):
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self):
        import ray

        ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(self.temporary, ignore_errors=True)


def listen(trouble):
    """Notes what the executor tells of workers that are lost and of tasks that fail, and takes a step at each wait."""
    from entscale_jax.sweep.cluster.ray_executor import RayExecutor
    from entscale_jax.sweep.executor import Failed, Lost

    event, wait, heard = RayExecutor._event, RayExecutor.wait, trouble.heard

    def noted(self, ref):
        told = event(self, ref)
        if isinstance(told, Lost):
            heard.append({"lost": told.reason, "node": told.node})
        if isinstance(told, Failed):
            failure = told.failure
            heard.append({"failed": failure.error, "memory": failure.memory, "passing": failure.passing})
        return told

    def stepping(self, seconds):
        next(trouble.steps, None)
        return wait(self, seconds)

    RayExecutor._event, RayExecutor.wait = noted, stepping


def main(folder):
    from entscale_jax.sweep import api, runner
    from entscale_jax.sweep.cluster import ray_executor

    api.describe = lambda model, train_size=None: fakes.FakeInfo(str(model))
    runner.PAUSE_SECONDS = 0.2
    found, trouble = {}, Trouble(Path(folder))
    listen(trouble)
    try:
        found["faultless"] = trouble.play("faultless", Faultless, SMALL)
        found["troubled"] = trouble.play("troubled", Troubled, SMALL)
        found["crowded"] = trouble.play("crowded", Crowded, LARGE)
        passing, ray_executor._PASSING = ray_executor._PASSING, ()
        found["unremedied"] = trouble.play("unremedied", Unremedied, LARGE)
        ray_executor._PASSING = passing
        trouble.steps = trouble.losing_nodes(Preempted)
        next(trouble.steps)
        found["preempted"] = trouble.play("preempted", Preempted, ON_TPU)
    finally:
        trouble.close()
    (Path(folder) / "trouble.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    # Workers find these classes by the module's name.
    import trouble

    trouble.main(sys.argv[1])
