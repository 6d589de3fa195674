"""The loop that all stages share: averaged weights, a log, checkpoints from which a stopped run goes on unchanged."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..errors import UserError
from .checkpoints import Checkpoints
from .optimizers import build_optimizer
from .provenance import Ledger, Segment
from .recipe import Stage, Upkeep
from .recipe_file import differences

Parameters = Any
Batch = Any
Measures = Mapping[str, Float[Array, ""]]
Loss = Callable[[Parameters, Batch, jax.Array], tuple[Float[Array, ""], Measures]]
"""(parameters, batch, one key a picture) -> what is minimised, and what the log should say of it."""
Structure = Mapping[str, tuple[float, float, float]]
"""Self-attention layer -> mean entropy, mean logit gap and log T, in nats."""


def _speak(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where one training keeps its things, and what it says of itself."""

    name: str
    """Of the stage: its checkpoints lie in the folder of that name."""
    folder: Path
    """Of all checkpoints and of `log.jsonl`."""
    resume: bool = True
    """Go on from the newest checkpoint there is."""
    recipe: Mapping[str, Any]
    """The recipe's fields that decide the weights. A checkpoint made with others is refused."""
    earlier: tuple[Segment, ...] = ()
    """Provenance of what the training starts from."""
    upkeep: Upkeep = field(default_factory=Upkeep)
    say: Callable[[str], None] = _speak


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a stage adds to the loop."""

    structure: Callable[[Parameters], Structure] = lambda parameters: {}
    """Measures the weights as they are, for each line of the log."""
    export: Callable[[Parameters, list[Segment]], None] = lambda average, segments: None
    """Writes the averaged weights, at each checkpoint."""
    score: Callable[[], Mapping[str, float]] | None = None
    """Draws with what was exported; of its numbers, `exact` decides which checkpoint is the best."""
    keep_best: Callable[[], None] = lambda: None
    """Keeps what was exported, when no score was better."""


def train(
    parameters: Parameters,
    loss: Loss,
    batches: Callable[[int], Batch],
    stage: Stage,
    run: Run,
    hooks: Hooks = Hooks(),
    *,
    smallest_batch: int | None = None,
    query_key_rate: float = 1.0,
) -> tuple[Parameters, list[Segment]]:
    """Trains `parameters` and returns their moving average and its provenance.

    Args:
        parameters: a pytree, the start.
        loss: a mean over pictures, so that any number of devices may share them.
        batches: step -> batch; called ahead of time in a thread. A function of the step alone, so that a resumed run
            sees what an undisturbed one would.
        stage: steps, rates, seed.
        run: folder, name, recipe.
        hooks: what else happens at log lines and checkpoints.
        smallest_batch: pictures of the smallest batch, of which the others are multiples; the stage's if not given.
        query_key_rate: factor on the learning rate of self-attention's `to_q` and `to_k`.

    Raises UserError for a checkpoint of another recipe, and where the loss is no number any more.
    """
    optimizer = build_optimizer(stage, query_key_rate=query_key_rate)
    mesh = _mesh(smallest_batch or stage.batch)
    with Checkpoints(run.folder / run.name) as checkpoints:
        state, earlier = _start(parameters, optimizer, checkpoints, run)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        first = int(state["step"])
        keeper = _Keeper(
            stage, run, hooks, checkpoints, Ledger(earlier, run.name, run.recipe, list(mesh.devices)), first
        )
        update = _update(loss, optimizer, stage, mesh)
        for step, batch in _ahead(batches, first, stage.steps):
            state, measures = update(state, jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch"))))
            keeper.after(step + 1, state, measures)
        keeper.finish(state)
    return state["average"], keeper.segments


def _start(
    parameters: Parameters, optimizer: optax.GradientTransformation, checkpoints: Checkpoints, run: Run
) -> tuple[dict, list[Segment]]:
    """The state to go on from, and the segments behind it."""
    state = {"step": jnp.zeros((), jnp.int32), "parameters": parameters, "average": jax.tree.map(jnp.copy, parameters)}
    state["optimizer"] = optimizer.init(parameters)
    newest = checkpoints.latest()
    if not run.resume or newest is None:
        return state, list(run.earlier)
    notes = checkpoints.notes(newest)
    if "recipe" in notes and (changed := differences(notes["recipe"], run.recipe)):
        raise UserError(
            f"{run.folder / run.name} was begun with another recipe ({'; '.join(changed)}): go on with that one, "
            "or give another --checkpoints"
        )
    run.say(f"{run.name}: goes on from step {newest}")
    unknown = {"stage": run.name, "recipe": None, "steps": newest}
    return checkpoints.restore(newest, state), notes.get("segments", [*run.earlier, unknown])


class _Keeper:
    """Log lines and checkpoints, when they are due."""

    def __init__(self, stage: Stage, run: Run, hooks: Hooks, checkpoints: Checkpoints, ledger: Ledger, first: int):
        self._stage, self._run, self._hooks, self._checkpoints, self._ledger = stage, run, hooks, checkpoints, ledger
        self._first = first
        self.segments = ledger.segments(0, 0.0)
        """Provenance of what was last saved."""
        self._began = self._saved = self._watched = time.perf_counter()
        self._best = checkpoints.best()
        self._pending: list[Measures] = []
        self._since, self._aside = self._began, 0.0

    def after(self, step: int, state: dict, measures: Measures) -> None:
        """Logs and saves what is due after `step` steps."""
        self._pending.append(measures)
        due = self._is_due(step)
        if due:
            jax.block_until_ready(state)
        if step % self._run.upkeep.log_every == 0 or step == self._stage.steps:
            self._log(step, state)
        if due:
            self._check(step, measures)
            start = time.perf_counter()
            self._save(step, state)
            self._aside += time.perf_counter() - start

    def finish(self, state: dict) -> None:
        """A training found finished still exports: the folder may be gone."""
        if int(state["step"]) == self._first:
            self._hooks.export(state["average"], self.segments)

    def _log(self, step: int, state: dict) -> None:
        means = {name: float(np.mean([float(one[name]) for one in self._pending])) for name in self._pending[0]}
        seconds = (time.perf_counter() - self._since - self._aside) / len(self._pending)
        self._check(step, means)
        structure = self._hooks.structure(state["parameters"])
        self._write({"step": step, **means, "seconds_a_step": round(seconds, 4), "layers": structure})
        said = ", ".join(f"{name} {value:.5f}" for name, value in means.items())
        layers = " ".join(f"{_short(name)} {e:.2f}/{most:.2f}({gap:.1f})" for name, (e, gap, most) in structure.items())
        self._run.say(
            f"{self._run.name} step {step}/{self._stage.steps}: {said}, {seconds:.2f} s a step {layers}".strip()
        )
        self._pending, self._since, self._aside = [], time.perf_counter(), 0.0

    def _check(self, step: int, measures: Mapping[str, Any]) -> None:
        if not all(math.isfinite(float(value)) for value in measures.values()):
            raise UserError(
                f"{self._run.name}: at step {step} the loss is no number any more; the checkpoints before are kept: "
                "go on with another seed, or begin anew with a lower rate"
            )

    def _is_due(self, step: int) -> bool:
        upkeep = self._run.upkeep
        if step == self._stage.steps or (upkeep.save_steps and step % upkeep.save_steps == 0):
            return True
        return time.perf_counter() - self._saved >= 60 * upkeep.save_minutes

    def _save(self, step: int, state: dict) -> None:
        self.segments = self._ledger.segments(step - self._first, time.perf_counter() - self._began)
        self._hooks.export(state["average"], self.segments)
        score = self._score(step)
        self._checkpoints.save(step, state, {"recipe": dict(self._run.recipe), "segments": self.segments}, score)
        self._saved = time.perf_counter()

    def _score(self, step: int) -> Mapping[str, float] | None:
        late = time.perf_counter() - self._watched >= 60 * self._run.upkeep.watch_minutes
        if self._hooks.score is None or not (late or step == self._stage.steps):
            return None
        start = time.perf_counter()
        score = self._hooks.score()
        self._watched = time.perf_counter()
        if self._best is None or score["exact"] >= self._best:
            self._best = score["exact"]
            self._hooks.keep_best()
        self._write({"step": step, "score": score})
        said = ", ".join(f"{name} {value:.3f}" for name, value in score.items())
        self._run.say(f"{self._run.name} step {step}: {said} ({self._watched - start:.0f} s)")
        return score

    def _write(self, line: Mapping[str, Any]) -> None:
        with (self._run.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"stage": self._run.name, "time": round(time.time(), 1), **line}) + "\n")


def _short(layer: str) -> str:
    """`d0.1.2` for `down_blocks/0/attentions/1/transformer_blocks/2/attn1`; the middle block's is `m.0.0`."""
    parts = layer.split("/")
    return parts[0][0] + ".".join(part for part in parts if part.isdigit())


