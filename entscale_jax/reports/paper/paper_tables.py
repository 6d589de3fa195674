"""The tables of a run as the paper has them: a figure for each size and method, its interval, and what it is of."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ...errors import UserError
from ...metrics.extractor import Extractor
from ...metrics.figure import Figure, bootstrap_interval, paired_interval
from ...metrics.frechet import fid
from ...metrics.kernel import FEWEST, MOST, kid_difference, kid_interval
from ...metrics.sets import bias_remark
from ...statistics import Interval, interval
from ..rating.answers import FOLDER as RATINGS
from ..rating.ratings import RatingAgreement, rating_tables, read_ratings
from ..records import Pair, Run, Sample, Size
from .features import FeatureSet, Group, gather_features
from .memory_table import NOT_RECORDED, find_needs, memory_table
from .paper_table import Entry, PaperTable, make_table
from .patch_figures import PATCHES
from .patch_tables import patch_tables
from .published import published
from .references import Reference, check_large_enough, own_reference, picture_reference, run_reference

Values = Mapping[Pair, float]
OpenExtractor = Callable[[str, Run], Extractor]
"""An extractor by its identity, for a run."""
Maker = Callable[[], list[PaperTable]]
"""Makes the table of a metric. Raises UserError where it can't be made."""


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
COMPARED = ("fid", "kid", "scenes_fid", "scenes_kid", *PATCHES)
"""Metrics of pictures beside a reference."""
KID_UNIT = 1000.0
_KID_REMARK = (
    f"the unbiased estimate over all pairs of pictures, of {MOST:,} at random where a set has more, not a mean over "
    f"subsets; intervals from {FEWEST} pictures on"
)


def to_stderr(line: str) -> None:
    """Says what was left out where the tables themselves do not go."""
    print(line, file=sys.stderr)


def make_tables(
    run: Run,
    reference: Path | None = None,
    open_extractor: OpenExtractor | None = None,
    column: str = "image",
    patches: Mapping[str, Callable[[], Extractor]] = MappingProxyType({}),
    *,
    only: Sequence[str] = (),
    needed: Sequence[str] = (),
    say: Callable[[str], None] = to_stderr,
) -> list[PaperTable]:
    """Every table that the run's metrics allow, distances first.

    Args:
        run: drawn, whole or in part.
        reference: a folder of pictures, a Parquet file, or a run; None compares with the run's own pictures at the
            training size.
        open_extractor: makes what saw the run's pictures, for those of a folder or a Parquet file.
        column: of a Parquet file, the one with the pictures.
        patches: metrics of crops to measure now, `patch_figures.PATCHES`, and what opens the extractor of each.
        only: metrics whose tables are wanted, so that no other is made; all if empty.
        needed: metrics that are asked for beside `only`.
        say: is told of a table that can't be made and was not asked for.

    Raises UserError where nothing was drawn, nothing was measured, a table that was asked for can't be made, or the
    reference serves none.
    """
    if not any(sample.error is None for sample in run.samples):
        raise UserError(f"run {run.folder} has no drawn cell: go on with its sweep")
    makers = _makers(run, reference, open_extractor, column, patches)
    for name in only:
        if name not in makers:
            raise UserError(f"--only {name!r} is none of the run's tables: {', '.join(makers)}")
    tables: list[PaperTable] = []
    failed: dict[str, UserError] = {}
    for name, make in makers.items():
        if only and name not in only:
            continue
        try:
            made = make()
        except UserError as error:
            if name in only or name in needed:
                raise
            failed[name] = error
            continue
        if name in only and name not in needed and not made:
            raise UserError(f"--only {name}: run {run.folder} has no pictures that this table is of")
        tables += made
    if reference is not None:
        _check_compared(run, reference, tables, failed)
    for name, error in failed.items():
        say(f"no table of {name}: {error}")
    if not (only or failed) and all(table.metric in ("seconds", "memory") for table in tables):
        raise UserError(
            f"run {run.folder} measured nothing that a table is made of: draw it with metrics such as objects, "
            "scenes_fid, scenes_kid, scenes_clip, fid, kid or clip, or have its pictures rated: entscale rate"
        )
    return tables


