"""What runs in a worker: draws a chunk with a pipeline that it keeps, measures each image, and hands back bytes.

Nothing here knows of Ray, and nothing is written: the driver alone writes.
"""

import hashlib
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..baselines import Baseline, Upscale
from ..errors import UserError
from ..png import png_bytes
from ..program_cache import ProgramMemory, most_of
from .environment import versions
from .executor import Compile, Drawn, Failure, Result
from .measures import Measures
from .plan import Cell, Program, Task
from .spec import Extractors, Metric


@runtime_checkable
class Counter(Protocol):
    """Programs made ready since the last call, and the seconds of that; `compiles.CompileCounter` in earnest."""

    def take(self) -> tuple[Sequence[Compile], float]: ...


Load = Callable[[Cell], Any]
"""Loads the pipeline that draws a cell's model, or the upscaler of its method."""


class Drawer:
    """Draws tasks one after the other. Each model is loaded once, each program compiled once."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        load: Load,
        counter: Counter,
        device: str,
        extractors: Extractors | None = None,
        peak: Callable[[], int | None] = lambda: None,
        load_upscaler: Load | None = None,
    ):
        """`peak` tells the most bytes that the device's allocator had in use so far."""
        self._peak = peak
        self._metrics = frozenset(metrics)
        self._measures = Measures(metrics, extractors)
        self._load = load
        self._load_upscaler = load_upscaler or _upscalers_elsewhere
        self._counter = counter
        self._device = device
        self._pipes: dict[str, Any] = {}
        self._upscalers: dict[str, Any] = {}
        self._levels: dict[str, dict[str, int]] = {}
        self._ready: dict[Program, Mapping[str, ProgramMemory]] = {}
        self._versions = " ".join(f"{name}-{version}" for name, version in versions().items())

    def draw(self, task: Task) -> Result | Failure:
        """Images and measurements of the task's wanted cells, or why there are none."""
        try:
            return self._draw(task)
        except UserError as error:
            return Failure(str(error), fatal=True)
        except Exception as error:
            return Failure(_one_line(error), memory=is_out_of_memory(error), passing=_may_pass(error))

    def _draw(self, task: Task) -> Result:
        pipe, _ = self._pipe(task.cells[0]), self._upscaler(task.cells[0])
        loading, _ = self._counter.take()
        memory = self._make_ready(pipe, task)
        ahead, ahead_seconds = self._counter.take()
        start = time.perf_counter()
        output = self._call(pipe, task)
        wall = time.perf_counter() - start
        late, late_seconds = self._counter.take()
        steady = max(wall - late_seconds, 0.0)
        # A drawing that is resized to several sizes counts whole for each: what that size alone would cost.
        drawings = sum(bool(cells) for cells in task.kept)
        shared = {"seconds": steady / drawings, "device": self._device}
        places = [(position, cell) for position, cells in enumerate(task.kept) for cell in cells]
        drawn = [self._measure(pipe, task, position, cell, output, shared) for position, cell in places]
        compiles = [*loading, *ahead, *late]
        return Result(drawn, compiles, ahead_seconds + late_seconds, steady, memory, self._peak())

    def memory(self, task: Task) -> Mapping[str, ProgramMemory]:
        """Makes the task's programs ready, and tells what each needs; draws nothing."""
        return self._make_ready(self._pipe(task.cells[0]), task)

    def _pipe(self, cell: Cell) -> Any:
        if cell.model not in self._pipes:
            self._pipes[cell.model] = self._load(cell)
        return self._pipes[cell.model]

    def _make_ready(self, pipe: Any, task: Task) -> Mapping[str, ProgramMemory]:
        # Compiling within a call would hide drawing: JAX denoises in the background while it compiles the decoder.
        chunk, program = task.chunk, task.program
        if program in self._ready:
            return self._ready[program]
        memory = pipe.compile(
            batch=program.batch,
            height=chunk.height,
            width=chunk.width,
            **self._how(pipe, task),
            sampler=chunk.cells[0].sampler,
            steps=program.steps,
            guidance=chunk.cells[0].guidance,
        )
        if isinstance(program.method, Upscale):
            enlarging = program.method.make_ready(self._upscaler(chunk.cells[0]), (chunk.height, chunk.width))
            memory = most_of(memory or {}, enlarging)
        self._ready[program] = memory or {}
        return self._ready[program]

    def _call(self, pipe: Any, task: Task) -> Any:
        first = task.cells[0]
        output = pipe(
            [cell.prompt for cell in task.cells],
            height=task.chunk.height,
            width=task.chunk.width,
            **self._how(pipe, task),
            sampler=first.sampler,
            steps=first.steps,
            guidance=first.guidance,
            seed=[cell.seed for cell in task.cells],
        )
        return self._enlarged(task, output) if isinstance(task.program.method, Upscale) else output

    def _upscaler(self, cell: Cell) -> Any:
        """What a method enlarges with; None for another method."""
        if not isinstance(cell.method, Upscale):
            return None
        if cell.method.upscaler not in self._upscalers:
            self._upscalers[cell.method.upscaler] = self._load_upscaler(cell)
        return self._upscalers[cell.method.upscaler]

    def _enlarged(self, task: Task, output: Any) -> Any:
        """The output with those pictures enlarged of which anything is stored; the others are black."""
        places = [place for place, wanted in enumerate(task.wanted) if wanted]
        cells = [task.cells[place] for place in places]
        made = task.program.method.enlarge(  # pyright: ignore[reportAttributeAccessIssue]
            self._upscaler(cells[0]),
            np.asarray(output.images)[places],
            [cell.prompt for cell in cells],
            [cell.seed for cell in cells],
        )
        images = np.zeros((len(task.cells), *made.images.shape[1:]), np.uint8)
        broken = np.array(output.broken)
        images[places] = made.images
        broken[places] += made.broken
        return replace(output, images=images, broken=broken)

    def _how(self, pipe: Any, task: Task) -> dict[str, Any]:
        """Whatever of a call is the method's."""
        method, chunk = task.program.method, task.chunk
        if isinstance(method, Baseline):
            return {**method.keywords(pipe.info, (chunk.height, chunk.width)), "measure_entropy": False}
        return {"rule": method, "measure_entropy": Metric.ENTROPY in self._metrics}

    def _measure(
        self, pipe: Any, task: Task, position: int, cell: Cell, output: Any, shared: Mapping[str, Any]
    ) -> Drawn:
        try:
            _check_finite(output, position)
            image = _finished(np.asarray(output.images[position]), cell)
            layers = self._entropy(pipe, task, position, output)
            png = png_bytes(image, self._text(cell))
            digest = {"sha256": hashlib.sha256(png).hexdigest()}
            columns = {**shared, **self._measures.columns(image, cell.prompt), **_mean_entropy(layers), **digest}
            return Drawn(cell.id, png, columns, layers, self._measures.features(image))
        except Exception as error:
            # One image that can't be measured is not the fault of its neighbours.
            return Drawn(cell.id, error=_one_line(error))

    def _entropy(self, pipe: Any, task: Task, position: int, output: Any) -> list[dict[str, Any]]:
        if Metric.ENTROPY not in self._metrics or output.entropy is None:
            return []
        tokens = pipe.info.tokens(task.chunk.program.key.bucket)
        levels = self._levels_of(pipe, task.cells[position].model)
        layers = []
        for name, values in output.entropy.items():
            level = levels[name]
            layers.append(
                {
                    "layer": name,
                    "tokens": int(tokens[level]),
                    "train_tokens": int(pipe.info.train_tokens[level]),
                    "entropy": _step_means(values[:, position]),
                    "logit_gap": _step_means(output.logit_gap[name][:, position]),
                }
            )
        return layers

    def _levels_of(self, pipe: Any, model: str) -> Mapping[str, int]:
        # `layers` walks the whole UNet, which for each layer of each image would cost more than measuring it.
        if model not in self._levels:
            self._levels[model] = {name: layer[0] for name, layer in pipe.layers.items()}
        return self._levels[model]

    def _text(self, cell: Cell) -> dict[str, str]:
        return {
            "model": f"{cell.model} {cell.weights_hash}",
            "caption": cell.prompt,
            "seed": str(cell.seed),
            "rule": cell.method.label,
            **({"upscaler": f"{cell.method.upscaler} {cell.upscaler_hash}"} if cell.upscaler_hash else {}),  # pyright: ignore[reportAttributeAccessIssue]
            "size": f"{cell.width}x{cell.height}",
            "sampler": f"{cell.sampler} steps {cell.steps} guidance {cell.guidance:g}",
            "versions": self._versions,
        }


