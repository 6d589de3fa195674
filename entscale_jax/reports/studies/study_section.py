"""Writes a study into a document: its numbers in words and tables, as the section `study`, and its pictures."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ...marks import replace_section
from ...scales import multiplier_text
from ...statistics import RESAMPLES, Interval, interval, percent, signed
from ..records import LayerEntropy, Run, Size
from ..run_folder import read_run
from ..tables import ObjectCounts
from .merge import merge_runs
from .study import ENTROPY, ORIGINAL, TRUTH, Curve, Scope, SizeStudy, Study, make_study
from .study_figures import SHEET_CAPTIONS, make_figures, save_figure, short_name

SECTION = "study"


def write_study(folders: Sequence[Path], document: Path) -> None:
    """Replaces the section `study` of `document` by what these runs show together, and writes its pictures beside it.

    Raises UserError where a folder is no run, where the runs can't be compared, or where the document lacks its marks.
    """
    runs = [read_run(folder) for folder in folders]
    study = make_study(merge_runs(runs))
    figures = make_figures(study)
    files = {name: document.with_name(f"{document.stem}-{SECTION}-{name}.png") for name in figures}
    replace_section(document, SECTION, section(study, runs, {name: file.name for name, file in files.items()}))
    for name, figure in figures.items():
        save_figure(figure, files[name])


def section(study: Study, runs: Sequence[Run], pictures: Mapping[str, str]) -> list[str]:
    """The lines of the section. `pictures` are the file names of the study's figures."""
    return [
        *_origin(study, runs),
        *_headlines(study),
        *rules_table(study, pictures),
        *_effect(study),
        *_multipliers(study, pictures),
        *_entropy(study, pictures),
        *_sheets(study, pictures),
    ]


def _origin(study: Study, runs: Sequence[Run]) -> list[str]:
    sampler, weights = study.run.spec.get("sampler", {}), "".join(study.run.weights.values())[:12]
    missing = [f"{run.name} has {len(run.samples)} of {run.planned} cells" for run in runs if not is_whole(run)]
    failed = sum(sample.error is not None for sample in study.run.samples)
    return [
        f"Made by `make scenes-study` with the weights `{weights}`, commit `{study.run.environment.get('commit')}`: "
        f"{sampler.get('steps')} steps of DDIM, guidance {sampler.get('guidance')}; each caption is drawn from the "
        "same noise under every rule and multiplier. An image is exact where the detector finds what its caption says "
        f"and nothing more. In brackets 95% bootstrap intervals over captions ({RESAMPLES:,} resamples); a difference "
        "is of pairs of the same caption and seed.",
        "",
        *([f"**Unfinished: {'; '.join(missing)}.**", ""] if missing else []),
        *([f"**{failed} images failed and count nowhere.**", ""] if failed else []),
    ]


def is_whole(run: Run) -> bool:
    """Whether all cells were drawn or failed."""
    return len(run.samples) >= run.planned


def _headlines(study: Study) -> list[str]:
    lines = [_fault(study, 1.0, "exact"), _fault(study, 0.25, "missing"), _fault(study, 4.0, "extra")]
    lines += [
        _verdict_of_rule(study),
        *(_verdict_of_curve(found) for found in study.sizes if found.area in (0.25, 4.0)),
    ]
    return [*(f"- {line}" for line in lines if line), ""]


def _fault(study: Study, area: float, field: str) -> str | None:
    found = study.at_area(area)
    counts = found and found.rules.get(ORIGINAL)
    if not found or not counts:
        return None
    if field == "exact":
        return f"At {found.name} {percent(counts.exact)} of {counts.exact.count} captions are drawn exactly."
    means = (
        f"{interval(getattr(counts, field), 2)} objects an image {'are missing' if field == 'missing' else 'too many'}"
    )
    less = found.beyond_truth.get(ORIGINAL)
    beyond = f", {signed(getattr(less, field), 2)} beyond what true drawings of the same captions read" if less else ""
    return f"At {found.name} under rule `original` {means}{beyond}; {percent(counts.exact)} are exact."


def _verdict_of_rule(study: Study) -> str | None:
    groups: dict[str, list[str]] = {}
    for found in study.sizes:
        if found.effect is not None and not found.levels.is_control:
            for reading, place in readings(found, found.effect):
                groups.setdefault(reading, []).append(place)
    said = [f"{name} at {', '.join(sizes)}" for name, sizes in groups.items()]
    return f"Rule `entropy` against `original`: {'; '.join(said)}." if said else None


