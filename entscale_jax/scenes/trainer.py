"""The loop that both stages share: Adam with a warm-up and a decay, averaged weights, orbax checkpoints, resume."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from rich.progress import Progress

from .recipe import Stage

Parameters = Any
Batch = Any
Loss = Callable[[Parameters, Batch, jax.Array], Float[Array, ""]]
Watch = Callable[[int, Any], str]
"""(step, averaged weights or modules) -> a remark to print."""


def train(
    parameters: Parameters,
    loss: Loss,
    batches: Callable[[int], Batch],
    stage: Stage,
    *,
    folder: Path,
    resume: bool,
    name: str,
    save_every: int = 500,
    watch: Watch | None = None,
) -> Parameters:
    """Trains `parameters` and returns their moving average.

    Args:
        parameters: a pytree, the start.
        loss: (parameters, batch, key) -> a scalar.
        batches: step -> batch; called ahead of time in a thread. A function of the step alone, so that a resumed run
            sees what an undisturbed one would.
        stage: steps, rates, seed.
        folder: where checkpoints go, every `save_every` steps.
        resume: continue from the newest checkpoint there is.
        name: of the stage, for messages.
        watch: called with the averaged weights at every checkpoint; what it returns is printed.
    """
    optimizer = _optimizer(stage)
    state = {"step": jnp.zeros((), jnp.int32), "parameters": parameters, "average": jax.tree.map(jnp.copy, parameters)}
    state["optimizer"] = optimizer.init(parameters)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        if resume and manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))  # pyright: ignore[reportArgumentType]
        mesh = _mesh(stage.batch)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        first = int(state["step"])
        update = _update(loss, optimizer, stage, mesh)
        with Progress(transient=True) as progress:
            bar = progress.add_task(name, total=stage.steps, completed=first)
            start, losses = time.perf_counter(), []
            for step, batch in _ahead(batches, first, stage.steps):
                state, value = update(state, jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch"))))
                losses.append(value)
                progress.advance(bar)
                if (step + 1) % save_every == 0 or step + 1 == stage.steps:
                    manager.save(step + 1, args=ocp.args.StandardSave(state))  # pyright: ignore[reportCallIssue]
                    mean = float(jnp.stack(losses).mean())
                    seconds = (time.perf_counter() - start) / len(losses)
                    remark = watch(step + 1, state["average"]) if watch else ""
                    progress.console.print(f"{name} step {step + 1}: loss {mean:.5f}, {seconds:.2f} s a step {remark}")
                    start, losses = time.perf_counter(), []
    return state["average"]


def _optimizer(stage: Stage) -> optax.GradientTransformation:
    decay = int(stage.decay * stage.steps)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, stage.learning_rate, stage.warmup),
            optax.constant_schedule(stage.learning_rate),
            optax.linear_schedule(stage.learning_rate, 0.0, decay),
        ],
        [stage.warmup, stage.steps - decay],
    )
    return optax.chain(optax.clip_by_global_norm(stage.gradient_norm), optax.adam(rate, b2=0.99))


def _mesh(batch: int) -> Mesh:
    """As many devices as share the batch evenly. On a CPU, XLA_FLAGS can make one of each core."""
    count = max(count for count in range(1, len(jax.devices()) + 1) if batch % count == 0)
    return jax.make_mesh((count,), ("batch",), devices=jax.devices()[:count])


def _update(loss: Loss, optimizer: optax.GradientTransformation, stage: Stage, mesh: Mesh) -> Callable:
    def share(parameters: Parameters, batch: Batch, key: jax.Array) -> tuple[Float[Array, ""], Parameters]:
        key = jax.random.fold_in(key, jax.lax.axis_index("batch"))
        return jax.lax.pmean(jax.value_and_grad(loss)(parameters, batch, key), "batch")

    whole, split = PartitionSpec(), PartitionSpec("batch")
    gradient = jax.shard_map(share, mesh=mesh, in_specs=(whole, split, whole), out_specs=whole, check_vma=False)

    @partial(jax.jit, donate_argnums=0)
    def update(state: dict, batch: Batch) -> tuple[dict, Float[Array, ""]]:
        key = jax.random.fold_in(jax.random.key(stage.seed), state["step"])
        value, slope = gradient(state["parameters"], batch, key)
        changes, moments = optimizer.update(slope, state["optimizer"], state["parameters"])
        parameters = optax.apply_updates(state["parameters"], changes)
        # Early averages would remember the random start: the decay grows with the step.
        taken = state["step"].astype(jnp.float32)
        decay = jnp.minimum(stage.ema, (1.0 + taken) / (10.0 + taken))
        average = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state["average"], parameters)
        return {
            "step": state["step"] + 1,
            "parameters": parameters,
            "average": average,
            "optimizer": moments,
        }, value

    return update


def _ahead(batches: Callable[[int], Batch], first: int, last: int) -> Iterator[tuple[int, Batch]]:
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(batches, first)
        for step in range(first, last):
            batch = pending.result()
            pending = pool.submit(batches, step + 1)
            yield step, batch
