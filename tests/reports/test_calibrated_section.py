"""The section on rule `calibrated`, of runs whose every count and entropy is stated."""

import math
from pathlib import Path

import pytest
import yaml
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports.html import write_report
from entscale_jax.reports.levels import find_levels
from entscale_jax.reports.records import Size
from entscale_jax.reports.run_folder import read_run
from entscale_jax.reports.studies.calibrated_section import LevelEntropy, level_entropies, write_calibrated
from entscale_jax.reports.studies.merge import merge_runs
from entscale_jax.scenes.captions import balanced_captions

RULES = ("original", "entropy", "calibrated")
TRAIN, TWICE, SMALL = (128, 128), (256, 256), (64, 64)
PROMPTS = tuple(balanced_captions(4, seed=1))
MARKS = "<!-- measured: calibrated -->\n<!-- end of measured: calibrated -->\n"
LAYERS = {f"down_blocks/{level}/attentions/{number}": 2.0 + number for level in (0, 1) for number in (0, 1)}


@pytest.fixture
def runs(tmp_path):
    """At twice the size 4 objects are extra under `original`, 3 under `entropy`, 1 under `calibrated`."""
    extra = dict(zip(RULES, (4, 3, 1), strict=True))
    objects = {(TWICE, rule, prompt): (False, 0, many) for rule, many in extra.items() for prompt in PROMPTS}
    common = {"methods": RULES, "sizes": (TRAIN, TWICE), "cell_pixels": 8, "objects": objects}
    written = [
        SyntheticRun(**common, prompts=PROMPTS, metrics=("objects",)).write(tmp_path / "rules"),
        SyntheticRun(**common, prompts=PROMPTS[:1], metrics=("entropy",)).write(tmp_path / "entropy"),
    ]
    for folder in written:
        spec = yaml.safe_load((folder / "spec.yaml").read_text())
        spec["train_entropy"] = {"scenes": LAYERS}
        spec["sweep"]["sizes"].append("64x64")
        spec["undefined"] = [{"model": "scenes", "size": "64x64", "method": "calibrated", "reason": "no value there"}]
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return written


def test_the_section_has_differences_entropy_and_what_is_not_drawn(runs, tmp_path):
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    write_calibrated(runs, document)
    text = document.read_text()
    assert "| 256x256 | original | 4 | 0.0 (0.0 to 0.0) | 0.00 (0.00 to 0.00) | −3.00 (−3.00 to −3.00) |" in text
    assert "| 256x256 | entropy | 4 | 0.0 (0.0 to 0.0) | 0.00 (0.00 to 0.00) | −2.00 (−2.00 to −2.00) |" in text
    assert "N = T: the same rule" in text
    assert "Not drawn by `calibrated`: 64x64, where no value there." in text
    assert (tmp_path / "scenes-calibrated.png").is_file()


def test_multipliers_are_the_range_of_a_levels_layers(runs):
    levels = find_levels(merge_runs([read_run(folder) for folder in runs]))
    least, most = levels[Size("scenes", *TWICE)].multipliers["calibrated"][0]
    by_hand = [math.sqrt((math.log(1024) - value) / (math.log(256) - value)) for value in (2.0, 3.0)]
    assert [least, most] == pytest.approx(by_hand)
    assert levels[Size("scenes", *TRAIN)].multipliers["calibrated"] == (1.0, 1.0)


def test_a_size_that_is_not_drawn_is_none_of_the_planned_and_told_in_the_report(runs):
    run = read_run(runs[0])
    assert run.planned == (3 * 3 - 1) * 4
    assert "Not drawn: 64x64 calibrated, no value there." in Path(write_report(runs[0])).read_text()


def test_entropy_is_brought_back_by_a_share_of_the_way():
    # At N = 1024 the synthetic `original` has log 1024 - 0.5, other rules log 1024 - 0.75; at T log 256 - 0.5.
    one = LevelEntropy(
        size=Size("m", 1, 1), tokens=1024, train_tokens=256, entropy={"original": 5.0, "calibrated": 4.25}, trained=3.5
    )
    assert one.brought_back("calibrated") == pytest.approx(0.5)
    assert one.brought_back("original") == 0.0
    assert one.brought_back("entropy") is None


def test_entropies_of_a_level_are_means_of_its_layers(runs):
    found = level_entropies(read_run(runs[1]))
    assert [(str(one.size), one.tokens) for one in found] == [
        ("128x128", 256),
        ("128x128", 64),
        ("256x256", 1024),
        ("256x256", 256),
    ]
    assert found[2].entropy["original"] == pytest.approx(math.log(1024) - 0.5)
    assert found[2].trained == pytest.approx(math.log(256) - 0.5)
    assert found[2].brought_back("calibrated") == pytest.approx(0.25 / math.log(4))


def test_runs_without_the_rule_are_refused(tmp_path):
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    run = SyntheticRun(sizes=(TRAIN,), prompts=PROMPTS, cell_pixels=8).write(tmp_path / "run")
    with pytest.raises(UserError, match="rule 'calibrated' was not drawn"):
        write_calibrated([run], document)
    assert document.read_text() == MARKS
