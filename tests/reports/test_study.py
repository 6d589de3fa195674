"""A study of runs whose every count is stated: means, differences, curves, and the section that says them."""

import math
from itertools import product

import numpy as np
import pytest
from PIL import Image
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports.run_folder import read_run
from entscale_jax.reports.studies import study as study_module
from entscale_jax.reports.studies.merge import merge_runs
from entscale_jax.reports.studies.study import Scope, make_study, scope_of, true_drawings
from entscale_jax.reports.studies.study_figures import short_name
from entscale_jax.reports.studies.study_section import write_study
from entscale_jax.scales import Scaling
from entscale_jax.scenes.captions import balanced_captions

HALF, TRAIN, TWICE = (64, 64), (128, 128), (256, 256)
PROMPTS = tuple(balanced_captions(4, seed=1))
EXACT = (True, 0, 0)
COMMON = {"sizes": (HALF, TRAIN, TWICE), "prompts": PROMPTS, "seeds": {"first": 50}, "cell_pixels": 8}
MARKS = "# Title\n\n<!-- measured: study -->\n<!-- end of measured: study -->\n\nBelow.\n"


def fixed(multiplier):
    return {"rule": "fixed", "multiplier": multiplier}


def rules_objects():
    """At half the size `original` misses 2, 1, 0, 0 objects and `entropy` 1, 0, 0, 0; at twice `original` has more."""
    missing = {"original": (2, 1, 0, 0), "entropy": (1, 0, 0, 0)}
    extra = {"original": (0, 0, 1, 1), "entropy": (3, 3, 1, 1)}
    counts = {
        (HALF, rule, p): (n == 0, n, 0) for rule, many in missing.items() for p, n in zip(PROMPTS, many, strict=True)
    }
    return counts | {
        (TWICE, rule, p): (n == 0, 0, n) for rule, many in extra.items() for p, n in zip(PROMPTS, many, strict=True)
    }


def write_runs(folder, *, rules_hold=None, **multipliers):
    """The three runs of a study: rules, multipliers (of two captions) and entropy (of one)."""
    rules = SyntheticRun(**COMMON, metrics=("objects",), objects=rules_hold or rules_objects())
    few = {**COMMON, "prompts": PROMPTS[:2]}
    curve = {(HALF, "fixed:0.5", p): (False, 4, 0) for p in PROMPTS} | {(HALF, "fixed:2", PROMPTS[0]): (False, 1, 0)}
    keys = {
        "methods": (fixed(0.5), fixed(2)),
        "metrics": ("objects",),
        "objects": curve,
        "name": "curve",
        **multipliers,
    }
    fixed_run = SyntheticRun(**{**few, **keys})
    entropy = SyntheticRun(**{**COMMON, "prompts": PROMPTS[:1]}, metrics=("entropy",))
    named = {"rules": rules, "multipliers": fixed_run, "entropy": entropy}
    return [run.write(folder / name) for name, run in named.items()]


@pytest.fixture
def no_truth(monkeypatch):
    """True drawings that are read exactly but for one missing object in the last caption."""

    def read(pairs, width, height):
        return {pair: EXACT if pair[0] != PROMPTS[3] else (0.0, 1.0, 0.0) for pair in pairs}

    monkeypatch.setattr(study_module, "true_drawings", read)


@pytest.fixture
def study(tmp_path, no_truth):
    return make_study(merge_runs([read_run(folder) for folder in write_runs(tmp_path)]))


def bounds(*values):
    """The 95% interval of the mean, of every way to resample `values` once each."""
    means = np.mean(list(product(values, repeat=len(values))), axis=1)
    return tuple(np.quantile(means, (0.025, 0.975)))


def by_size(study):
    return {(found.size.width, found.size.height): found for found in study.sizes}


def test_counts_are_the_means_over_all_captions_of_the_rules(study):
    half = by_size(study)[HALF].rules
    assert (half["original"].exact.mean, half["original"].missing.mean, half["original"].extra.mean) == (50, 0.75, 0)
    assert (half["entropy"].exact.mean, half["entropy"].missing.mean) == (75, 0.25)
    assert half["true drawings"].missing.mean == 0.25
    assert {counts.exact.count for counts in half.values()} == {4}


