"""UNets of the published sizes, random weights, one call in PyTorch and one here: the table of docs/parity-full.md.

`python tests/parity/full_size.py docs/parity-full.md [--models "SD 1.5,SDXL"]`, minutes to an hour a model. What is
measured is kept in runs/parity-full: a stopped run goes on with the next model, and what passed is not measured again.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import full_size_steps as steps
from full_size_steps import Size
from published import SIZES, UNETS

from entscale_jax.buckets import token_counts
from entscale_jax.environment import versions
from entscale_jax.errors import UserError
from entscale_jax.marks import find_section, replace_section, table
from entscale_jax.models import UNet2DConditionConfig
from entscale_jax.parity.bounds import BOUNDS, CONTROL, CONTROL_MULTIPLIER
from entscale_jax.scales import entropy_multiplier

SECTION = "parity-full"
KEPT = Path("runs") / "parity-full"
BOUND = BOUNDS["UNet", "float32"].limit

_PACKAGES = ("jax", "flax", "torch", "diffusers")
Run = Callable[..., Any]
"""Calls a step with its arguments."""


@dataclass(frozen=True)
class Model:
    """What is compared: a UNet's config.json, and sizes in pixels."""

    name: str
    config: Mapping[str, Any]
    sizes: tuple[Size, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with all that decides what is compared; not with our code, which a repetition is for."""
        told = [self.config, self.sizes, steps.SHARPEN, versions(_PACKAGES)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One call. Errors are relative: the largest difference over the largest value of PyTorch's output."""

    size: str
    rule: str
    error: float
    other_rule: float | None
    """The control, against PyTorch under the other rule; None where the rules are too near for one."""
    torch_seconds: float
    seconds: float
    """Ours, compiling included."""

    @property
    def passed(self) -> bool:
        """False for an error that is no number, too."""
        missed = self.other_rule is None or self.other_rule >= CONTROL * self.error
        return bool(self.error <= BOUND and missed)


@dataclass(frozen=True)
class Measured:
    """A model's rows, and what they took."""

    fingerprint: str
    rows: list[Row]
    parameters: int
    margin: float
    """See `Expected`."""
    write_seconds: float
    load_seconds: float
    torch_peak: int
    peak: int
    """Bytes at most of PyTorch's process and of ours."""

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)


def published(names: Sequence[str] = tuple(SIZES)) -> list[Model]:
    """The models of those names. Raises UserError for one that is unknown."""
    if unknown := [name for name in names if name not in SIZES]:
        raise UserError(f"unknown model {unknown[0]!r}: there are {', '.join(SIZES)}")
    return [Model(name, UNETS[name], SIZES[name]) for name in names]


def main(document: Path, models: Sequence[Model], *, kept: Path = KEPT, run: Run | None = None) -> int:
    """Measures the models that have no kept rows, and writes section `parity-full` of `document` after each.

    Returns the exit status, 1 where a row failed. Raises UserError, at once, where the document has no such section.
    """
    find_section(document, SECTION)
    kept.mkdir(parents=True, exist_ok=True)
    for model in models:
        if (done := read_kept(kept).get(model.name)) and done.passed and done.fingerprint == model.fingerprint:
            print(f"{model.name}: kept from {kept / 'rows.json'}", flush=True)
        else:
            keep(kept, model.name, measure(model, kept / "weights", run or in_process))
        replace_section(document, SECTION, section(models, read_kept(kept)))
    return 0 if all(read_kept(kept)[model.name].passed for model in models) else 1


