"""Several runs of one model as one: what a study draws in several sweeps is compared together."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...baselines import read_method
from ...errors import UserError
from ..records import Run, Sample


def merge_runs(runs: Sequence[Run]) -> Run:
    """One run with the images and measurements of all; a cell or a layer that several of them hold counts once.

    Its captions and seeds are those of the run that has the most, its record of the environment that of the first.
    Raises UserError where the runs differ in weights, sampler or training size.
    """
    first, *others = runs
    for other in others:
        _check_alike(first, other)
    longest = max(runs, key=lambda run: len(run.pairs))
    methods = {read_method(method).label: method for run in runs for method in run.spec["methods"]}
    sizes = list(dict.fromkeys(size for run in runs for size in run.spec["sizes"]))
    layers = {(found.size, found.method, found.layer): found for run in reversed(runs) for found in run.entropy}
    return replace(
        first,
        spec={**longest.spec, "sizes": sizes, "methods": list(methods.values())},
        samples=tuple(_once(sample for run in runs for sample in _placed(run))),
        entropy=tuple(layers.values()),
        seconds=tuple(entry for run in runs for entry in run.seconds),
        programs=tuple(worker for run in runs for worker in run.programs),
        train_entropy={model: layers for run in runs for model, layers in run.train_entropy.items()},
        undefined=tuple(dict.fromkeys(found for run in runs for found in run.undefined)),
    )


def _check_alike(one: Run, other: Run) -> None:
    pairs = {"weights": (one.weights, other.weights)}
    pairs |= {name: (one.spec.get(name), other.spec.get(name)) for name in ("sampler", "train_size")}
    for name, (here, there) in pairs.items():
        if here != there:
            raise UserError(
                f"{one.folder} and {other.folder} differ in {name} ({here} and {there}), so their pictures can't be "
                "compared: draw both with the same"
            )


def _placed(run: Run) -> Iterable[Sample]:
    folder = run.folder.resolve()
    return (replace(item, image=str(folder / item.image)) if item.image else item for item in run.samples)


def _once(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Each cell once, and from a run that counted its objects where there is one."""
    found: dict[str, Sample] = {}
    for sample in samples:
        if sample.cell not in found or found[sample.cell].objects is None:
            found[sample.cell] = sample
    return found.values()