def _makers(
    run: Run,
    reference: Path | None,
    open_extractor: OpenExtractor | None,
    column: str,
    patches: Mapping[str, Callable[[], Extractor]],
) -> dict[str, Maker]:
    """What makes the table of each metric that the run has something of, in the order of the tables."""
    makers: dict[str, Maker] = {
        **_distance_makers(run, reference, open_extractor, column),
        **{name: partial(patch_tables, run, reference, column, {name: opener}) for name, opener in patches.items()},
    }
    for name in COLUMNS:
        if any(_column_value(name, sample) is not None for sample in run.samples):
            makers[name] = partial(_column_tables, run, name)
    if find_needs(run):
        makers["memory"] = partial(memory_table, run)
    if any((run.folder / RATINGS).glob("*.jsonl")):
        makers["rating"] = partial(_rating_table, run)
    return makers


def _check_compared(run: Run, reference: Path, tables: Sequence[PaperTable], failed: Mapping[str, UserError]) -> None:
    """Raises UserError where no table is of pictures beside the reference."""
    if any(table.metric in COMPARED for table in tables):
        return
    for name, error in failed.items():
        if name in COMPARED:
            raise error
    raise UserError(
        f"--reference {reference} is read by none of the tables of run {run.folder} that are asked for: these are "
        f"{', '.join(COMPARED)}"
    )


def _column_value(name: str, sample: Sample) -> float | None:
    return COLUMNS[name].value(sample) if sample.error is None else None


def _column_tables(run: Run, name: str) -> list[PaperTable]:
    column = COLUMNS[name]
    values = {
        (size, method): {
            pair: value
            for pair, sample in run.of(size, method).items()
            if (value := _column_value(name, sample)) is not None
        }
        for size in run.sizes
        for method in run.methods
    }
    entries = {
        (size, method): _column_entry(name, size, method, found, values.get((size, run.methods[0]), {}), run)
        for (size, method), found in values.items()
        if found
    }
    one = make_table(name, column.title, column.digits, run, entries)
    if name == "seconds" and not run.memory:
        one = replace(one, notes=(*one.notes, NOT_RECORDED))
    return [one]


def _column_entry(name: str, size: Size, method: str, values: Values, base: Values, run: Run) -> Entry:
    mean = bootstrap_interval(np.array(list(values.values())))
    both = [pair for pair in values if pair in base]
    difference = None
    if method != run.methods[0] and both:
        difference = paired_interval(np.array([values[pair] for pair in both]), np.array([base[pair] for pair in both]))
    figure = Figure(name=name, value=mean.mean, count=len(values), interval=mean)
    return Entry(
        size=size,
        method=method,
        figure=figure,
        difference=difference,
        published=published(name, size, method, len(values)),
    )


def _rating_table(run: Run) -> list[PaperTable]:
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
        raise UserError("; ".join([f"the ratings of run {run.folder} are of none of its pictures", *broken]))
    one = make_table("rating", "Rating by people, 1 to 10, higher is better", 2, run, entries)
    raters = f"{len(scores)} raters, {sum(row.answers for row in found.means)} answers"
    return [replace(one, notes=(*one.notes, raters, *map(_agreement, found.agreement), *broken))]


def _agreement(row: RatingAgreement) -> str:
    alpha = "no two raters rated the same picture" if row.alpha is None else interval(row.alpha, 2)
    return f"Krippendorff's alpha ({row.metric}) {f'at {row.size}' if row.size else 'of all'}: {alpha}"


