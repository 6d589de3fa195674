"""From a sweep to its cells and the chunks they are drawn in: pure data, the same whatever has been drawn already.

A cell's place in a chunk follows from the whole plan alone. So an interrupted sweep that goes on later puts each cell
into the same program, beside as many others, at the same position, and draws the same bits.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain, product
from typing import Any

from ..baselines import Baseline, Method, Upscale
from ..buckets import Bucket
from ..errors import UserError
from ..scales import ScaleRule, Scaling, UndefinedScale
from ..weights.folder import ModelInfo
from ..weights.upscaler_folder import UpscalerInfo
from .spec import Metric, Sampler, SeedOfCaption, SpecError, SweepSpec

AUTO_BATCH = 8
"""Images in one call at the training size with `batch: auto`; at a larger area fewer, as many as its pixels allow."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image of a sweep and all that decides how it looks. Sizes are pixels."""

    model: str
    weights_hash: str
    train_size: tuple[int, int]
    """(height, width), which T follows from."""
    width: int
    height: int
    method: Method
    prompt: str
    seed: int
    sampler: str
    steps: int
    guidance: float
    upscaler_hash: str = ""
    """Of the weights that baseline `upscale` enlarges with."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the cell's content."""
        before, between, after = _content(
            self.method,
            model=self.model,
            weights_hash=self.weights_hash,
            train_size=self.train_size,
            width=self.width,
            height=self.height,
            sampler=self.sampler,
            steps=self.steps,
            guidance=self.guidance,
            # Of one method alone, so that cells of the others keep the ids that they had before it.
            **({"upscaler_hash": self.upscaler_hash} if self.upscaler_hash else {}),
        )
        text = f"{before}{json.dumps(self.prompt)}{between}{self.seed}{after}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(1024)
def _content(method: Method, **shared: Any) -> tuple[str, str, str]:
    """A cell's content as JSON with sorted keys, around its prompt and its seed: most cells differ in these alone."""
    content = {**shared, **_describe(method)}
    entries = {
        name: f'"{name}":{json.dumps(value, separators=(",", ":"), sort_keys=True)}' for name, value in content.items()
    }
    entries |= {name: f'"{name}":\0' for name in ("prompt", "seed")}
    before, between, after = ("{" + ",".join(entries[name] for name in sorted(entries)) + "}").split("\0")
    return before, between, after


def _describe(method: Method) -> dict[str, Any]:
    if isinstance(method, Baseline):
        return {"baseline": method.name, **method.identity}
    # E_T of one rule alone, so that cells of the others keep the ids that they had before it.
    entropy = {} if method.train_entropy is None else {"train_entropy": method.train_entropy.layers}
    return {"rule": method.rule.value, "multiplier": method.multiplier, **entropy}


@dataclass(frozen=True, order=True)
class BucketKey:
    """A model at a bucket: what a worker stays on, as its programs serve nothing else."""

    model: str
    bucket: Bucket


@dataclass(frozen=True)
class Program:
    """What one denoising program serves: cells that differ in these need another compile."""

    key: BucketKey
    method: Method
    batch: int
    sampler: str
    steps: int
    guided: bool
    measures: bool = False
    """Whether it measures attention, too."""
    work: float = 1.0
    """Latent cells that a step denoises, over those of the bucket."""


@dataclass(frozen=True)
class Task:
    """What is sent to a worker: as many positions as its program's batch, and which cells are stored of each."""

    chunk: "Chunk"
    cells: tuple[Cell, ...]
    """What is drawn at each position: the caption and the seed of this cell."""
    kept: tuple[tuple[Cell, ...], ...]
    """What is stored of each position: nothing, the cell, or those of several sizes that are made of one drawing."""

    @property
    def wanted(self) -> tuple[bool, ...]:
        """Whether anything is stored of a position."""
        return tuple(map(bool, self.kept))

    @property
    def wanted_cells(self) -> tuple[Cell, ...]:
        return tuple(chain.from_iterable(self.kept))

    @property
    def drawings(self) -> int:
        """Positions of which something is stored."""
        return sum(self.wanted)

    @property
    def key(self) -> tuple[int, int, tuple[str, ...]]:
        """Tells tasks of one sweep apart."""
        return self.chunk.index, len(self.cells), tuple(cell.id for cell in self.wanted_cells)

    @property
    def program(self) -> Program:
        """The chunk's program, at the task's own batch where that was halved."""
        return replace(self.chunk.program, batch=len(self.cells))

    @property
    def cost(self) -> float:
        """The share of the chunk's cost that falls to what is wanted: parts of a task cost what it cost."""
        return self.chunk.cost * self.drawings / len(self.chunk.places)

    def halves(self) -> tuple["Task", "Task"]:
        """Two tasks of half the drawings each: the same program, every cell at its position, so the same bits."""
        places = [place for place, wanted in enumerate(self.wanted) if wanted]
        middle = len(places) // 2
        return self._only(places[:middle]), self._only(places[middle:])

    def smaller(self, batch: int) -> tuple["Task", ...]:
        """Tasks of a smaller batch, which is another program and may round otherwise.

        A cell's place follows from its place here, whichever cells are wanted: one that is drawn later has its bits.
        """
        groups = [self.kept[start : start + batch] for start in range(0, len(self.kept), batch)]
        return tuple(_filled(self.chunk, group, batch) for group in groups if any(group))

    def _only(self, places: Sequence[int]) -> "Task":
        kept = [cells if place in places else () for place, cells in enumerate(self.kept)]
        return _filled(self.chunk, kept, len(self.cells))


