"""Tells which environment Ray gives to the workers of several specs, on a node with devices that are not there."""

import json
import os
import sys

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "TPU_VISIBLE_CHIPS",
    "JAX_PLATFORMS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_FLAGS",
)


class Probe:
    """Takes a worker's place and looks for no device."""

    def __init__(self, *arguments):
        pass

    def hello(self, kind="", devices=0):
        import ray

        assigned = ray.get_runtime_context().get_assigned_resources()
        found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        return {"kind": kind, "count": devices, "env": found, "cpus": assigned.get("CPU", 0)}


def main(specs):
    """Prints the workers of each spec, and last what an actor gets that leaves its CPUs to Ray."""
    import ray

    from entscale_jax.sweep.cluster.ray_environment import prepare_local

    prepare_local()
    import probe

    from entscale_jax.sweep.cluster import ray_executor
    from entscale_jax.sweep.spec import SweepSpec

    # All are to be told of, however late they are.
    ray_executor.OTHERS_SECONDS = 400.0
    ray.init("local", num_cpus=2, num_gpus=2, resources={"TPU": 4}, include_dashboard=False, log_to_driver=False)
    found = []
    for changes in json.loads(specs):
        keys = {"name": "a", "models": ["m"], "sizes": ["8x8"], "methods": ["entropy"], "prompts": ["a"]}
        executor = ray_executor.RayExecutor(SweepSpec.model_validate({**keys, **changes}), {}, None, worker=probe.Probe)
        executor.start()
        found.append(executor.devices())
        executor.close()
    control = ray.remote(probe.Probe).options(num_gpus=1).remote()
    found.append([ray.get(control.hello.remote(), timeout=60)])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