def _finished(image: np.ndarray, cell: Cell) -> np.ndarray:
    """The cell's picture, of the one that was drawn."""
    if not isinstance(cell.method, Baseline):
        return image
    return cell.method.finish(image[None], (cell.height, cell.width))[0]


def load_pipeline(folders: Mapping[str, str], rows: Any = None) -> Load:
    """A loader of real pipelines. `folders` says where the driver found each model; a node without that looks itself.
    `rows` is an `ImageRows` where images are split over the worker's devices.

    Raises UserError where the weights are not those of the plan.
    """

    def load(cell: Cell) -> Any:
        from ..pipeline import TextToImage

        folder = folders.get(cell.model, "")
        more = {} if rows is None else {"rows": rows}
        pipe = TextToImage.from_pretrained(
            folder if os.path.isdir(folder) else cell.model, train_size=cell.train_size, **more
        )
        _check_weights(cell.model, pipe.info.weights_hash, cell.weights_hash)
        return pipe

    return load


def load_upscaler(folders: Mapping[str, str]) -> Load:
    """A loader of what baseline `upscale` enlarges with, likewise; images are not split there."""

    def load(cell: Cell) -> Any:
        from ..upscaler import Upscaler

        name = cell.method.upscaler  # pyright: ignore[reportAttributeAccessIssue]
        folder = folders.get(name, "")
        upscaler = Upscaler.from_pretrained(folder if os.path.isdir(folder) else name)
        _check_weights(name, upscaler.info.weights_hash, cell.upscaler_hash)
        return upscaler

    return load