def _filled(chunk: "Chunk", kept: Sequence[tuple[Cell, ...]], batch: int) -> Task:
    """A task whose other positions, up to the batch, hold the first wanted cell, drawn once more and thrown away."""
    filler = next(cells[0] for cells in kept if cells)
    kept = [*kept, *[()] * (batch - len(kept))]
    return Task(chunk, tuple(cells[0] if cells else filler for cells in kept), tuple(kept))


@dataclass(frozen=True)
class Chunk:
    """Cells that are drawn in one call of one program, in at most `program.batch` drawings of one size.

    A cell is a drawing; but those of several sizes that are made of the same one, as `resize` makes them, share it.
    """

    index: int
    program: Program
    width: int
    """Of what is drawn, in pixels."""
    height: int
    cells: tuple[Cell, ...]

    @cached_property
    def places(self) -> tuple[tuple[Cell, ...], ...]:
        """The cells of each drawing."""
        return tuple(map(tuple, _drawings(self.cells).values()))

    @property
    def sizes(self) -> Mapping[tuple[int, int], int]:
        """How many of its cells are of each size, (width, height)."""
        return Counter((cell.width, cell.height) for cell in self.cells)

    def task(self, wanted: Collection[str]) -> Task | None:
        """The chunk with only the cells whose ids are `wanted`; None where there are none.

        A position without a wanted cell is filled with the first wanted one, drawn once more and thrown away.
        """
        kept = [tuple(cell for cell in cells if cell.id in wanted) for cells in self.places]
        return _filled(self, kept, self.program.batch) if any(kept) else None

    @property
    def cost(self) -> float:
        """Pixels times model calls, to compare chunks by."""
        program = self.program
        bucket = program.key.bucket
        calls = program.batch * program.steps * (2 if program.guided else 1)
        return bucket.height * bucket.width * calls * program.work


