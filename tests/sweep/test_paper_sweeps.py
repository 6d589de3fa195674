"""The paper's tables and figures as sweeps: each is read, and those of tables have the sizes that the paper prints."""

from pathlib import Path

import pytest

from entscale_jax.reports.paper.published import published
from entscale_jax.reports.records import Size
from entscale_jax.sweep.sweep_file import read_sweep

FOLDER = Path(__file__).parents[2] / "sweeps" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))


def _missing(name, metric, methods):
    """Sizes and methods of a sweep of which the paper prints no figure."""
    spec = read_sweep(FOLDER / name).spec
    places = [(Size(spec.models[0], *size), method) for size in spec.sizes for method in methods]
    return [(str(size), method) for size, method in places if published(metric, size, method) is None]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_read_and_named_as_its_file(path):
    assert read_sweep(path).spec.name == path.stem


def test_figure_7_names_the_upscaler_that_it_compares_with():
    found = read_sweep(FOLDER / "figure7.yaml").spec.methods
    assert [getattr(method, "upscaler", None) for method in found] == [
        *[None] * 3,
        "stabilityai/stable-diffusion-x4-upscaler",
    ]
    assert [method.label for method in found][:3] == ["original", "entropy", "resize"]


def test_tables_have_the_papers_sizes():
    train_size = [("512x512", "entropy")]
    assert _missing("table1_2_sd.yaml", "fid", ("original", "entropy")) == train_size
    assert _missing("table1_2_sd.yaml", "clip", ("original", "entropy")) == train_size
    assert _missing("table1_2_ldm.yaml", "fid", ("original", "entropy")) == [("256x256", "entropy")]
    assert _missing("table3.yaml", "rating", ("original", "entropy")) == []
    assert _missing("table4.yaml", "fid", ("original", "entropy", "resize")) == [*train_size, ("512x512", "resize")]
    assert _missing("table5.yaml", "fid", ("multidiffusion",)) == [("512x512", "multidiffusion")]
    assert _missing("table5.yaml", "fid", ("original", "entropy")) == train_size
    # The control: sizes that the paper has not.
    assert _missing("figure13.yaml", "fid", ("original",)) == [("1024x1024", "original")]


def test_table_5_has_its_own_figures_of_4000_pictures():
    spec = read_sweep(FOLDER / "table5.yaml").spec
    assert spec.prompts.count == 4000
    found = {
        (width, method): published("fid", Size(spec.models[0], width, width), method, spec.prompts.count)
        for width in (224, 768)
        for method in ("entropy", "multidiffusion")
    }
    assert found == {
        (224, "entropy"): (5, 50.3515, 4000),
        (224, "multidiffusion"): (5, 154.6925, 4000),
        (768, "entropy"): (5, 28.1372, 4000),
        (768, "multidiffusion"): (5, 40.9270, 4000),
    }
    # The control: of 30,000 pictures it is Table 1's, and where the count is not asked for, too.
    for count in (30_000, None):
        assert published("fid", Size(spec.models[0], 224, 224), "entropy", count) == (1, 41.8925, 30_000)