def test_the_effect_is_entropy_less_original_by_pairs(study, tmp_path, no_truth):
    sizes = by_size(study)
    assert (sizes[HALF].effect.exact.mean, sizes[HALF].effect.missing.mean) == (25, -0.5)
    # Two of four pairs have one missing object fewer: a mean of four resampled pairs is 0 only with probability 1/16.
    assert (sizes[HALF].effect.missing.low, sizes[HALF].effect.missing.high) == (-1, 0)
    assert (sizes[TWICE].effect.exact.mean, sizes[TWICE].effect.extra.mean) == (-50, 1.5)
    assert sizes[TRAIN].effect.reading == "all include 0"
    other = {"original": "entropy", "entropy": "original"}
    swapped = {(size, other[rule], prompt): counts for (size, rule, prompt), counts in rules_objects().items()}
    runs = write_runs(tmp_path / "swapped", rules_hold=swapped)
    effect = by_size(make_study(merge_runs([read_run(folder) for folder in runs])))[HALF].effect
    assert (effect.exact.mean, effect.missing.mean) == (-25, 0.5)


def test_faults_are_told_beyond_those_of_true_drawings_of_the_same_captions(study):
    half = by_size(study)[HALF].beyond_truth["original"]
    assert half.missing.mean == pytest.approx((2 + 1 + 0 + 0 - 1) / 4)
    assert (half.missing.low, half.missing.high) == bounds(2, 1, 0, -1)
    assert (half.missing.low, half.missing.high) != bounds(2, 1, 0, 0)
    assert half.exact.mean == -25


def test_a_curve_is_of_the_captions_that_all_its_multipliers_drew(study):
    curve = by_size(study)[HALF].curves[Scope.ALL]
    assert [*curve.points] == [0.5, 1.0, 2.0]
    assert {counts.exact.count for counts in curve.points.values()} == {2}
    # `original` over the first two captions alone is never exact and misses 2 and 1.
    assert [counts.exact.mean for counts in curve.points.values()] == [0, 0, 50]
    assert [counts.missing.mean for counts in curve.points.values()] == [4, 1.5, 0.5]
    assert (curve.entropy.missing.mean, curve.entropy.exact.count) == (0.5, 2)
    assert curve.gains[2.0].missing.mean == -1
    assert curve.gains[2.0].faults.mean == -1
    assert curve.best == 2.0


def test_the_rule_lies_on_the_curve_by_the_logarithm_of_its_multiplier(study):
    found = by_size(study)
    curve = found[HALF].curves[Scope.ALL]
    assert curve.rule == pytest.approx(math.sqrt(math.log(64) / math.log(256)))
    assert curve.at(math.sqrt(2))[0] == pytest.approx(25)
    assert curve.at(math.sqrt(0.5))[1] == pytest.approx((4 + 1.5) / 2)
    assert curve.at(1.5)[0] != pytest.approx(25)  # where a line over the multiplier itself would have it
    assert found[TRAIN].curves[Scope.ALL].rule == 1


def test_of_equally_good_multipliers_the_best_is_nearest_to_1(study):
    assert by_size(study)[TRAIN].curves[Scope.ALL].best == 1.0


def test_a_drawn_multiplier_of_1_is_taken_as_it_was_drawn(tmp_path, no_truth):
    objects = {(HALF, "fixed:1", prompt): (False, 3, 0) for prompt in PROMPTS}
    runs = write_runs(tmp_path, methods=(fixed(1), fixed(2)), objects=objects)
    curve = by_size(make_study(merge_runs([read_run(folder) for folder in runs])))[HALF].curves[Scope.ALL]
    assert curve.points[1.0].missing.mean == 3


@pytest.mark.parametrize(
    ("method", "place"),
    [
        (fixed(0.8), (Scope.ALL, 0.8)),
        (fixed([0.8]), (Scope.ALL, 0.8)),
        (fixed([0.8, 0.8, 0.8]), (Scope.ALL, 0.8)),
        (fixed([0.8, 1, 1]), (Scope.FINEST, 0.8)),
        (fixed([1, 0.8, 0.8]), (Scope.OTHERS, 0.8)),
        (fixed([1, 0.8, 0.7]), None),
        (fixed([0.9, 0.8, 0.8]), None),
        ("original", None),
        ("entropy", None),
    ],
)
def test_the_levels_that_a_multiplier_acts_on(method, place):
    assert scope_of(Scaling.of(method)) == place


