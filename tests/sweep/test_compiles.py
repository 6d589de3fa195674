"""Counting by name is checked in processes of its own: listeners and the cache are the process's."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json
import jax, jax.numpy as jnp
from entscale_jax.compilation import enable_cache
from entscale_jax.sweep.compiles import CompileCounter

enable_cache(every_program=True)
counter = CompileCounter()

def denoise_latents(x):
    return jnp.sin(x) @ x

@jax.jit
def plain(x):
    return x + 1.0

x = jnp.asarray([[0.5, 1.0], [2.0, 3.0]])
counter.take()
rounds = []
program = jax.jit(denoise_latents).lower(x).compile()
program(x), program(x), plain(x), plain(x)
rounds.append(counter.take())
program(x), plain(x)
rounds.append(counter.take())
print(json.dumps([[[[c.name, c.cached, c.seconds] for c in made], seconds] for made, seconds in rounds]))
"""


def _run(folder):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=120, check=True
    )
    return json.loads(done.stdout)


def test_programs_are_counted_by_name_and_told_apart_from_the_cache(tmp_path):
    first, idle = _run(tmp_path)
    assert [(name, cached) for name, cached, _ in first[0]] == [("denoise_latents", False), ("plain", False)]
    assert first[1] >= sum(seconds for *_, seconds in first[0]) > 0
    assert idle == [[], 0.0]
    again, _ = _run(tmp_path)
    assert [(name, cached) for name, cached, _ in again[0]] == [("denoise_latents", True), ("plain", True)]
