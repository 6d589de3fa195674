"""The notes below a table: what its figures are of, model by model, and what the paper's are of."""

import re
from dataclasses import replace

import pytest
from synthetic_run import SyntheticRun

from entscale_jax.metrics.figure import Figure
from entscale_jax.reports.paper.paper_table import Entry, make_table
from entscale_jax.reports.paper.published import published
from entscale_jax.reports.paper.table_formats import latex, markdown
from entscale_jax.reports.records import Size
from entscale_jax.reports.run_folder import read_run
from entscale_jax.statistics import Interval

SD, LDM = "stabilityai/stable-diffusion-2-1-base", "CompVis/ldm-text2im-large-256"
REFERENCES = {SD: ("its own pictures at 512x512", 4000), LDM: ("its own pictures at 256x256", 50_000)}
COMPARED = "extractor inception 0123456789abcdef, resize clean, no crop"


@pytest.fixture
def make_table_of(tmp_path):
    """The table of a metric by places (model, size, method), all of `count` pictures."""

    def make(metric, places, count=4000, methods=("original", "entropy", "multidiffusion")):
        models, sizes = (tuple(dict.fromkeys(place[part] for place in places)) for part in (0, 1))
        pixels = tuple(tuple(map(int, size.split("x"))) for size in sizes)
        made = SyntheticRun(models=models, sizes=pixels, methods=methods, prompts=("a red circle",))
        run = read_run(made.write(tmp_path / metric))
        entries = {}
        for model, size, method in places:
            place = Size(model, *map(int, size.split("x")))
            figure = Figure(name=metric, value=1.0, count=count)
            if metric == "fid":
                reference, seen = REFERENCES[model]
                compared = {"extractor": "inception 0123456789abcdef", "resize": "clean"}
                figure = Figure(
                    name=metric, value=1.0, count=count, reference=reference, reference_count=seen, **compared
                )
            entries[place, method] = Entry(
                size=place,
                method=method,
                figure=figure,
                difference=None,
                published=published(metric, place, method, count),
            )
        return make_table(metric, "Figures", 1, run, entries)

    return make


def test_a_run_of_table_5_has_its_figures_beside(make_table_of):
    places = [(SD, "224x224", "original"), (SD, "224x224", "entropy"), (SD, "224x224", "multidiffusion")]
    table = make_table_of("fid", places)
    line = "| 224x224 | 1.0 | 1.0 | 1.0 | 74.5742 (Table 1) | 50.3515 (Table 5) | 154.6925 (Table 5) |"
    assert line in markdown([table])
    assert table.notes[-1] == (
        "the paper's (Table 1, 30,000 images; Table 5, 4,000 images): captions of LAION-5B, compared with its "
        "pictures; extractor, resize, sampler, steps and guidance are not given"
    )
    # Where all are of one table, the note alone names it.
    alone = make_table_of("clip", places[:2], count=30_000)
    assert "| 224x224 | 1.0 | 1.0 | 0.2553 | 0.2764 |" in markdown([alone])
    assert alone.notes == (
        "30,000 images a figure",
        "the paper's (Table 2, 30,000 images): captions of LAION-5B; CLIP model, resize, sampler, steps and guidance "
        "are not given",
    )


def test_each_model_has_its_own_reference_and_paper(make_table_of):
    table = make_table_of("fid", [(SD, "224x224", "original"), (LDM, "224x224", "original")], count=40_000)
    assert table.notes == (
        "40,000 images a figure",
        f"{SD}: compared with its own pictures at 512x512, 4,000 images; {COMPARED}",
        f"{LDM}: compared with its own pictures at 256x256, 50,000 images; {COMPARED}",
        "the paper's of ldm-text2im-large-256 (Table 1, 50,000 images): captions of LAION-400M, compared with its "
        "pictures; extractor, resize, sampler, steps and guidance are not given",
        "the paper's of stable-diffusion-2-1-base (Table 1, 30,000 images): captions of LAION-5B, compared with its "
        "pictures; extractor, resize, sampler, steps and guidance are not given",
    )


def test_seconds_and_ratings_are_of_no_pairs(make_table_of):
    seconds = make_table_of("seconds", [(SD, "128x128", "entropy"), (SD, "768x768", "multidiffusion")])
    assert seconds.notes[-1] == (
        "the paper's (Table 4; Table 5): on a server with four A100s; images at once, sampler, steps and guidance are "
        "not given"
    )
    rating = make_table_of("rating", [(SD, "512x384", "entropy")], count=50)
    assert rating.notes[-1] == (
        "the paper's (Table 3, 50 images): rated by 45 people; sampler, steps and guidance are not given"
    )


@pytest.mark.parametrize(("form", "minus"), [(markdown, "−"), (latex, "$-$")])
def test_negative_figures_and_differences_have_one_minus(make_table_of, form, minus):
    table = make_table_of("kid", [("scenes", "64x64", "original"), ("scenes", "64x64", "entropy")])
    (first, one), (second, two) = table.entries.items()
    one = replace(one, figure=replace(one.figure, value=-1.0, interval=Interval(-1.0, -2.0, 0.5, 9)))
    two = replace(two, figure=replace(two.figure, value=-2.25), difference=-0.01)
    text = form([replace(table, entries={first: one, second: two})])
    line = next(line for line in text.splitlines() if "64x64" in line)
    cells = [cell.strip(" \\") for cell in re.split(r"[|&]", line) if cell.strip()]
    assert cells == ["64x64", f"{minus}1.0 ({minus}2.0 to 0.5)", f"{minus}2.2", "0.0"]
