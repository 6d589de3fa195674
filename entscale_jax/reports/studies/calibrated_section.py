"""Writes into a document, as the section `calibrated`, what that rule does to objects and to entropy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...marks import replace_section
from ...statistics import RESAMPLES, signed
from ..records import Run, Size
from ..run_folder import read_run
from .merge import merge_runs
from .study import CALIBRATED, ENTROPY, ORIGINAL, RULES, Study, make_study
from .study_figures import make_figures, save_figure
from .study_section import cells, header, is_whole, readings, row, rules_table

SECTION = "calibrated"


@dataclass(frozen=True, kw_only=True)
class LevelEntropy:
    """Mean entropy of a level's layers at one size, in nats."""

    size: Size
    tokens: int
    train_tokens: int
    entropy: Mapping[str, float]
    """Rule -> entropy; without those that were not drawn."""
    trained: float
    """That of `original` at N = T, in the same run."""

    def brought_back(self, rule: str) -> float | None:
        """The share of what `original` is away from the trained entropy that a rule takes back; 1 is all of it."""
        away = self.entropy[ORIGINAL] - self.trained
        return (self.entropy[ORIGINAL] - self.entropy[rule]) / away if rule in self.entropy and away else None


def write_calibrated(folders: Sequence[Path], document: Path) -> None:
    """Replaces the section `calibrated` of `document` by what these runs show together, with a picture beside it.

    Raises UserError where a folder is no run, no run drew the rule, or the document lacks the section's marks.
    """
    runs = [read_run(folder) for folder in folders]
    study = make_study(merge_runs(runs))
    if not any(found.of_calibrated for found in study.sizes):
        raise UserError(f"{', '.join(map(str, folders))}: rule 'calibrated' was not drawn beside another with objects")
    picture = document.with_name(f"{document.stem}-{SECTION}.png")
    replace_section(document, SECTION, section(study, runs, picture.name))
    save_figure(make_figures(study)["rules"], picture)


def section(study: Study, runs: Sequence[Run], picture: str) -> list[str]:
    """The lines of the section. `picture` is the file name of the figure of counts."""
    return [
        *_origin(study, runs),
        *(f"- {line}" for line in _verdicts(study)),
        "",
        *rules_table(study, {"rules": picture}),
        *_differences(study),
        *_entropy(study.run, max((len(run.pairs) for run in runs if run.entropy), default=0)),
    ]


def level_entropies(run: Run) -> list[LevelEntropy]:
    """Of each size that was measured under `original`, finest level first. Empty without a size of N = T."""
    values: dict[tuple[Size, int, int], dict[str, list[float]]] = {}
    for one in run.entropy:
        values.setdefault((one.size, one.train_tokens, one.tokens), {}).setdefault(one.method, []).append(one.entropy)
    means = {key: {rule: float(np.mean(found)) for rule, found in rules.items()} for key, rules in values.items()}
    trained = {then: rules[ORIGINAL] for (_, then, now), rules in means.items() if now == then and ORIGINAL in rules}
    return [
        LevelEntropy(size=size, tokens=now, train_tokens=then, entropy=rules, trained=trained[then])
        for order in run.sizes
        for (size, then, now), rules in sorted(means.items(), key=lambda item: -item[0][1])
        if size == order and then in trained and ORIGINAL in rules
    ]


def _origin(study: Study, runs: Sequence[Run]) -> list[str]:
    sampler, weights = study.run.spec.get("sampler", {}), "".join(study.run.weights.values())[:12]
    captions = max(counts.exact.count for found in study.sizes for counts in found.rules.values())
    lines = [
        f"Made by `make scenes-calibrated` with the weights `{weights}`, commit "
        f"`{study.run.environment.get('commit')}`: {captions} captions a size, "
        f"{sampler.get('steps')} steps of DDIM, guidance {sampler.get('guidance')}; each "
        "caption is drawn from the same noise under every rule. Multipliers are the least and the largest of the "
        f"layers. In brackets 95% bootstrap intervals over captions ({RESAMPLES:,} resamples).",
        "",
    ]
    lines += [f"Not drawn by `calibrated`: {found.size}, where {found.reason}." for found in study.run.undefined]
    missing = [f"{run.name} has {len(run.samples)} of {run.planned} cells" for run in runs if not is_whole(run)]
    failed = sum(sample.error is not None for sample in study.run.samples)
    lines += ["", f"**Unfinished: {'; '.join(missing)}.**"] if missing else []
    lines += ["", f"**{failed} images failed and count nowhere.**"] if failed else []
    return [*lines, ""]


def _verdicts(study: Study) -> list[str]:
    lines = []
    for rule in (ORIGINAL, ENTROPY):
        groups: dict[str, list[str]] = {}
        for found in study.sizes:
            if rule in found.of_calibrated and not found.levels.is_control:
                for reading, place in readings(found, found.of_calibrated[rule]):
                    groups.setdefault(reading, []).append(place)
        said = [f"{name} at {', '.join(sizes)}" for name, sizes in groups.items()]
        lines += [f"Rule `calibrated` against `{rule}`: {'; '.join(said)}."] if said else []
    return lines


def _differences(study: Study) -> list[str]:
    lines = ["Pairs of the same caption and seed:", ""]
    lines += header("size", "calibrated less", "pairs", "exact (points)", "missing", "extra", "reading")
    for found in study.sizes:
        for rule, less in found.of_calibrated.items():
            reading = "N = T: the same rule" if found.levels.is_control else less.reading
            lines.append(row(found.size, rule, less.exact.count, *cells(less, signed), reading))
    return [*lines, ""]


def _entropy(run: Run, images: int) -> list[str]:
    found = level_entropies(run)
    if not found:
        return []
    lines = [
        "### Entropy under each rule",
        "",
        f"Means in nats over the layers of a level, heads, rows, steps and the first {images} captions; E_T is that of "
        "`original` at the training size there. In brackets how much of the way from `original` to E_T a rule goes.",
        "",
    ]
    lines += header("size", "N / T", "log N", "E_T", *RULES)
    for one in found:
        values = (_cell(one, rule) for rule in RULES)
        lines.append(
            row(
                one.size,
                f"{one.tokens}/{one.train_tokens}",
                f"{math.log(one.tokens):.2f}",
                f"{one.trained:.2f}",
                *values,
            )
        )
    return [*lines, ""]


def _cell(one: LevelEntropy, rule: str) -> str:
    if rule not in one.entropy:
        return "undefined" if rule == CALIBRATED else "-"
    share = None if rule == ORIGINAL or one.tokens == one.train_tokens else one.brought_back(rule)
    return f"{one.entropy[rule]:.2f}" + ("" if share is None else f" ({100 * share:.0f}%)")
