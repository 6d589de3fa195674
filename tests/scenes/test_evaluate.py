"""The measurements of a model's pictures, on painters of which the answer is known."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from painter import SIZE, Painter, blank, true_drawing
from PIL import Image

from entscale_jax.metrics.captions import parse_caption
from entscale_jax.scales import Scaling
from entscale_jax.scenes import evaluate, sensitivity
from entscale_jax.scenes.captions import balanced_captions, is_held_out
from entscale_jax.scenes.evaluate import contact_sheet, known_captions, new_captions, score


def objects(caption):
    return len(parse_caption(caption))


def cells(lines, name):
    """The cells of the table row that starts with `name`."""
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {name} |"))


def test_captions_come_in_equal_numbers_and_a_shorter_set_begins_a_longer_one():
    known, new = known_captions(9), new_captions(9)
    assert Counter(map(objects, known)) == {1: 9, 2: 9, 3: 9, 4: 9}
    assert Counter(map(objects, new)) == {2: 9, 3: 9, 4: 9}
    assert known[:20] == known_captions(5)
    assert not any(is_held_out(parse_caption(caption)) for caption in known)
    assert all(is_held_out(parse_caption(caption)) for caption in new)


def test_the_captions_of_sweeps_are_others():
    several = {caption for caption in known_captions(64) if objects(caption) > 2}
    assert len(several & set(balanced_captions(256))) < len(several) / 20


def test_score_counts_by_the_number_of_objects():
    captions = ["a red circle", "a blue square", "a red circle and a blue square"]
    images = np.stack([true_drawing(captions[0], 0), blank(captions[1], 0), true_drawing(captions[2], 0)])
    found = score(captions, images)
    assert found.exact == pytest.approx(2 / 3)
    assert found.exact_by_count == {1: 0.5, 2: 1.0}
    assert (found.missing, found.extra) == (pytest.approx(1 / 3), 0.0)


@pytest.fixture
def no_structure(monkeypatch):
    monkeypatch.setattr(evaluate, "structure", lambda pipe: {"attn1": evaluate.Structure(5.5, 4.0, 2.0, 3.25)})


@pytest.mark.usefixtures("no_structure")
def test_the_section_tells_held_out_pairs_from_the_others(tmp_path):
    def paint(caption, seed, scaling):
        return (blank if is_held_out(parse_caption(caption)) else true_drawing)(caption, seed)

    lines = evaluate.section(Painter(paint), tmp_path / "sheet.png", tmp_path, each=4)
    split = next(index for index, line in enumerate(lines) if "no training picture holds" in line)
    assert cells(lines[:split], "all")[1:] == [
        "16",
        "100.0 (100.0 to 100.0)",
        "0.00 (0.00 to 0.00)",
        "0.00 (0.00 to 0.00)",
    ]
    known_2, new_2 = cells(lines[:split], "2"), cells(lines[split:], "2")
    assert known_2[2] == "100.0 (100.0 to 100.0)"
    assert new_2[2:4] == ["0.0 (0.0 to 0.0)", "2.00 (2.00 to 2.00)"]
    assert new_2[5] == "−100.0 (−100.0 to −100.0)"
    assert cells(lines, "attn1") == ["attn1", "5.50", "4.00", "1.50", "2.00", "3.25"]


def test_structure_is_a_mean_over_pictures_steps_and_heads():
    entropy = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    gap = np.broadcast_to(np.array([1.0, 3.0], np.float32), (2, 3, 2))
    drawn = SimpleNamespace(entropy={"a": entropy}, logit_gap={"a": gap})

    class Measured(Painter):
        layers = {"a": (0, 2, 8)}  # noqa: RUF012

        def __call__(self, prompts, **options):
            assert options["measure_entropy"]
            return drawn

    pipe = Measured()
    pipe.info.train_tokens = (16,)
    found = evaluate.structure(pipe)["a"]
    assert (found.most, found.entropy, found.gap, found.sharpest_gap) == (pytest.approx(np.log(16)), 5.5, 2.0, 3.0)


def test_a_contact_sheet_marks_what_is_not_exact(tmp_path):
    captions = ["a red circle"] * 9
    images = np.stack([blank(captions[0], 0)] * 9)
    contact_sheet(captions, images, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        wrong = np.asarray(sheet, int)
    assert wrong.shape == (2 * (SIZE + 38), 8 * (SIZE + 8), 3)
    contact_sheet(captions, np.stack([true_drawing(each, 0) for each in captions]), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        right = np.asarray(sheet, int)
    below = np.s_[SIZE + 2 : SIZE + 38, :SIZE]
    assert (wrong[below][..., 0] > wrong[below][..., 1] + 50).any()
    assert not (right[below][..., 0] > right[below][..., 1] + 50).any()


def test_sensitivity_counts_the_pictures_that_another_multiplier_changes(tmp_path):
    def paint(caption, seed, scaling):
        flat = scaling == Scaling("fixed", 0.5) and seed % 4 == 0
        return (blank if flat else true_drawing)(caption, seed)

    lines = sensitivity.section(Painter(paint), tmp_path, multipliers=(1.001, 0.5), each=4)
    assert cells(lines, "1")[2] == "100.0 (100.0 to 100.0)"
    assert cells(lines, "1.001")[1] == "0.0 (0.0 to 0.0)"
    changes = cells(lines, "0.5")
    assert changes[1].startswith("25.0 (")
    assert changes[3].startswith("−25.0 (")
    assert changes[5] == "0.00 (0.00 to 0.00)"
