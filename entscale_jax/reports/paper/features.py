"""What extractors saw of a run's pictures, read a part at a time, and gathered by size and method."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from ...errors import UserError
from ...metrics.kernel import MOST
from ...metrics.moments import Moments
from ..records import Pair, Run, Sample, Size

AT_ONCE = 1024
"""Pictures whose features are in memory at a time, beside those that are kept."""
Group = tuple[Size, str]
"""A size and a method."""


class Seen(NamedTuple):
    """Features of some cells by one extractor."""

    extractor: str
    cells: Sequence[str]
    features: np.ndarray
    """float32[cells, width]"""


@dataclass
class FeatureSet:
    """Of the pictures of one size and method: moments of all, and features of `MOST` for kernel distances."""

    moments: Moments
    kept: dict[Pair, np.ndarray] = field(default_factory=dict)

    @property
    def features(self) -> np.ndarray:
        """Those that were kept, [count, width]."""
        return np.stack([self.kept[pair] for pair in sorted(self.kept)])


def read_features(run: Run) -> Iterator[Seen]:
    """The features of a run's drawn cells. Raises UserError for a file that can't be read."""
    drawn = [sample.cell for sample in run.samples if sample.error is None]
    parts: dict[str, set[str]] = {}
    for cell in drawn:
        if cell in run.parts:
            parts.setdefault(run.parts[cell], set()).add(cell)
    for part, cells in sorted(parts.items()):
        yield from _of_part(run.folder / "features" / part, cells)
    yield from _of_rows(run.folder / "rows", [cell for cell in drawn if cell not in run.parts])


def gather_features(run: Run) -> dict[str, dict[Group, FeatureSet]]:
    """Extractor -> size and method -> its features, in memory that does not grow with the pictures."""
    samples = {sample.cell: sample for sample in run.samples}
    chosen = _chosen(run)
    found: dict[str, dict[Group, FeatureSet]] = {}
    for seen in read_features(run):
        of_extractor = found.setdefault(seen.extractor, {})
        for group, rows in _by_group(seen, samples).items():
            features = seen.features[rows]
            if group not in of_extractor:
                of_extractor[group] = FeatureSet(Moments.empty(features.shape[1], extractor=seen.extractor))
            found_set = of_extractor[group]
            found_set.moments = found_set.moments.add(features)
            for row in rows:
                pair = samples[seen.cells[row]].pair
                if pair in chosen[group]:
                    found_set.kept[pair] = seen.features[row].copy()  # A view would hold its whole part.
    return found


def _by_group(seen: Seen, samples: Mapping[str, Sample]) -> dict[Group, list[int]]:
    groups: dict[Group, list[int]] = {}
    for row, cell in enumerate(seen.cells):
        groups.setdefault((samples[cell].size, samples[cell].method), []).append(row)
    return groups


def _chosen(run: Run) -> dict[Group, set[Pair]]:
    """`MOST` drawn pairs of each size and method: the same of all that drew the same."""
    pairs: dict[Group, list[Pair]] = {}
    for sample in run.samples:
        if sample.error is None:
            pairs.setdefault((sample.size, sample.method), []).append(sample.pair)
    return {group: set(sorted(found, key=_shuffled)[:MOST]) for group, found in pairs.items()}


def _shuffled(pair: Pair) -> bytes:
    """A place for a pair that is random and always the same, so that all methods keep the same pairs."""
    return hashlib.sha256(repr(pair).encode()).digest()


def _of_part(path: Path, cells: set[str]) -> Iterator[Seen]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=AT_ONCE):
                rows = [row for row in batch.to_pylist() if row["cell"] in cells]
                yield from _stacked([(row["extractor"], row["cell"], row["features"]) for row in rows])
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): remove it and give the sweep's command again") from error


def _of_rows(folder: Path, cells: Sequence[str]) -> Iterator[Seen]:
    for start in range(0, len(cells), AT_ONCE):
        found: list[tuple[str, str, Any]] = []
        for cell in cells[start : start + AT_ONCE]:
            try:
                row = json.loads((folder / f"{cell}.json").read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            found += [(extractor, cell, features) for extractor, features in (row.get("features") or {}).items()]
        yield from _stacked(found)


def _stacked(found: Sequence[tuple[str, str, Any]]) -> Iterator[Seen]:
    for extractor in dict.fromkeys(name for name, _, _ in found):
        mine = [(cell, features) for name, cell, features in found if name == extractor]
        yield Seen(extractor, [cell for cell, _ in mine], np.array([features for _, features in mine], np.float32))
