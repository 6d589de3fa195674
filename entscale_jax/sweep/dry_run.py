"""What a sweep would do, and about how long it would take, told without Ray and without loading weights."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..baselines import Baseline, Method
from ..buckets import Bucket
from ..scales import multiplier_text
from ..weights.folder import ModelInfo
from .plan import Chunk, Plan, Program
from .programs import calls_for
from .progress import duration
from .store import Outcome, RunFolder

FLOPS_PER_SECOND = 5e10
"""A rough figure for one CPU worker of two cores; other devices are faster."""
COMPILE_SECONDS = 10.0
"""A rough figure for a denoising program with its decoding one on such a worker, nothing cached."""
CONVOLUTION_SHARE = 0.11
"""Multiply-adds of a UNet over (its weights x its latent cells), that of Stable Diffusion: most weights are coarse."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of drawing and compiling with one worker, and whether an earlier run here measured all of them."""

    draw: float
    compile: float
    measured: bool


def estimate(plan: Plan, wanted: set[str], rows: Mapping[str, Outcome], ledger: Mapping[str, Any]) -> Estimate:
    """From timings of the run folder where there are any, else from the rough figures of this module."""
    found = defaultdict(list)
    for cell in plan.cells if rows else ():
        if (row := rows.get(cell.id)) and row.seconds is not None:
            found[cell.model, cell.width, cell.height, cell.method].append(row.seconds)
    seconds = {key: fmean(values) for key, values in found.items()}
    chunks = [task.chunk for task in plan.tasks(wanted)]
    flops = {model: _flops_per_latent_cell(plan.models[model]) for model in {one.program.key.model for one in chunks}}
    draws = [_draw_seconds(chunk, plan.models[chunk.program.key.model], seconds, flops) for chunk in chunks]
    programs = dict.fromkeys(chunk.program for chunk in chunks)
    compiles = [_compile_seconds(program, ledger) for program in programs]
    return Estimate(
        sum(known if known is not None else rough for known, rough in draws),
        sum(COMPILE_SECONDS if known is None else known for known in compiles),
        all(known is not None for known, _ in draws) and None not in compiles,
    )


def _draw_seconds(
    chunk: Chunk, info: ModelInfo, seconds: Mapping[Any, float], flops: Mapping[str, float]
) -> tuple[float | None, float]:
    program = chunk.program
    measured = [(seconds.get((program.key.model, *size, program.method)), count) for size, count in chunk.sizes.items()]
    known = [each * count for each, count in measured if each is not None]
    if len(known) == len(measured):
        return sum(known), 0.0
    height, width = program.key.bucket.latent(info.latent_factor)
    calls = program.batch * program.steps * (2 if program.guided else 1) * program.work
    return None, flops[program.key.model] * height * width * calls / FLOPS_PER_SECOND


def _flops_per_latent_cell(info: ModelInfo) -> float:
    weights = sum(path.stat().st_size for path in (info.folder / "unet").glob("*.safetensors")) / 4
    return 2 * weights * CONVOLUTION_SHARE


def _compile_seconds(program: Program, ledger: Mapping[str, Any]) -> float | None:
    bucket = program.key.bucket
    for entry in ledger.get("buckets", []):
        if (entry["model"], entry["width"], entry["height"], entry["method"], entry["batch"]) == (
            program.key.model,
            bucket.width,
            bucket.height,
            program.method.label,
            program.batch,
        ):
            return float(entry["compile_seconds"])
    return None


def show_plan(plan: Plan, run: RunFolder, console: Console, *, resume: bool = True, retry_failed: bool = False) -> None:
    """Prints buckets, tokens, multipliers, counts and the estimate of what `run_sweep` would do with these options."""
    rows = run.read_outcomes(plan.cells) if run.exists() else {}
    again = {key for key, row in rows.items() if not resume or (retry_failed and row.error is not None)}
    wanted = {cell.id for cell in plan.cells} - (rows.keys() - again)
    for model in plan.models:
        console.print(_size_table(plan, model))
    ledger = run.read_json("programs.json") or {}
    for line in map(str, plan.undefined):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in _summary(plan, wanted, len(again), estimate(plan, wanted, rows, ledger)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _size_table(plan: Plan, model: str) -> Table:
    info = plan.models[model]
    trained = f"{info.train_size[1]}x{info.train_size[0]}, tokens per level {_joined(info.train_tokens)}"
    table = Table(title=f"{model}, trained at {trained}", title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in ("size", "bucket", "batch", "tokens", "method", "multipliers", "cells"):
        table.add_column(name, justify="right" if name in ("batch", "cells") else "left", overflow="fold")
    groups: dict[tuple[Program, int, int], int] = defaultdict(int)
    for chunk in plan.chunks:
        if chunk.program.key.model == model:
            for size, cells in chunk.sizes.items():
                groups[chunk.program, *size] += cells
    for (program, width, height), cells in groups.items():
        bucket = program.key.bucket
        multipliers = _multipliers(info, bucket, program.method)
        counts = _joined(info.tokens(bucket))
        table.add_row(
            f"{width}x{height}", str(bucket), str(program.batch), counts, program.method.label, multipliers, str(cells)
        )
    for found in plan.undefined:
        if found.model == model:
            width, height = found.size
            bucket = info.bucket(height, width)
            multipliers = _joined(map(multiplier_text, info.multipliers(bucket, found.method)))
            counts = _joined(info.tokens(bucket))
            table.add_row(f"{width}x{height}", str(bucket), "-", counts, found.method.label, multipliers, "0")
    return table


def _multipliers(info: ModelInfo, bucket: Bucket, method: Method) -> str:
    """Of a rule; a baseline has the scale of training."""
    return "-" if isinstance(method, Baseline) else _joined(map(multiplier_text, info.multipliers(bucket, method)))


def _joined(values: Iterable[object]) -> str:
    return "/".join(map(str, values))


def _summary(plan: Plan, wanted: set[str], again: int, guess: Estimate) -> list[str]:
    there = len(plan.cells) - len(wanted) + again
    known = f"{there} of them in the run folder already" + (f", of which {again} are drawn again" if again else "")
    tasks = plan.tasks(wanted)
    kinds = Counter(call[0] for call in {call for task in tasks for call in calls_for(task.chunk.program)})
    basis = "measured in this run folder" if guess.measured else "a rough estimate for one CPU worker"
    times = f"{duration(guess.draw)} of drawing and {duration(guess.compile)} of compiling (less from the cache)"
    return [
        f"{len(plan.cells)} cells, {known}; {len(tasks)} chunks to draw",
        f"programs to make ready: {', '.join(f'{kinds[kind]} {kind}' for kind in ('denoise', 'decode', 'text'))}",
        f"about {times}: {basis}",
    ]
