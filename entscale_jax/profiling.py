"""Where the time of a picture goes: a trace of JAX's profiler, and a table of it by module and kind of operation."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
from rich.console import Console
from rich.table import Table

from .errors import UserError
from .pipeline import TextToImage

_MODULES = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+|conv_out|resnet|attn1|attn2|ff)(?=/)")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", re.MULTILINE)


@dataclass(frozen=True)
class Profile:
    """Seconds of one picture."""

    wall: float
    """By the clock, the profiler on."""
    operations: Mapping[tuple[str, str, str], float]
    """(program, module, operation) -> seconds of the device, or of all threads of a CPU, so that they can be more than
    the clock's."""


def profile_picture(
    model: str, out: Path, *, size: tuple[int, int] | None, steps: int, rule: str, dtype: str
) -> Profile:
    """Draws a picture twice, the second time under the profiler, whose trace goes to `out`.

    Args:
        model: as `TextToImage.from_pretrained` takes it.
        out: a folder; the trace is a new one in it.
        size: (height, width) in pixels; the training size if None.
        steps: of the model's sampler.
        rule: of self-attention.
        dtype: of weights and computation.

    Raises UserError where the picture can't be drawn or `out` can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None
    pipe = TextToImage.from_pretrained(model, dtype=dtype)
    height, width = size or pipe.info.train_size

    def draw() -> None:
        pipe("a red circle and a blue square", height=height, width=width, steps=steps, rule=rule)

    # A program read from the cache has the names of the code that it was compiled from, which may be another's.
    with _no_cache():
        draw()
    with jax.profiler.trace(str(out)):
        start = time.perf_counter()
        draw()
        wall = time.perf_counter() - start
    names = {}
    for program in pipe.programs.cache.compiled.values():
        text = cast(Any, program).as_text()
        module = text.split(maxsplit=2)[1].rstrip(",")
        names.update({(module, name): path for name, path in _OPERATION.findall(text)})
    seconds: dict[tuple[str, str, str], float] = {}
    for module, name, spent in _events(max(out.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)):
        if (module, name) in names:
            path = names[module, name]
            key = module.removeprefix("jit_"), _module(path), path.rsplit("/", 1)[-1]
            seconds[key] = seconds.get(key, 0.0) + spent
    return Profile(wall, seconds)


class _no_cache:
    def __enter__(self) -> None:
        self.before = jax.config.values["jax_enable_compilation_cache"]
        jax.config.update("jax_enable_compilation_cache", False)

    def __exit__(self, *_: object) -> None:
        jax.config.update("jax_enable_compilation_cache", self.before)


def _events(trace: Path) -> Iterator[tuple[str, str, float]]:
    """Program, name and seconds of every event of a program."""
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                found = dict(event.stats)
                if "hlo_module" in found:
                    yield str(found["hlo_module"]), event.name, event.duration_ns / 1e9


def _module(path: str) -> str:
    """`up_blocks.0/attn1` of an operation's path through the scopes of the models."""
    return "/".join(_MODULES.findall(path)) or "rest"


def print_profile(profile: Profile, console: Console, most: int = 25) -> None:
    """Prints the modules, and the kinds of operations within each program."""
    total = sum(profile.operations.values())
    console.print(f"{profile.wall:.3f} s by the clock, {total:.3f} s of operations")
    for title, key in (("module", slice(0, 2)), ("operation", slice(0, 3, 2))):
        table = Table("program", title, "seconds", "share")
        sums: dict[tuple[str, ...], float] = {}
        for names, seconds in profile.operations.items():
            sums[names[key]] = sums.get(names[key], 0.0) + seconds
        for names, seconds in sorted(sums.items(), key=lambda item: -item[1])[:most]:
            table.add_row(*names, f"{seconds:.4f}", f"{100 * seconds / total:.1f}%")
        console.print(table)