def _drawings(cells: Iterable[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """Cells of one program and drawn size by what they are drawn from: caption and seed."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.prompt, cell.seed), []).append(cell)
    return found


@dataclass(frozen=True)
class Undefined:
    """Cells that are not in the plan, as rule `calibrated` has no value there. The size is (width, height)."""

    model: str
    size: tuple[int, int]
    method: Scaling
    reason: str

    def __str__(self) -> str:
        return f"{self.model} {self.size[0]}x{self.size[1]} {self.method.label} is not drawn: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep in the order of their rows, and the chunks that hold each of them once."""

    cells: tuple[Cell, ...]
    chunks: tuple[Chunk, ...]
    models: Mapping[str, ModelInfo]
    undefined: tuple[Undefined, ...] = ()
    upscalers: Mapping[str, UpscalerInfo] = field(default_factory=dict)
    """Those of baseline `upscale`, by their folders or ids."""

    @property
    def weights(self) -> dict[str, str]:
        """Hashes of all weights that are drawn with."""
        return {name: info.weights_hash for name, info in (*self.models.items(), *self.upscalers.items())}

    @property
    def folders(self) -> dict[str, str]:
        """Where all models are on this machine."""
        infos = (*self.models.values(), *(info.model for info in self.upscalers.values()))
        return {info.name: str(info.folder.resolve()) for info in infos}

    @property
    def programs(self) -> tuple[Program, ...]:
        """The denoising programs that the sweep compiles, in order."""
        return tuple(dict.fromkeys(chunk.program for chunk in self.chunks))

    def tasks(self, wanted: Collection[str]) -> list[Task]:
        """What has to be drawn for the cells whose ids are `wanted`."""
        return [task for chunk in self.chunks if (task := chunk.task(wanted)) is not None]


def make_plan(
    spec: SweepSpec,
    prompts: Sequence[str],
    models: Mapping[str, ModelInfo],
    upscalers: Mapping[str, UpscalerInfo] | None = None,
) -> Plan:
    """The plan of a sweep; what rule `calibrated` has no value for is left out and told.

    Raises UserError for a size that a model can't draw, multipliers or E_T unlike its own, and where nothing is left.
    """
    cells: dict[str, Cell] = {}
    groups: dict[tuple[Program, tuple[int, int]], list[Cell]] = {}
    undefined: list[Undefined] = []
    for name, size, given in product(spec.models, spec.sizes, spec.methods):
        method = _fitting(models[name], given)
        if not isinstance(method, Baseline) and method.rule is ScaleRule.CALIBRATED:
            try:
                models[name].layer_multipliers(_bucket(models[name], name, size), method)
            except UndefinedScale as error:
                undefined.append(Undefined(name, size, method, str(error)))
                continue
        pairs = _pairs(spec, prompts)[: (spec.limits or {}).get(method.label)]
        upscaler = (upscalers or {})[method.upscaler] if isinstance(method, Upscale) else None
        group = _group(spec.sampler, models[name], name, size, method, pairs, upscaler)
        new = [cell for cell in group if cell.id not in cells]
        cells.update((cell.id, cell) for cell in new)
        drawn = _drawn_size(models[name], size, method)
        program = _program(spec, models[name], name, drawn, method, len(group), upscaler)
        groups.setdefault((program, drawn), []).extend(new)
    if not cells:
        raise SpecError(undefined[0].reason, "methods", undefined[0].method)
    chunks: list[Chunk] = []
    for (program, drawn), members in groups.items():
        chunks.extend(_chunks(program, drawn, members, len(chunks)))
    return Plan(tuple(cells.values()), tuple(chunks), models, tuple(undefined), upscalers or {})


def auto_batch(bucket: Bucket, train_size: tuple[int, int], images: int) -> int:
    """Images a call with `batch: auto`, of so many `images` of a size and method.

    At most AUTO_BATCH, and at areas above the training size's as many fewer, 1 at least. Within that as few as fill the
    same number of calls evenly: 8 images of which 5 fit are drawn as 4 and 4.

    Neither the device nor the number of workers enters, so that a plan means the same everywhere.
    """
    area = bucket.height * bucket.width
    fits = max(1, min(AUTO_BATCH, AUTO_BATCH * train_size[0] * train_size[1] // area))
    return -(-images // -(-images // fits))


def _pairs(spec: SweepSpec, prompts: Sequence[str]) -> list[tuple[str, int]]:
    if isinstance(spec.seeds, SeedOfCaption):
        return [(prompt, seed) for seed, prompt in enumerate(prompts, spec.seeds.first)]
    return list(dict.fromkeys((prompt, seed) for seed in spec.seeds for prompt in prompts))


def _group(
    sampler: Sampler,
    info: ModelInfo,
    name: str,
    size: tuple[int, int],
    method: Method,
    pairs: Iterable[tuple[str, int]],
    upscaler: UpscalerInfo | None,
) -> list[Cell]:
    return [
        Cell(
            model=name,
            weights_hash=info.weights_hash,
            train_size=info.train_size,
            width=size[0],
            height=size[1],
            method=method,
            prompt=prompt,
            seed=seed,
            sampler=sampler.name,
            steps=sampler.steps,
            guidance=float(sampler.guidance),
            upscaler_hash="" if upscaler is None else upscaler.weights_hash,
        )
        for prompt, seed in pairs
    ]


def _program(
    spec: SweepSpec,
    info: ModelInfo,
    name: str,
    size: tuple[int, int],
    method: Method,
    images: int,
    upscaler: UpscalerInfo | None,
) -> Program:
    bucket = _bucket(info, name, size)
    batch = auto_batch(bucket, info.train_size, images) if spec.batch == "auto" else min(spec.batch, images)
    sampler, guided = spec.sampler, spec.sampler.guidance != 1.0
    calls = sampler.steps * (2 if guided else 1)
    return Program(
        BucketKey(name, bucket),
        method,
        batch,
        sampler.name,
        sampler.steps,
        guided,
        measures=Metric.ENTROPY in spec.metrics and not isinstance(method, Baseline),
        work=method.work(info, (size[1], size[0]), calls, upscaler) if isinstance(method, Baseline) else 1.0,
    )


def _drawn_size(info: ModelInfo, size: tuple[int, int], method: Method) -> tuple[int, int]:
    """(width, height) of what the model draws."""
    if not isinstance(method, Baseline):
        return size
    height, width = method.drawn_size(info, (size[1], size[0]))
    return width, height


def _bucket(info: ModelInfo, name: str, size: tuple[int, int]) -> Bucket:
    try:
        return info.bucket(size[1], size[0])
    except UserError as error:
        raise SpecError(f"size {size[0]}x{size[1]} with model {name}: {error}", "sizes", size) from error


def _fitting(info: ModelInfo, given: Method) -> Method:
    """The method for this model. Raises SpecError where its options do not fit."""
    try:
        if not isinstance(given, Baseline):
            return info.scaling(given)
        given.check(info)
        return given
    except UserError as error:
        raise SpecError(str(error), "methods", given) from error


def _chunks(program: Program, drawn: tuple[int, int], cells: Sequence[Cell], first: int) -> list[Chunk]:
    places = list(_drawings(cells).values())
    groups = [places[start : start + program.batch] for start in range(0, len(places), program.batch)]
    return [
        Chunk(first + number, program, *drawn, tuple(chain.from_iterable(group))) for number, group in enumerate(groups)
    ]
