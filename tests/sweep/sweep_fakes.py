"""Stand-ins for models, pipelines and workers, by which sweeps are run whole without Ray and without weights."""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from entscale_jax.pipeline import Output
from entscale_jax.sampling import read_sampler
from entscale_jax.scenes.recipe import Recipe
from entscale_jax.sweep.drawer import Drawer, Load
from entscale_jax.sweep.executor import Compile, Event, Failed, Failure, Finished, Lost, Ready
from entscale_jax.sweep.plan import Task, make_plan
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.weights.families import STABLE_DIFFUSION
from entscale_jax.weights.folder import ModelInfo


class FakeInfo(ModelInfo):
    """Configs without files: three levels, trained at 64x64 pixels of 4 to a latent cell where nothing else is said."""

    def __init__(self, name="fake", weights="ab" * 32, train_size=(64, 64), levels=3, factor=4):
        recipe = Recipe()
        unet = replace(
            recipe.unet,
            sample_size=(train_size[0] // factor, train_size[1] // factor),
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            block_out_channels=(64,) * levels,
            layers_per_block=1,
            transformer_layers_per_block=1,
            attention_head_dim=2,
        )
        stages = factor.bit_length()
        autoencoder = replace(
            recipe.autoencoder,
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=(8,) * stages,
        )
        text = replace(recipe.text, vocab_size=100)
        schedule = read_sampler(recipe.scheduler)
        super().__init__(name, Path("nowhere"), STABLE_DIFFUSION, unet, autoencoder, (text,), schedule)
        object.__setattr__(self, "weights", weights)

    @property
    def weights_hash(self):
        return self.weights


class FakePipe:
    """Draws noise that depends on everything a pipeline is told, and on each image's position in its batch."""

    layers = {"down/attn1": (0, 2, 8), "mid/attn1": (2, 2, 8)}  # noqa: RUF012

    def __init__(self, info=None):
        self.info = info or FakeInfo()
        self.calls: list[dict[str, Any]] = []
        self.compiled: list[dict[str, Any]] = []

    def compile(self, **keywords):
        self.compiled.append(keywords)

    def __call__(self, prompts, *, height, width, rule, sampler, steps, guidance, seed, measure_entropy, fuse=None):
        self.calls.append({"prompts": prompts, "size": (width, height), "rule": rule.label, "seed": seed, "fuse": fuse})
        shared = (height, width, rule.label, *([fuse] if fuse else []), sampler, steps, guidance, len(prompts))
        rngs = [_rng(prompt, one, i, *shared) for i, (prompt, one) in enumerate(zip(prompts, seed, strict=True))]
        images = np.stack([rng.integers(0, 256, (height, width, 3), np.uint8) for rng in rngs])
        entropy, gap = (
            {name: np.stack([rng.random((steps, 2)) for rng in rngs], 1).astype(np.float32) for name in self.layers}
            if measure_entropy
            else None
            for _ in range(2)
        )
        latents, broken = np.zeros((len(prompts), 2, 2, 4), np.float32), np.zeros(len(prompts), np.int32)
        return Output(images=images, latents=latents, entropy=entropy, logit_gap=gap, broken=broken)


def _rng(*parts):
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big"))


class FakeCounter:
    """Tells one compile of half a second at the first call and none later."""

    def __init__(self):
        self.left = deque([([], 0.0), ([Compile("denoise_latents", False, 0.5)], 0.5)])

    def take(self):
        return self.left.popleft() if self.left else ([], 0.0)


Fault = Callable[[str, Task], "str | None"]
"""Called before a worker draws: None lets it draw, `die` kills the worker, `node` its node, other text is an error.

An error that begins with `fatal`, `memory` or `passing` is of that kind.
"""
KINDS = ("fatal", "memory", "passing")


class FakeExecutor:
    """Workers in this process, one task each per turn. `fault` may raise, as Ctrl-C in the driver would."""

    def __init__(
        self,
        workers: int = 1,
        fault: Fault = lambda worker, task: None,
        metrics: Sequence[Any] = (),
        load: Load = lambda cell: FakePipe(),
        late: int = 0,
        counter: Callable[[], Any] = FakeCounter,
        kinds: Sequence[str] = ("fake",),
    ):
        """`late` is how many waits a replacement takes to be ready; `kinds` are of the workers' devices, in turn."""
        self.kinds = kinds
        self.replaced: list[str] = []
        self.late = late
        self.counter = counter
        self.coming: dict[str, int] = {}
        self.fault = fault
        self.load = load
        self.metrics = metrics
        self.names = [f"w{number}" for number in range(workers)]
        self.waiting: deque[tuple[str, Task]] = deque()
        self.log: list[tuple[str, Task]] = []
        self.drawers: dict[str, Drawer] = {}
        self.started = self.closed = 0

    def start(self):
        self.started += 1
        return list(self.names)

    def submit(self, worker, task):
        assert worker not in [name for name, _ in self.waiting], "a worker draws one task at a time"
        self.waiting.append((worker, task))

    def wait(self, seconds) -> list[Event]:
        ready = [name for name, waits in self.coming.items() if waits == 0]
        self.coming = {name: waits - 1 for name, waits in self.coming.items() if waits}
        if ready or not self.waiting:
            return [Ready(name) for name in ready]
        worker, task = self.waiting.popleft()
        self.log.append((worker, task))
        fault = self.fault(worker, task)
        if fault in ("die", "node"):
            return [Lost(worker, task, "killed", node=fault == "node")]
        if fault is not None:
            kind, _, text = fault.partition(" ")
            failure = Failure(text, **{kind: True}) if kind in KINDS else Failure(fault)
            return [Failed(worker, task, failure)]
        if worker not in self.drawers:
            self.drawers[worker] = Drawer(self.metrics, self.load, self.counter(), f"fake:{worker}")
        value = self.drawers[worker].draw(task)
        return [Failed(worker, task, value) if isinstance(value, Failure) else Finished(worker, task, value)]

    def replace(self, worker):
        self.drawers.pop(worker, None)
        self.replaced.append(f"{worker}+")
        self.coming[f"{worker}+"] = self.late
        return f"{worker}+"

    def devices(self):
        kind = dict(zip(self.names, cycle(self.kinds), strict=False))
        return [{"worker": name, "kind": kind[name.rstrip("+")], "pid": 1} for name in self.names + self.replaced]

    def close(self):
        self.closed += 1


SPEC = """\
sweep:
  name: small
  model: fake
  sizes: [64x64, 96x64, 30x30]
  methods: [original, entropy]
  prompts: [a red circle, a blue square, a green triangle, a red circle and a blue square, a yellow square]
  seeds: [0, 7]
  sampler: {name: ddim, steps: 3, guidance: 5.0}
  batch: 4
  metrics: [entropy, objects]
"""

PROMPTS = tuple(f"prompt {i}" for i in range(5))


def small_plan(prompts=PROMPTS, models=None, **changes):
    """Three sizes, two methods, five prompts, two seeds, in calls of four; `changes` are keys of the sweep."""
    keys = {
        "name": "a",
        "models": list(models or ["fake"]),
        "sizes": ["64x64", "96x64", "30x30"],
        "methods": ["original", "entropy"],
        "prompts": list(prompts),
        "seeds": [0, 7],
        "batch": 4,
    }
    spec = SweepSpec.model_validate({**keys, **changes})
    return make_plan(spec, prompts, models or {"fake": FakeInfo()})


def opening(executor):
    """What `run_sweep` takes as `open_executor`."""

    @contextmanager
    def open_executor(sweep):
        executor.metrics = sweep.spec.metrics
        try:
            yield executor
        finally:
            executor.close()

    return open_executor
