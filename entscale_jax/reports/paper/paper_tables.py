"""The tables of a run as the paper has them: a figure for each size and method, its interval, and what it is of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ...errors import UserError
from ...metrics.extractor import Extractor
from ...metrics.figure import Figure, bootstrap_interval, paired_interval
from ...metrics.frechet import fid
from ...metrics.kernel import kid_difference, kid_interval
from ...statistics import Interval, interval
from ..rating.answers import FOLDER as RATINGS
from ..rating.ratings import RatingAgreement, rating_tables, read_ratings
from ..records import Pair, Run, Sample, Size
from .features import FeatureSet, Group, gather_features
from .memory_table import NOT_RECORDED, memory_table
from .paper_table import Entry, PaperTable, make_table
from .patch_tables import patch_tables
from .published import published
from .references import Reference, check_large_enough, own_reference, picture_reference, run_reference
from .scorers import scored_by, scorer_notes, values_by_scorer

Values = Mapping[Pair, float]
OpenExtractor = Callable[[str, Run], Extractor]
"""An extractor by its identity, for a run."""


@dataclass(frozen=True)
class _Column:
    title: str
    digits: int
    value: Callable[[Sample], float | None]


def _objects(index: int, factor: float = 1.0) -> Callable[[Sample], float | None]:
    return lambda sample: None if sample.objects is None else factor * sample.objects[index]


COLUMNS = {
    "clip": _Column(
        "CLIP score, the cosine of image and caption, higher is better", 4, lambda one: one.clip.get("clip")
    ),
    "scenes_clip": _Column(
        "Cosine of image and caption by the scenes' contrastive model, higher is better",
        4,
        lambda one: one.clip.get("scenes_clip"),
    ),
    "objects_exact": _Column(
        "Images that hold what the caption says and nothing more, per cent", 1, _objects(0, 100.0)
    ),
    "objects_missing": _Column("Objects that are missing, an image", 2, _objects(1)),
    "objects_extra": _Column("Objects too many, an image", 2, _objects(2)),
    "seconds": _Column("Seconds an image, without compiling, in the batches of the run", 3, lambda one: one.seconds),
}
"""Metrics that have a value a picture, in the order of the tables."""
DISTANCES = {
    ("", "fid"): ("FID, lower is better", 3),
    ("", "kid"): ("KID x 1000, lower is better", 3),
    ("scenes", "fid"): ("Frechet distance of the scenes' features, lower is better", 3),
    ("scenes", "kid"): ("Kernel distance x 1000 of the scenes' features, lower is better", 3),
}
KID_UNIT = 1000.0


def make_tables(
    run: Run,
    reference: Path | None = None,
    open_extractor: OpenExtractor | None = None,
    column: str = "image",
    patches: Mapping[str, Callable[[], Extractor]] = MappingProxyType({}),
) -> list[PaperTable]:
    """Every table that the run's metrics allow, distances first.

    Args:
        run: drawn, whole or in part.
        reference: a folder of pictures, a Parquet file, or a run; None compares with the run's own pictures at the
            training size.
        open_extractor: makes what saw the run's pictures, for those of a folder or a Parquet file.
        column: of a Parquet file, the one with the pictures.
        patches: metrics of crops to measure now, `patch_figures.PATCHES`, and what opens the extractor of each.

    Raises UserError where nothing was drawn, nothing was measured, or the reference does not fit.
    """
    if not any(sample.error is None for sample in run.samples):
        raise UserError(f"run {run.folder} has no drawn cell: go on with its sweep")
    tables = [
        *_distance_tables(run, reference, open_extractor, column),
        *patch_tables(run, reference, column, patches),
        *_column_tables(run),
        *memory_table(run),
        *_rating_table(run),
    ]
    if all(table.metric in ("seconds", "memory") for table in tables):
        raise UserError(
            f"run {run.folder} measured nothing that a table is made of: draw it with metrics such as objects, "
            "scenes_fid, scenes_kid, scenes_clip, fid, kid or clip, or have its pictures rated: entscale rate"
        )
    return tables


def _column_tables(run: Run) -> list[PaperTable]:
    tables = []
    for name, column in COLUMNS.items():
        for scorer, values in values_by_scorer(run, name, column.value).items():
            entries = {
                (size, method): _column_entry(
                    name, scorer, size, method, found, values.get((size, run.methods[0]), {}), run
                )
                for (size, method), found in values.items()
            }
            one = make_table(name, column.title, column.digits, run, entries)
            tables.append(replace(one, notes=(*one.notes, *scorer_notes(name, scorer))))
    if tables and tables[-1].metric == "seconds" and not run.memory:
        tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, NOT_RECORDED))
    return tables


def _column_entry(name: str, scorer: str, size: Size, method: str, values: Values, base: Values, run: Run) -> Entry:
    mean = bootstrap_interval(np.array(list(values.values())))
    both = [pair for pair in values if pair in base]
    difference = None
    if method != run.methods[0] and both:
        difference = paired_interval(np.array([values[pair] for pair in both]), np.array([base[pair] for pair in both]))
    figure = scored_by(Figure(name=name, value=mean.mean, count=len(values), interval=mean), scorer)
    return Entry(
        size=size, method=method, figure=figure, difference=difference, published=published(name, size, method)
    )


def _rating_table(run: Run) -> list[PaperTable]:
    if not any((run.folder / RATINGS).glob("*.jsonl")):
        return []
    scores, broken = read_ratings(run.folder)
    found = rating_tables(run, scores)
    differences = {(row.size, row.method): row.difference for row in found.differences}
    sizes = {run.label(size): size for size in run.sizes}
    entries = {
        (sizes[row.size], row.method): Entry(
            size=sizes[row.size],
            method=row.method,
            figure=Figure(name="rating", value=row.mean.mean, count=row.mean.count, interval=row.mean),
            difference=differences.get((row.size, row.method)),
            published=published("rating", sizes[row.size], row.method),
        )
        for row in found.means
    }
    if not entries:
        return []
    one = make_table("rating", "Rating by people, 1 to 10, higher is better", 2, run, entries)
    raters = f"{len(scores)} raters, {sum(row.answers for row in found.means)} answers"
    return [replace(one, notes=(*one.notes, raters, *map(_agreement, found.agreement), *broken))]


def _agreement(row: RatingAgreement) -> str:
    alpha = "no two raters rated the same picture" if row.alpha is None else interval(row.alpha, 2)
    return f"Krippendorff's alpha ({row.metric}) {f'at {row.size}' if row.size else 'of all'}: {alpha}"


def _distance_tables(
    run: Run, place: Path | None, open_extractor: OpenExtractor | None, column: str
) -> list[PaperTable]:
    tables = []
    asked = {str(metric) for metric in run.spec.get("metrics", ())}
    for identity, sets in gather_features(run).items():
        prefix = "scenes" if identity.startswith("scenes") else ""
        references = {model: _find(run, identity, sets, model, place, open_extractor, column) for model in run.models}
        for kind in ("fid", "kid"):
            name = f"{prefix}_{kind}" if prefix else kind
            if name not in asked:
                continue
            for reference in references.values():
                check_large_enough(reference, name)
            make = _fid_entry if kind == "fid" else _kid_entry
            entries = {
                group: make(name, group, sets, references[group[0].model], identity, run)
                for group in product(run.sizes, run.methods)
                if group in sets and group[0] != references[group[0].model].own and sets[group].moments.count > 1
            }
            if entries:
                tables.append(make_table(name, *DISTANCES[prefix, kind], run, entries))
    return tables


def _find(
    run: Run,
    identity: str,
    sets: Mapping[Group, FeatureSet],
    model: str,
    place: Path | None,
    open_extractor: OpenExtractor | None,
    column: str,
) -> Reference:
    if place is None:
        return own_reference(run, sets, model)
    if (place / "spec.yaml").is_file():
        return run_reference(place, identity, model)
    if open_extractor is None:
        raise UserError(f"no extractor {identity} is at hand for {place}")
    return picture_reference(place, open_extractor(identity, run), run.folder / "references", column)


def _fid_entry(
    name: str, group: Group, sets: Mapping[Group, FeatureSet], reference: Reference, identity: str, run: Run
) -> Entry:
    value = fid(sets[group].moments, reference.moments)
    base = group[0], run.methods[0]
    comparable = base != group and base in sets and sets[base].moments.count == sets[group].moments.count
    difference = value - fid(sets[base].moments, reference.moments) if comparable else None
    return Entry(
        size=group[0],
        method=group[1],
        figure=_figure(name, value, sets[group], reference, identity, None),
        difference=difference,
        published=published(name, *group),
    )


def _kid_entry(
    name: str, group: Group, sets: Mapping[Group, FeatureSet], reference: Reference, identity: str, run: Run
) -> Entry:
    mine = sets[group]
    found = kid_interval(mine.features, reference.features).scaled(KID_UNIT)
    base = sets.get((group[0], run.methods[0]))
    difference = None
    if base is not None and group[1] != run.methods[0]:
        both = sorted(pair for pair in mine.kept if pair in base.kept)
        if len(both) > 1:
            first, second = (np.stack([one.kept[pair] for pair in both]) for one in (mine, base))
            difference = kid_difference(first, second, reference.features).scaled(KID_UNIT)
    return Entry(
        size=group[0],
        method=group[1],
        figure=_figure(name, found.mean, mine, reference, identity, found),
        difference=difference,
        published=published(name, *group),
    )


def _figure(
    name: str, value: float, mine: FeatureSet, reference: Reference, identity: str, interval: Interval | None
) -> Figure:
    extractor, _, resize = identity.partition(", resize ")
    return Figure(
        name=name,
        value=value,
        count=mine.moments.count,
        reference=reference.name,
        reference_count=reference.moments.count,
        resize=resize,
        extractor=extractor,
        interval=interval,
    )