def measure(model: Model, folder: Path, run: Run) -> Measured:
    """The three steps, one after the other; `folder` is theirs alone, and gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        print(f"{model.name}: PyTorch writes random weights", flush=True)
        written: steps.Written = run(steps.write, model.config, folder)
        print(f"{model.name}: PyTorch, {len(model.sizes)} sizes, {len(steps.RULES)} rules", flush=True)
        expected: steps.Expected = run(steps.expect, folder, model.sizes)
        print(f"{model.name}: JAX, the same calls", flush=True)
        compared: steps.Compared = run(steps.compare, folder, model.sizes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(model, *each) for each in zip(compared.errors, expected.seconds, strict=True)]
    for row in rows:
        print(f"{model.name}: {' | '.join(_cells(row))}", flush=True)
    return Measured(
        model.fingerprint,
        rows,
        written.parameters,
        expected.margin,
        written.seconds,
        compared.load_seconds,
        expected.peak,
        compared.peak,
    )


def in_process(step: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a step in a process of its own, which gives all memory back. Raises UserError where that was killed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(step, *arguments).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of step {step.__name__!r} was killed, probably for want of memory: free some, or leave "
                "the model out with --models"
            ) from None


def rules_apart(config: Mapping[str, Any], size: Size) -> bool:
    """Whether any level's multiplier is far enough from 1 for a control."""
    unet, (width, height) = UNet2DConditionConfig.from_json(config), size
    tokens = token_counts((height // steps.FACTOR, width // steps.FACTOR), unet.levels)
    multipliers = (entropy_multiplier(tokens[level], unet.train_tokens[level]) for level in unet.attention_levels)
    return any(abs(multiplier - 1) >= CONTROL_MULTIPLIER for multiplier in multipliers)


def read_kept(folder: Path) -> dict[str, Measured]:
    """What earlier runs measured."""
    file = folder / "rows.json"
    raw = json.loads(file.read_text()) if file.is_file() else {}
    return {name: Measured(**{**each, "rows": [Row(**row) for row in each["rows"]]}) for name, each in raw.items()}


def keep(folder: Path, name: str, measured: Measured) -> None:
    """Adds a model to what is kept, at once or not at all."""
    everything = {**read_kept(folder), name: measured}
    part = folder / "rows.json.part"
    part.write_text(json.dumps({each: asdict(found) for each, found in everything.items()}, indent=2))
    part.replace(folder / "rows.json")


def section(models: Sequence[Model], kept: Mapping[str, Measured]) -> list[str]:
    """The lines of the document: of `models` and of all published ones, whatever was measured as they are now."""
    known = {model.name: model for model in [*published(), *models]}
    found = {name: kept[name] for name, model in known.items() if _is_of(kept.get(name), model)}
    waiting = [name for name in known if name not in found]
    return [
        f"With {', '.join(f'{name} {version}' for name, version in versions(_PACKAGES).items())}; {_machine()}.",
        *([f"Not measured yet: {', '.join(waiting)}."] if waiting else []),
        "",
        *table(
            ("model", "size", "rule", "error", "other rule", "PyTorch, s", "here, s"),
            [(name, *_cells(row)) for name, each in found.items() for row in each.rows],
        ),
        "",
        *table(
            ("model", "parameters", "margin, nats", "written in, s", "loaded in, s", "PyTorch, GB", "here, GB"),
            [(name, *_costs(each)) for name, each in found.items()],
        ),
    ]


def _is_of(measured: Measured | None, model: Model) -> bool:
    return measured is not None and measured.fingerprint == model.fingerprint


def _row(model: Model, error: steps.Error, torch_seconds: float) -> Row:
    other_rule = error.other_rule if rules_apart(model.config, error.size) else None
    width, height = error.size
    return Row(f"{width}x{height}", error.rule, error.error, other_rule, torch_seconds, error.seconds)


def _cells(row: Row) -> tuple[str, ...]:
    control = "" if row.other_rule is None else f"{row.other_rule:.1e}"
    failed = "" if row.passed else " FAILED"
    return row.size, row.rule, f"{row.error:.1e}{failed}", control, f"{row.torch_seconds:.0f}", f"{row.seconds:.0f}"


def _costs(measured: Measured) -> tuple[str, ...]:
    return (
        f"{measured.parameters:,}",
        f"{measured.margin:.2f}",
        f"{measured.write_seconds:.0f}",
        f"{measured.load_seconds:.0f}",
        f"{measured.torch_peak / 1e9:.1f}",
        f"{measured.peak / 1e9:.1f}",
    )


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"a CPU of {os.cpu_count()} cores, {memory:.0f} GB of memory"


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description="Compares UNets of the published sizes with PyTorch.")
    _parser.add_argument("document", type=Path, help="Markdown with the section's marks, such as docs/parity-full.md")
    _parser.add_argument("--models", default=",".join(SIZES), help="names with commas between them (default: all)")
    _options = _parser.parse_args()
    try:
        sys.exit(main(_options.document, published(_options.models.split(","))))
    except UserError as _error:
        _parser.exit(2, f"{_error}\n")