def readings(found: SizeStudy, effect: ObjectCounts) -> list[tuple[str, str]]:
    """What the effect is shown to be, each with the size and by how much."""
    shown = []
    for field, things, unit, digits in (
        ("exact", "images", " points", 1),
        ("missing", "objects", "", 2),
        ("extra", "objects", "", 2),
    ):
        value = getattr(effect, field)
        if not value.holds_zero:
            more = "more" if value.mean > 0 else "fewer"
            shown.append((f"{more} {things} are {field}", f"{found.size} ({signed(value, digits)}{unit})"))
    return shown or [("no difference is shown", str(found.size))]


def _verdict_of_curve(found: SizeStudy) -> str | None:
    curve = found.curves.get(Scope.ALL)
    if curve is None:
        return None
    gain = curve.gains.get(curve.best)
    text = f", {signed(gain.faults, 2)} against 1, of the best of {len(curve.points)}, and so flattered" if gain else ""
    least, now, ours = (sum(curve.at(value)[1:]) for value in (curve.best, 1.0, curve.rule))
    return (
        f"At {found.name}, of the multipliers from {min(curve.points):g} to {max(curve.points):g} at all levels, "
        f"{curve.best:g} makes the fewest faults, missing and extra objects together: {least:.2f} an image{text}; "
        f"multiplier 1 lies at {now:.2f} on that curve, the rule's {curve.rule:.3f} at {ours:.2f}."
    )


def rules_table(study: Study, pictures: Mapping[str, str]) -> list[str]:
    """Counts of each rule at each size. `pictures` are file names of figures by name."""
    lines = ["### The rules at each size", "", f"![Counts by size and rule]({pictures['rules']})", ""]
    lines += header("size", "N / T", "multiplier", "drawn by", "images", "exact (%)", "missing", "extra")
    for found in study.sizes:
        tokens = " ".join(f"{now}/{then}" for now, then in zip(*_tokens(found), strict=True))
        for name, counts in found.rules.items():
            multipliers = found.levels.multipliers.get(name)
            scale = "-" if multipliers is None else " ".join(map(multiplier_text, multipliers))
            lines.append(row(found.size, tokens, scale, name, counts.exact.count, *cells(counts, interval)))
    return [*lines, ""]


def _tokens(found: SizeStudy) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return found.levels.tokens, found.levels.train_tokens


def _effect(study: Study) -> list[str]:
    sizes = [found for found in study.sizes if found.effect is not None]
    if not sizes:
        return []
    lines = ["`entropy` less `original`, pairs of the same caption and seed:", ""]
    lines += header("size", "pairs", "exact (points)", "missing", "extra", "reading")
    for found in sizes:
        if found.effect is not None:
            reading = "N = T: the same rule" if found.levels.is_control else found.effect.reading
            lines.append(row(found.size, found.effect.exact.count, *cells(found.effect, signed), reading))
    lines += ["", f"Each rule less {TRUTH} of the same captions:", ""]
    lines += header("size", "rule", "exact (points)", "missing", "extra")
    for found in study.sizes:
        lines += [row(found.size, rule, *cells(less, signed)) for rule, less in found.beyond_truth.items()]
    return [*lines, ""]


def _multipliers(study: Study, pictures: Mapping[str, str]) -> list[str]:
    if "multipliers" not in pictures:
        return []
    lines = ["### What any multiplier does", ""]
    lines += [f"![Counts against the multiplier, by size]({pictures['multipliers']})", ""]
    lines += [f"![One caption under each multiplier]({pictures['scale']})", ""]
    for scope in Scope:
        curves = [(found, found.curves[scope]) for found in study.sizes if scope in found.curves]
        lines += _curves(scope, curves) if curves else []
    if study.levels == 1:
        lines += ["The UNet has self-attention at one level alone: there are no other levels to scale apart.", ""]
    return lines


