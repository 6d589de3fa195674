"""The paper's figures of entropy for a sweep that measured it."""

from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from ...entropies import ORIGINAL, EntropyPoint, EntropyStudy, PixelSize, network_order, size_text, squareness
from ..figures import STYLE, embedded_svg
from ..records import LayerEntropy, Run, Size
from .entropy_figures import draw_against_tokens, draw_layers
from .entropy_tables import line_text, share_text


@dataclass(frozen=True)
class Drawn:
    """A figure of the report with what it says."""

    text: str
    drawing: Markup


def entropy_studies(run: Run) -> list[EntropyStudy]:
    """One a model of which entropy was measured."""
    found = ((model, [one for one in run.entropy if one.size.model == model]) for model in run.models)
    return [_study(run, model, layers) for model, layers in found if layers]


def paper_figures(study: EntropyStudy) -> tuple[Drawn, Drawn | None]:
    """Figure 5, and Figure 6 where a size has other token counts than the training size."""
    lines = " ".join(line_text(study, method) for method in study.methods)
    layers = draw_layers(study)
    return Drawn(lines, _embedded(draw_against_tokens(study))), layers and Drawn(_shares(study), _embedded(layers))


def _embedded(figure: Figure) -> Markup:
    with matplotlib.rc_context(STYLE):
        return embedded_svg(figure)


def _shares(study: EntropyStudy) -> str:
    if study.trained is None:
        return f"Rule {ORIGINAL} at the training size was not drawn, so E_T is not known."
    parts = []
    for size in study.panels():
        points = [point for method in study.methods if (point := study.at(size, method)) and method != ORIGINAL]
        shares = [f"{point.method} {share_text(study.share(point))}" for point in points]
        parts += [f"at {size_text(size)} {', '.join(shares)}"] if shares else []
    told = f" Of the gap E_N - E_T under rule {ORIGINAL} is brought back: {'; '.join(parts)}." if parts else ""
    return f"In the order of the network.{told}"


def _study(run: Run, model: str, found: list[LayerEntropy]) -> EntropyStudy:
    layers = sorted({one.layer for one in found}, key=network_order)
    train_tokens = {one.layer: one.train_tokens for one in found}
    train = tuple(train_tokens[layer] for layer in layers)
    groups: dict[tuple[str, Size], dict[str, LayerEntropy]] = {}
    for one in found:
        groups.setdefault((one.method, one.size), {})[one.layer] = one
    drawn = [
        _point(run, size, method, [groups[method, size][layer] for layer in layers])
        for method in run.methods
        for size in run.sizes
        if (method, size) in groups
    ]
    points = tuple(point for point in drawn if point.images)
    return EntropyStudy(
        model=model, layers=tuple(layers), train_tokens=train, train_size=_train_size(points, train), points=points
    )


def _point(run: Run, size: Size, method: str, layers: list[LayerEntropy]) -> EntropyPoint:
    drawn = run.of(size, method)
    samples = [drawn[pair] for pair in run.pairs if pair in drawn]  # resampled alike at every size and rule
    whole = [sample for sample in samples if all(sample.cell in one.images for one in layers)]
    return EntropyPoint(
        size=(size.width, size.height),
        method=method,
        tokens=tuple(one.tokens for one in layers),
        images={sample.pair: tuple(one.images[sample.cell] for one in layers) for sample in whole},
    )


def _train_size(points: tuple[EntropyPoint, ...], train_tokens: tuple[int, ...]) -> PixelSize | None:
    """The size of as many tokens as in training, of several the one nearest to a square: a run names no other."""
    sizes = {point.size for point in points if point.tokens == train_tokens}
    return min(sizes, key=squareness) if sizes else None
