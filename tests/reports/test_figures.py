"""The figures as XML: complete, the same every time, in the page's colour."""

from xml.etree import ElementTree

import pytest

from entscale_jax.reports import tables
from entscale_jax.reports.figures import INK, entropy_figure, objects_figure
from entscale_jax.reports.records import LayerEntropy, Size
from entscale_jax.reports.tables import EntropyLine, EntropyTable, ObjectCounts, ObjectsTable
from entscale_jax.statistics import Interval

METHODS = ("original", "entropy <script>$x$")


def objects_table(size: str, low: float) -> ObjectsTable:
    interval = Interval(low + 0.25, low, low + 1.0, 8)
    counts = [
        ObjectCounts(method=name, exact=interval.scaled(50), missing=interval, extra=interval, faults=interval)
        for name in METHODS
    ]
    return ObjectsTable(size=size, is_control=False, counts=tuple(counts), baseline=METHODS[0], differences=())


@pytest.fixture
def drawn():
    lines = [
        EntropyLine(size="96x64", tokens=now, train_tokens=then, entropy=dict.fromkeys(METHODS, 3.0))
        for then, now in ((256, 384), (64, 96))
    ]
    table = EntropyTable(model="scenes", lines=tuple(lines))
    return objects_figure([objects_table("64x64", 0.0), objects_table("96x64", 0.5)], METHODS), entropy_figure(
        table, METHODS
    )


def test_figures_are_well_formed_and_carry_no_markup_of_others(drawn):
    for figure in drawn:
        root = ElementTree.fromstring(figure)
        assert root.tag.endswith("svg")
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
            *(
                "svg",
                "g",
                "path",
                "defs",
                "use",
                "style",
                "clipPath",
                "rect",
                "metadata",
                "RDF",
                "Work",
                "type",
                "format",
            ),
        }


def test_figures_take_the_colour_of_the_page(drawn):
    for figure in drawn:
        assert "currentColor" in figure
        assert INK not in figure


@pytest.mark.parametrize(
    ("index", "label"),
    [
        (0, "images exactly as captioned (%)"),
        (0, "missing objects per image"),
        (0, "extra objects per image"),
        (0, "size (pixels)"),
        (1, "mean entropy of self-attention (nats)"),
        (1, "tokens N (log axis)"),
    ],
)
def test_axes_say_what_and_in_which_unit(drawn, index, label):
    # Letters are drawn as outlines; the text itself stands beside them as a comment.
    assert f"<!-- {label} -->" in drawn[index]
    assert f"<!-- {label} -->" not in drawn[1 - index]


@pytest.mark.parametrize("levels", [1, 4])
def test_many_methods_with_long_names_fit(levels):
    # What does not fit is a warning of matplotlib's, and so an error here.
    methods = [f"fixed:0.8,0.85,0.9,{number}" for number in range(6)]
    lines = [
        EntropyLine(size="96x64", tokens=200, train_tokens=64 * level, entropy=dict.fromkeys(methods, 3.0))
        for level in range(1, levels + 1)
    ]
    entropy_figure(EntropyTable(model="scenes", lines=tuple(lines)), methods)


def test_a_method_that_drew_nothing_at_a_size_leaves_a_gap():
    table = objects_table("64x64", 0.0)
    assert table.of("original") is not None
    assert table.of("fixed:2") is None
    objects_figure([table], [*METHODS, "fixed:2"])


def bars(figure):
    """How many error bars a figure has."""
    root = ElementTree.fromstring(figure)
    return sum(element.get("id", "").startswith("LineCollection") for element in root.iter())


def test_the_means_of_entropy_have_intervals(drawn):
    interval = Interval(3.0, 2.5, 3.25, 8)
    line = EntropyLine(
        size="96x64",
        tokens=384,
        train_tokens=256,
        entropy=dict.fromkeys(METHODS, 3.0),
        intervals=dict.fromkeys(METHODS, interval),
    )
    with_intervals = entropy_figure(EntropyTable(model="scenes", lines=(line,)), METHODS)
    assert bars(with_intervals) == 4  # Each method once more in the legend.
    narrow = EntropyLine(**{**vars(line), "intervals": dict.fromkeys(METHODS, Interval(3.0, 3.0, 3.0, 8))})
    assert entropy_figure(EntropyTable(model="scenes", lines=(narrow,)), METHODS) != with_intervals


def test_intervals_of_entropy_are_over_the_images_of_a_level():
    size = Size("scenes", 96, 64)
    images = {f"cell-{number}": {"a": 1.0 + number, "b": 3.0 + number} for number in range(3)}
    layers = [
        LayerEntropy(
            size=size,
            method="original",
            layer=layer,
            tokens=384,
            train_tokens=256,
            entropy=3.0,
            logit_gap=None,
            images={cell: values[layer] for cell, values in images.items()} | {f"of {layer} alone": 50.0},
        )
        for layer in ("a", "b")
    ]
    interval = tables._over_images(layers)
    # The images' means over both layers are 2, 3 and 4; each extreme is drawn three times with probability 1/27.
    assert (interval.mean, interval.low, interval.high, interval.count) == (3.0, 2.0, 4.0, 3)