def _mesh(batch: int) -> Mesh:
    """As many devices as share the batch evenly. On a CPU, XLA_FLAGS can make one of each core."""
    count = max(count for count in range(1, len(jax.devices()) + 1) if batch % count == 0)
    return jax.make_mesh((count,), ("batch",), devices=jax.devices()[:count])


def _update(loss: Loss, optimizer: optax.GradientTransformation, stage: Stage, mesh: Mesh) -> Callable:
    def share(parameters: Parameters, batch: Batch, key: jax.Array) -> tuple[Measures, Parameters]:
        # A key a picture: what is drawn does not depend on how many devices share the batch.
        count = len(jax.tree.leaves(batch)[0])
        keys = jax.random.split(key, count * mesh.size).reshape(mesh.size, -1)[jax.lax.axis_index("batch")]
        (_, measures), slope = jax.value_and_grad(loss, has_aux=True)(parameters, batch, keys)
        return jax.lax.pmean((measures, slope), "batch")

    whole, split = PartitionSpec(), PartitionSpec("batch")
    gradient = jax.shard_map(share, mesh=mesh, in_specs=(whole, split, whole), out_specs=whole, check_vma=False)

    @partial(jax.jit, donate_argnums=0)
    def update(state: dict, batch: Batch) -> tuple[dict, Measures]:
        key = jax.random.fold_in(jax.random.key(stage.seed), state["step"])
        measures, slope = gradient(state["parameters"], batch, key)
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
        }, measures

    return update


def _ahead(batches: Callable[[int], Batch], first: int, last: int) -> Iterator[tuple[int, Batch]]:
    if first >= last:
        return
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(batches, first)
        for step in range(first, last):
            batch = pending.result()
            if step + 1 < last:
                pending = pool.submit(batches, step + 1)
            yield step, batch