def test_multipliers_at_some_levels_are_curves_of_their_own(tmp_path, no_truth):
    methods = (fixed(0.5), fixed([0.5, 1]), fixed([1, 0.5]))
    objects = {(HALF, "fixed:1,0.5", prompt): (False, 0, 5) for prompt in PROMPTS}
    runs = write_runs(tmp_path, methods=methods, objects=objects)
    found = by_size(make_study(merge_runs([read_run(folder) for folder in runs])))[HALF]
    assert [*found.curves] == [Scope.ALL, Scope.FINEST, Scope.OTHERS]
    assert found.curves[Scope.OTHERS].points[0.5].extra.mean == 5
    assert found.curves[Scope.FINEST].points[0.5].extra.mean == 0
    assert found.curves[Scope.FINEST].rule == pytest.approx(math.sqrt(math.log(64) / math.log(256)))
    assert found.curves[Scope.OTHERS].rule == pytest.approx(math.sqrt(math.log(16) / math.log(64)))


def test_sizes_are_named_by_what_they_are_to_the_training_size(study):
    assert [found.name for found in study.sizes] == [
        *("64x64 (half the training size)", "128x128 (the training size)", "256x256 (twice the training size)")
    ]
    assert study.at_area(2.0) is None


def test_true_drawings_are_read_exactly_and_others_are_not(monkeypatch):
    pairs = [(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    assert set(true_drawings(pairs, 128, 128).values()) == {(1.0, 0.0, 0.0)}

    def draw_nothing(caption, rng, *, height, width):
        return np.full((height, width, 3), 232, np.uint8)

    monkeypatch.setattr(study_module, "draw_scene", draw_nothing)
    assert [missing for _, missing, _ in true_drawings(pairs, 128, 128).values()] == [1, 2, 3, 4]


def test_captions_that_do_not_fit_have_no_true_drawing():
    assert true_drawings([(PROMPTS[3], 0)], 8, 8) == {}


def test_a_cell_of_two_runs_counts_once_and_with_its_objects(tmp_path):
    folders = write_runs(tmp_path)
    merged = merge_runs([read_run(folder) for folder in reversed(folders)])
    assert len(merged.samples) == len({sample.cell for sample in merged.samples})
    assert merged.pairs == [(prompt, 50 + number) for number, prompt in enumerate(PROMPTS)]
    pair = merged.pairs[0]
    (rules,) = [read_run(folder) for folder in folders[:1]]
    size = rules.sizes[0]
    assert merged.of(size, "original")[pair].objects == rules.of(size, "original")[pair].objects == (0, 2, 0)
    assert merged.scalings.keys() == {"original", "entropy", "fixed:0.5", "fixed:2"}


@pytest.mark.parametrize(("change", "said"), [({"weights": "ff" * 32}, "weights"), ({"steps": 3}, "sampler")])
def test_runs_that_can_not_be_compared(tmp_path, change, said):
    folders = write_runs(tmp_path, **change)
    with pytest.raises(UserError, match=f"differ in {said}.*draw both with the same"):
        merge_runs([read_run(folder) for folder in folders])


def test_tokens_must_be_known(tmp_path, no_truth):
    rules, *_ = write_runs(tmp_path)
    with pytest.raises(UserError, match="tokens of size 64x64 are not known: give the run that measured entropy"):
        make_study(merge_runs([read_run(rules)]))


def test_the_section_says_the_headlines(tmp_path, no_truth):
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    write_study(write_runs(tmp_path), document)
    text = document.read_text()
    assert "2 steps of DDIM, guidance 5.0" in text
    assert (
        "At 64x64 (half the training size) under rule `original` 0.75 (0.00 to 1.50) objects an image are missing"
        in text
    )
    low, high = bounds(2, 1, 0, -1)
    assert f"+0.50 (−{-low:.2f} to +{high:.2f}) beyond what true drawings of the same captions read; 50.0% (" in text
    assert (
        "At 256x256 (twice the training size) under rule `original` 0.50 (0.00 to 1.00) objects an image too many"
        in text
    )
    assert "At 128x128 (the training size) 100.0% (100.0 to 100.0) of 4 captions are drawn exactly" in text
    assert "| 256x256 | 4 | −50.0 (−100.0 to 0.0) | 0.00 (0.00 to 0.00) | +1.50 (0.00 to +3.00) |" in text
    assert "N = T: the same rule" in text
    assert "| 64x64 | 0.866 |" in text
    assert "at one level alone" not in text
    assert "Unfinished" not in text
    assert text.startswith("# Title")
    assert text.endswith("\n\nBelow.\n")


def test_the_headline_of_the_rule_says_each_difference_that_is_shown(tmp_path, no_truth):
    hold = {(HALF, rule, p): (False, n, 0) for rule, n in (("original", 2), ("entropy", 1)) for p in PROMPTS}
    hold |= {(TWICE, rule, p): (n == 0, 0, n) for rule, n in (("original", 0), ("entropy", 3)) for p in PROMPTS}
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    write_study(write_runs(tmp_path, rules_hold=hold), document)
    (line,) = [line for line in document.read_text().splitlines() if line.startswith("- Rule `entropy`")]
    assert line == (
        "- Rule `entropy` against `original`: fewer objects are missing at 64x64 (−1.00 (−1.00 to −1.00)); "
        "fewer images are exact at 256x256 (−100.0 (−100.0 to −100.0) points); "
        "more objects are extra at 256x256 (+3.00 (+3.00 to +3.00))."
    )


def test_pictures_stand_beside_the_document_and_all_are_shown(tmp_path, no_truth):
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    folders = write_runs(tmp_path)
    write_study(folders, document)
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(pictures) == {
        f"scenes-study-{name}.png"
        for name in ("rules", "multipliers", "scale", "entropy", "64x64", "128x128", "256x256")
    }
    for name in pictures:
        assert f"({name})" in document.read_text()
        assert np.asarray(Image.open(tmp_path / name))[..., :3].std() > 5
    before = document.read_bytes()
    write_study(folders, document)
    assert document.read_bytes() == before
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == pictures


def test_entropy_and_gap_are_told_by_layer_beside_log_n(tmp_path, no_truth):
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    write_study(write_runs(tmp_path), document)
    text = document.read_text()
    assert "| log N where T = 256 | 4.16 | 5.55 | 6.93 |" in text
    assert "| log N where T = 64 | 2.77 | 4.16 | 5.55 |" in text
    # Of each layer log N less 0.5 under `original` and less 0.75 under `entropy`; gaps are stated in the rows.
    assert "| down 0.1 | 3.66 / 3.41 | 5.05 / 4.80 | 6.43 / 6.18 |" in text
    assert "| down 1.0 | 2.50 / 2.50 | 2.50 / 2.50 | 2.50 / 2.50 |" in text


def test_what_is_missing_is_said(tmp_path, no_truth):
    document = tmp_path / "scenes.md"
    document.write_text(MARKS)
    folders = write_runs(tmp_path)
    next((folders[1] / "rows").iterdir()).unlink()
    write_study(folders, document)
    assert "**Unfinished: curve has 11 of 12 cells.**" in document.read_text()


def test_a_document_without_the_marks_stays_as_it_is(tmp_path, no_truth):
    document = tmp_path / "scenes.md"
    document.write_text("# Title\n")
    with pytest.raises(UserError, match="has no section 'study'"):
        write_study(write_runs(tmp_path), document)
    assert document.read_text() == "# Title\n"
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("down_blocks/0/attentions/1/transformer_blocks/2/attn1", "down 0.1.2"),
        ("mid_block/attentions/0/transformer_blocks/0/attn1", "mid 0.0"),
        ("up_blocks/1/attentions/0/transformer_blocks/0/attn1", "up 1.0.0"),
    ],
)
def test_short_names_tell_layers_apart(layer, name):
    assert short_name(layer) == name