def _curves(scope: Scope, curves: Sequence[tuple[SizeStudy, Curve]]) -> list[str]:
    values = sorted({value for _, curve in curves for value in curve.points})
    captions = sorted({counts.exact.count for _, curve in curves for counts in curve.points.values()})
    lines = [f"Rule `fixed` at {scope}, {' or '.join(map(str, captions))} captions a size:", ""]
    for field, unit, digits in (("exact", "%", 0), ("missing", "per image", 2), ("extra", "per image", 2)):
        lines += header(f"{field} ({unit})", *(f"{value:g}" for value in values))
        for found, curve in curves:
            shown = (interval(getattr(curve.points[v], field), digits) if v in curve.points else "-" for v in values)
            lines.append(row(found.size, *shown))
        lines.append("")
    lines += [
        "Where the paper's multiplier lies on these curves, read between the points, and what the rule drew there:",
        "",
    ]
    lines += header(
        "size",
        "multiplier",
        "curve: exact, missing, extra",
        "drawn: exact, missing, extra",
        "fewest faults at",
        "less those at 1",
    )
    lines += [row(found.size, *_place_of_rule(curve)) for found, curve in curves]
    return [*lines, ""]


def _place_of_rule(curve: Curve) -> tuple[str, ...]:
    exact, missing, extra = curve.at(curve.rule)
    drawn, gain = curve.entropy, curve.gains.get(curve.best)
    return (
        f"{curve.rule:.3f}",
        f"{exact:.0f}%, {missing:.2f}, {extra:.2f}",
        f"{drawn.exact.mean:.0f}%, {drawn.missing.mean:.2f}, {drawn.extra.mean:.2f}" if drawn else "-",
        f"{curve.best:g}",
        signed(gain.faults, 2) if gain else "-",
    )


def _entropy(study: Study, pictures: Mapping[str, str]) -> list[str]:
    if "entropy" not in pictures:
        return []
    found = study.run.entropy
    layers = list(dict.fromkeys(one.layer for one in found))
    sizes = [one.size for one in study.sizes if any(other.size == one.size for other in found)]
    lines = ["### Entropy and logit gap of self-attention", ""]
    lines += ["Means in nats over heads, tokens, steps and images, under `original` / `entropy`.", ""]
    lines += [f"![Entropy and logit gap of each layer against tokens]({pictures['entropy']})", ""]
    for field, name in (("entropy", "mean entropy"), ("logit_gap", "mean logit gap")):
        lines += header(name, *map(str, sizes))
        lines += [
            row(f"log N where T = {train_tokens}", *_uniform(found, layer, sizes))
            for train_tokens, layer in _one_a_level(found).items()
        ]
        lines += [row(short_name(layer), *_of_layer(found, layer, sizes, field)) for layer in layers]
        lines.append("")
    return lines


def _one_a_level(found: Iterable[LayerEntropy]) -> dict[int, str]:
    """Training tokens of each level -> its first layer."""
    first: dict[int, str] = {}
    for one in found:
        first.setdefault(one.train_tokens, one.layer)
    return first


def _uniform(found: Iterable[LayerEntropy], layer: str, sizes: Sequence[Size]) -> list[str]:
    tokens = {one.size: one.tokens for one in found if one.layer == layer}
    return [f"{math.log(tokens[size]):.2f}" if size in tokens else "-" for size in sizes]


def _of_layer(found: Iterable[LayerEntropy], layer: str, sizes: Sequence[Size], field: str) -> list[str]:
    values = {(one.size, one.method): getattr(one, field) for one in found if one.layer == layer}
    shown = ([values.get((size, rule)) for rule in (ORIGINAL, ENTROPY)] for size in sizes)
    return [" / ".join("-" if value is None else f"{value:.2f}" for value in both) for both in shown]


def _sheets(study: Study, pictures: Mapping[str, str]) -> list[str]:
    lines = ["### Pictures", "", f"The first {SHEET_CAPTIONS} captions, not chosen, with what the detector found.", ""]
    for found in study.sizes:
        lines += [f"{found.name}:", "", f"![{found.size}, both rules]({pictures[str(found.size)]})", ""]
    return lines


def cells(counts: ObjectCounts, text: Callable[[Interval, int], str]) -> tuple[str, str, str]:
    """Exact, missing and extra, each by `text`."""
    return text(counts.exact, 1), text(counts.missing, 2), text(counts.extra, 2)


def header(*names: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(*names), row(*["---"] * len(names))]


def row(*values: object) -> str:
    """A line of it."""
    return f"| {' | '.join(map(str, values))} |"
