"""Device memory by size and method, as the paper's Tables 4 and 5 have it: what the largest compiled program needs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...metrics.figure import Figure
from ..records import Run, Size
from .features import Group
from .paper_table import Entry, PaperTable, make_table
from .published import published

MIB = 2.0**20
TITLE = "Device memory, MiB: what the largest program of a size and method needs"
NOT_RECORDED = "device memory: not recorded by this run; --memory compiles its programs again and reads what they need"


@dataclass(frozen=True, kw_only=True)
class Need:
    """Of the largest program that draws a size by a method."""

    program: str
    needed: int
    """Bytes: weights that it reads, inputs, outputs and temporaries."""
    batch: int
    """Images that a call draws."""
    device_peak: int | None
    """Bytes that the device's allocator had in use at its most, whatever was drawn before; None where it can't tell."""


def memory_table(run: Run) -> list[PaperTable]:
    """The table of what programs need; none where it was not recorded."""
    needs = find_needs(run)
    if not needs:
        return []
    entries = {group: _entry(group, needs, run) for group in needs}
    drawn = [group for group in product(run.sizes, run.methods) if run.of(*group)]
    return [make_table("memory", TITLE, 1, run, entries, _notes(run, needs, drawn))]


def _entry(group: Group, needs: Mapping[Group, Need], run: Run) -> Entry:
    size, method = group
    need, base = needs[group], needs.get((size, run.methods[0]))
    difference = None
    if base is not None and base is not need and base.batch == need.batch:
        difference = (need.needed - base.needed) / MIB
    return Entry(
        size=size,
        method=method,
        figure=Figure(name="memory", value=need.needed / MIB, count=need.batch),
        difference=difference,
        published=published("memory", size, method),
    )


def find_needs(run: Run) -> Mapping[Group, Need]:
    """The memory of each size and method of which it was recorded; of the largest batch that was drawn."""
    needs: dict[Group, Need] = {}
    for size, method in product(run.sizes, run.methods):
        found = [need for entry in run.memory if _serves(entry, size, method) and (need := _need(entry)) is not None]
        if found:
            needs[size, method] = max(found, key=lambda need: need.batch)
    return needs


def _notes(run: Run, needs: Mapping[Group, Need], drawn: Sequence[Group]) -> list[str]:
    """What the figures are, of how many images, and which of them are missing."""
    notes = [
        "weights that the program reads, inputs, outputs and temporaries, as the compiler laid them out beforehand: "
        f"exact, and no allocator's peak; the largest is {_listed(sorted({need.program for need in needs.values()}))}",
        f"images a call: {_by_batch(run, needs)}",
    ]
    if run.memory_made:
        versions = run.memory_made.get("versions", {})
        notes.append(
            f"not recorded by the workers that drew, but compiled again on {run.memory_made.get('platform')} with "
            f"jaxlib {versions.get('jaxlib')}"
        )
    peaks = [f"{_name(run, group)} {need.device_peak / MIB:,.0f}" for group, need in needs.items() if need.device_peak]
    if peaks:
        notes.append(
            "most that the device's allocator had in use, an upper bound as a worker keeps what it drew before: "
            f"{', '.join(peaks)} MiB"
        )
    missing = [_name(run, group) for group in drawn if group not in needs]
    if missing:
        notes.append(f"not recorded by this run: {', '.join(missing)}")
    if any(size.model.rstrip("/").endswith("stable-diffusion-2-1-base") for size, _ in needs):
        notes.append("the paper's: of one A100; it does not say how many images at once, nor how it was measured")
    return notes


def _serves(entry: Mapping[str, Any], size: Size, method: str) -> bool:
    return (entry["model"], entry["method"]) == (size.model, method) and str(size) in entry.get("sizes", ())


def _need(entry: Mapping[str, Any]) -> Need | None:
    programs = entry.get("memory") or {}
    if not programs:
        return None
    name = max(programs, key=lambda program: programs[program]["needed"])
    peak = entry.get("device_peak")
    return Need(program=name, needed=programs[name]["needed"], batch=entry["batch"], device_peak=peak)


def _by_batch(run: Run, needs: Mapping[Group, Need]) -> str:
    """Images a call: the usual count, and which have another."""
    counts = Counter(need.batch for need in needs.values())
    usual, *others = sorted(counts, key=lambda batch: (-counts[batch], -batch))
    exceptions = [
        f"{batch} of {', '.join(_name(run, group) for group, need in needs.items() if need.batch == batch)}"
        for batch in others
    ]
    return f"{usual}, but {' and '.join(exceptions)}" if exceptions else str(usual)


def _name(run: Run, group: Group) -> str:
    return f"{run.label(group[0])} {group[1]}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