def _distance_makers(
    run: Run, place: Path | None, open_extractor: OpenExtractor | None, column: str
) -> dict[str, Maker]:
    """Of the distances that the sweep asked for; features are read and references looked at once for all of them."""
    asked = {str(metric) for metric in run.spec.get("metrics", ())}
    gathered = cache(lambda: gather_features(run))

    @cache
    def find(identity: str, model: str) -> Reference:
        return _find(run, identity, gathered()[identity], model, place, open_extractor, column)

    return {
        name: partial(_distance_tables, run, prefix, kind, gathered, find)
        for prefix, kind in DISTANCES
        if (name := _distance_name(prefix, kind)) in asked
    }


def _distance_name(prefix: str, kind: str) -> str:
    return f"{prefix}_{kind}" if prefix else kind


def _distance_tables(
    run: Run,
    prefix: str,
    kind: str,
    gathered: Callable[[], Mapping[str, Mapping[Group, FeatureSet]]],
    find: Callable[[str, str], Reference],
) -> list[PaperTable]:
    name, make = _distance_name(prefix, kind), _fid_entry if kind == "fid" else _kid_entry
    tables, single = [], []
    for identity, sets in gathered().items():
        if identity.startswith("scenes") != (prefix == "scenes"):
            continue
        references = {model: find(identity, model) for model in run.models}
        for reference in references.values():
            check_large_enough(reference, name)
        compared = [
            group
            for group in product(run.sizes, run.methods)
            if group in sets and group[0] != references[group[0].model].own
        ]
        entries = {
            group: make(name, group, sets, references[group[0].model], identity, run)
            for group in compared
            if sets[group].moments.count > 1
        }
        single = [f"{run.label(group[0])} {group[1]}" for group in compared if group not in entries]
        if entries:
            one = make_table(name, *DISTANCES[prefix, kind], run, entries)
            alone = [f"of one picture, and so without a distance: {', '.join(single)}"] if single else []
            tables.append(replace(one, notes=(*one.notes, *_remarks(run, entries), *alone)))
    if not tables:
        has = f"one picture of each of {', '.join(single)}" if single else "none beside its own reference"
        raise UserError(f"{name} is of two pictures or more of a size and method, and run {run.folder} has {has}")
    return tables


def _remarks(run: Run, entries: Mapping[Group, Entry]) -> list[str]:
    """What to know of figures, and of which where it is not so of all."""
    found: dict[str, list[str]] = {}
    for (size, method), entry in entries.items():
        if entry.figure.remark:
            found.setdefault(entry.figure.remark, []).append(f"{run.label(size)} {method}")
    return [text if len(of) == len(entries) else f"{', '.join(of)} {text}" for text, of in found.items()]


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
        figure=replace(
            _figure(name, value, sets[group], reference, identity, None),
            remark=bias_remark(sets[group].moments, reference.moments),
        ),
        difference=difference,
        published=published(name, *group, count=sets[group].moments.count),
    )


def _kid_entry(
    name: str, group: Group, sets: Mapping[Group, FeatureSet], reference: Reference, identity: str, run: Run
) -> Entry:
    mine, base = sets[group], sets.get((group[0], run.methods[0]))
    found = kid_interval(mine.features, reference.features).scaled(KID_UNIT)
    figure = _figure(name, found.mean, mine, reference, identity, _enough(found, reference))
    difference = None
    if base is not None and group[1] != run.methods[0]:
        both = sorted(pair for pair in mine.kept if pair in base.kept)
        if len(both) > 1:
            first, second = (np.stack([one.kept[pair] for pair in both]) for one in (mine, base))
            apart = kid_difference(first, second, reference.features).scaled(KID_UNIT)
            difference = _enough(apart, reference) or apart.mean
    return Entry(
        size=group[0],
        method=group[1],
        figure=replace(figure, count=found.count, reference_count=len(reference.features), remark=_KID_REMARK),
        difference=difference,
        published=published(name, *group),
    )


def _enough(found: Interval, reference: Reference) -> Interval | None:
    """A kernel distance's interval, if it is of enough pictures to have one."""
    return found if min(found.count, len(reference.features)) >= FEWEST else None


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
