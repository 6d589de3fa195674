"""The paper's figures of entropy: what a sweep's report says of them, and that many series and layers fit."""

import io
import math

import pytest
from page import Page
from synthetic_run import SyntheticRun

from entscale_jax.entropies import EntropyPoint, EntropyStudy
from entscale_jax.reports import write_report
from entscale_jax.reports.entropy.entropy_figures import draw_against_tokens, draw_layers
from entscale_jax.reports.entropy.entropy_runs import entropy_studies
from entscale_jax.reports.run_folder import read_run

SIZES = ((64, 64), (96, 64), (128, 128))


def svg(figure):
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()


def made(methods, layers=4, sizes=SIZES, train_size=(64, 64)):
    names = tuple(f"down_blocks/0/attentions/{index}/transformer_blocks/0/attn1" for index in range(layers))
    points = tuple(
        EntropyPoint(
            size=size,
            method=method,
            tokens=(size[0] * size[1] // 16,) * layers,
            images={("a", seed): (math.log(size[0]) + seed / 10,) * layers for seed in range(3)},
        )
        for size in sizes
        for method in methods
    )
    return EntropyStudy(model="m", layers=names, train_tokens=(256,) * layers, train_size=train_size, points=points)


def test_figure_5_has_the_line_and_eq_5s_slope():
    """From 64x64 to 128x128 entropy grows by log 2 and log N by log 4. One size has no line."""
    text = svg(draw_against_tokens(made(["original"], sizes=((64, 64), (128, 128)))))
    for said in (
        "original: slope 0.50, R² 1.000",
        "Eq. 5: slope 1",
        "N = T",
        "tokens N of the finest level (log axis)",
    ):
        assert f"<!-- {said} -->" in text
    one = svg(draw_against_tokens(made(["original"], sizes=((64, 64),))))
    assert "<!-- original -->" in one
    assert "original: slope" not in one


def test_figure_6_has_a_panel_a_size_and_the_level_of_training():
    text = svg(draw_layers(made(["original", "entropy"])))
    for said in ("96x64", "128x128", "E_T: original at 64x64", "entropy", "down 0.3.0"):
        assert f"<!-- {said} -->" in text
    assert "<!-- 64x64 -->" not in text
    assert "E_T" not in svg(draw_layers(made(["original"], train_size=None)))
    assert draw_layers(made(["original"], sizes=((64, 64),))) is None


@pytest.mark.parametrize("layers", [1, 16])
def test_many_rules_and_layers_fit(layers):
    # What does not fit is a warning of matplotlib's, and so an error here.
    study = made([f"fixed:0.8,0.85,0.9,{number}" for number in range(6)], layers)
    for figure in (draw_against_tokens(study), draw_layers(study)):
        svg(figure)


def test_a_run_becomes_a_study(tmp_path):
    """`synthetic_run` has entropies of log N less 0.5 under `original` and less 0.75 under `entropy`, in each layer."""
    run = read_run(SyntheticRun(sizes=SIZES).write(tmp_path / "run"))
    (found,) = entropy_studies(run)
    assert found.train_size == (64, 64)
    assert found.train_tokens == (256, 256, 64, 64)
    assert found.layers[0] == "down_blocks/0/attentions/0"
    large = found.at((128, 128), "entropy")
    assert large.tokens == (1024, 1024, 256, 256)
    assert large.layers == pytest.approx([math.log(count) - 0.75 for count in large.tokens])
    assert found.line("original").slope == pytest.approx(1, abs=1e-3)
    # Of a gap of log 4 it brings back a quarter of a nat.
    assert found.share(large).mean == pytest.approx(0.25 / math.log(4))


def test_a_run_without_the_training_size_says_so(tmp_path):
    page = Page(write_report(SyntheticRun(sizes=((96, 64), (128, 128))).write(tmp_path / "run")).read_text())
    assert "Rule original at the training size was not drawn" in page.text


def test_the_report_has_both_figures_with_what_they_say(tmp_path):
    page = Page(write_report(SyntheticRun(sizes=SIZES).write(tmp_path / "run")).read_text())
    text = " ".join(page.text.split())
    assert (
        "Rule original: mean entropy grows by 1.000 (1.000 to 1.000) nats a nat of log N (R² 1.0000, 3 sizes);" in text
    )
    share = f"{25 / math.log(4):.1f}"
    assert f"at 128x128 entropy {share}% ({share} to {share})" in text
    assert page.tags.count("svg") == 4


def test_one_size_of_n_equal_t_draws_no_layers_and_fits_no_line(tmp_path):
    page = Page(write_report(SyntheticRun(sizes=((64, 64),)).write(tmp_path / "run")).read_text())
    assert "Rule original: no line is fitted, as its sizes have one token count." in page.text
    assert page.tags.count("svg") == 3
