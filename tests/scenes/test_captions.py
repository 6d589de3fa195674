"""The caption grammar, and the sets of captions that training, sweeps and evaluations use."""

from collections import Counter

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.captions import Kind, parse_caption, write_caption
from entscale_jax.scenes.captions import balanced_captions, sample_captions

EXAMPLES = {
    "a red circle": (Kind("red", "circle"),),
    "a red circle and a blue square": (Kind("red", "circle"), Kind("blue", "square")),
    "a red circle, a blue square and a green triangle": (
        Kind("red", "circle"),
        Kind("blue", "square"),
        Kind("green", "triangle"),
    ),
}


def object_count(caption: str) -> int:
    return caption.count("a ") - caption.count("a and ")


@pytest.mark.parametrize("caption", EXAMPLES)
def test_grammar_reads_and_writes(caption):
    assert parse_caption(caption) == EXAMPLES[caption]
    assert write_caption(EXAMPLES[caption]) == caption


def test_case_and_spacing_are_free():
    assert parse_caption("  A Red  circle AND a blue square") == EXAMPLES["a red circle and a blue square"]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a purple circle", "'a purple circle', which is no object"),
        ("a red star", "which is no object"),
        ("red circle", "write `a COLOUR SHAPE`"),
        ("", "which is no object"),
        ("a red circle and", "which is no object"),
        ("a red circle and a red circle", "the same object twice"),
        ("a red circle, a red square, a red triangle and a blue circle", "names 4 objects: name at most 3"),
    ],
)
def test_captions_outside_the_grammar_are_user_errors(caption, message):
    with pytest.raises(UserError, match=message):
        parse_caption(caption)


def test_sampled_captions_have_one_to_three_objects_in_equal_shares():
    numbers = Counter(object_count(caption) for caption in sample_captions(np.random.default_rng(0), 3000))
    assert set(numbers) == {1, 2, 3}
    assert all(900 < count < 1100 for count in numbers.values())  # 1000 and four standard deviations of 26


def test_sampled_captions_use_every_kind_alike():
    captions = sample_captions(np.random.default_rng(1), 2400, objects=1)
    counts = Counter(captions)
    assert len(counts) == 12
    assert all(140 < count < 260 for count in counts.values())  # 200 and four standard deviations of 14


def test_objects_of_a_caption_differ_in_kind_but_may_share_a_colour_or_a_shape():
    scenes = [parse_caption(caption) for caption in sample_captions(np.random.default_rng(2), 300, objects=3)]
    assert all(len(set(kinds)) == 3 for kinds in scenes)
    assert any(len({kind.colour for kind in kinds}) == 1 for kinds in scenes)
    assert any(len({kind.shape for kind in kinds}) == 1 for kinds in scenes)


def test_same_generator_same_captions_other_generator_others():
    first, again, other = (sample_captions(np.random.default_rng(seed), 20) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_first_eight_are_a_fair_mix():
    captions = balanced_captions(8)
    assert [object_count(caption) for caption in captions] == [1, 2, 3, 1, 2, 3, 1, 2]
    kinds = [kind for caption in captions for kind in parse_caption(caption)]
    assert len(set(kinds)) == 12


def test_balanced_captions_name_every_kind_equally_often():
    kinds = Counter(kind for caption in balanced_captions(126) for kind in parse_caption(caption))
    assert set(kinds.values()) == {126 * 2 // 12}


def test_balanced_captions_are_thirds_fixed_and_begin_alike():
    captions = balanced_captions(128)
    assert Counter(object_count(caption) for caption in captions) == {1: 43, 2: 43, 3: 42}
    assert balanced_captions(8) == captions[:8]
    assert balanced_captions(128) == captions
    assert balanced_captions(128, seed=1) != captions


def test_balanced_captions_are_distinct_as_far_as_they_go():
    captions = balanced_captions(128)
    several = [caption for caption in captions if object_count(caption) > 1]
    assert len(set(several)) == len(several)
    singles = [caption for caption in captions if object_count(caption) == 1]
    assert all(len(set(singles[i : i + 12])) == 12 for i in (0, 12, 24))


@pytest.mark.parametrize("objects", [0, 4])
def test_an_impossible_number_of_objects_is_a_user_error(objects):
    with pytest.raises(UserError, match=f"captions of {objects} objects asked for: give 1 to 3"):
        sample_captions(np.random.default_rng(0), 1, objects)


def test_a_negative_count_is_a_user_error():
    with pytest.raises(UserError, match="-1 captions"):
        balanced_captions(-1)