_upscalers_elsewhere = load_upscaler({})


def _check_weights(model: str, found: str, planned: str) -> None:
    if found != planned:
        raise UserError(
            f"model {model} on {platform.node()} has the weights {found[:12]} and not those of the plan, "
            f"{planned[:12]}: copy the same model to every node"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had too little memory: XLA says so by the name of its status."""
    return "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)


def _may_pass(error: BaseException) -> bool:
    # By name, as Ray is not imported here: reading a task's arguments can find the object store full.
    return type(error).__name__ in ("ObjectStoreFullError", "OutOfDiskError")


def _check_finite(output: Any, position: int) -> None:
    """Raises where a picture, or its latents, held a NaN or an infinity: as bytes that would be some colour."""
    values = np.asarray(output.latents[position], np.float32)
    broken = int(values.size - np.isfinite(values).sum())
    if broken:
        raise ArithmeticError(f"{broken} of {values.size} values of the latents are NaN or infinite")
    if broken := int(output.broken[position]):
        raise ArithmeticError(f"{broken} values of the decoded image are NaN or infinite, and none of its latents")


def _mean_entropy(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not layers:
        return {}
    return {"entropy": _short(np.mean([layer["entropy"] for layer in layers], dtype=np.float64))}


def _step_means(values: Any) -> list[float]:
    """The mean over heads of each step, from [steps, heads]."""
    return [_short(value) for value in np.asarray(values).mean(axis=-1, dtype=np.float64)]


def _short(value: Any) -> float:
    """The shortest decimal that is the same float32, so that rows stay small."""
    return float(str(np.float32(value)))


def _one_line(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"RESOURCE_EXHAUSTED: {text or 'the host has too little memory'}"
    return f"{type(error).__name__}: {text[:400]}{where}"
