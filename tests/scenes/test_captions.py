"""The caption grammar, and the sets of captions that training, sweeps and evaluations use."""

from collections import Counter

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.captions import KINDS, Kind, parse_caption, radii, write_caption
from entscale_jax.scenes.captions import balanced_captions, count_captions, held_out_captions, sample_captions

EXAMPLES = {
    "a red circle": (Kind("red", "circle"),),
    "a red circle and a blue square": (Kind("red", "circle"), Kind("blue", "square")),
    "a red circle, a blue square and a green triangle": (
        Kind("red", "circle"),
        Kind("blue", "square"),
        Kind("green", "triangle"),
    ),
    "a red circle, a blue square, a green triangle and a yellow square": (
        Kind("red", "circle"),
        Kind("blue", "square"),
        Kind("green", "triangle"),
        Kind("yellow", "square"),
    ),
}
WITH = {
    "a red circle with a blue square": (Kind("red", "circle"), Kind("blue", "square")),
    "a red circle with a blue square, a green triangle and a yellow square": (
        Kind("red", "circle"),
        Kind("blue", "square"),
        Kind("green", "triangle"),
        Kind("yellow", "square"),
    ),
}
# Never together in a training picture.
HELD_OUT = [
    {"a red circle", "a blue square"},
    {"a green square", "a yellow triangle"},
    {"a blue triangle", "a red square"},
    {"a yellow circle", "a green triangle"},
    {"a red triangle", "a green circle"},
    {"a blue circle", "a yellow square"},
]


def object_count(caption: str) -> int:
    return sum(caption.count(shape) for shape in ("circle", "square", "triangle"))


def holds_a_held_out_pair(caption: str) -> bool:
    return any(all(kind in caption for kind in pair) for pair in HELD_OUT)


@pytest.mark.parametrize("caption", EXAMPLES)
def test_grammar_reads_and_writes(caption):
    assert parse_caption(caption) == EXAMPLES[caption]
    assert write_caption(EXAMPLES[caption]) == caption


@pytest.mark.parametrize("caption", WITH)
def test_grammar_joins_by_with(caption):
    assert parse_caption(caption) == WITH[caption]
    assert write_caption(WITH[caption], joined_by_with=True) == caption


def test_one_object_is_joined_by_nothing():
    assert write_caption([Kind("red", "circle")], joined_by_with=True) == "a red circle"


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
        ("a red circle with", "which is no object"),
        (
            "a red circle, a red square, a red triangle, a blue circle and a blue square",
            "names 5 objects: name at most 4",
        ),
    ],
)
def test_captions_outside_the_grammar_are_user_errors(caption, message):
    with pytest.raises(UserError, match=message):
        parse_caption(caption)


@pytest.mark.parametrize(
    ("width", "height", "least", "largest"),
    [
        (128, 128, 14.0, 18.0),
        (64, 64, 7.0, 9.0),
        (64, 36, 5.25, 6.75),
        (36, 64, 5.25, 6.75),
        (128, 32, 7.0, 9.0),
        (256, 64, 14.0, 18.0),
        (256, 256, 14.0, 18.0),
    ],
)
def test_radii_follow_the_area_up_to_that_of_training(width, height, least, largest):
    assert radii(height, width) == pytest.approx((least, largest))


def test_sampled_captions_have_one_to_four_objects_in_equal_shares():
    numbers = Counter(object_count(caption) for caption in sample_captions(np.random.default_rng(0), 4000))
    assert set(numbers) == {1, 2, 3, 4}
    assert all(890 < count < 1110 for count in numbers.values())  # 1000 and four standard deviations of 27


def test_a_quarter_of_the_sampled_captions_of_several_objects_say_with():
    captions = sample_captions(np.random.default_rng(5), 2000, objects=3)
    assert 420 < sum(" with " in caption for caption in captions) < 580  # 500 and four standard deviations of 19
    assert not any(" with " in caption for caption in sample_captions(np.random.default_rng(5), 200, objects=1))


def test_training_never_names_a_held_out_pair_and_the_held_out_captions_always_do():
    rng = np.random.default_rng(6)
    assert not any(holds_a_held_out_pair(caption) for caption in sample_captions(rng, 2000))
    assert not any(holds_a_held_out_pair(caption) for caption in balanced_captions(512))
    for objects in (None, 2, 3, 4):
        captions = held_out_captions(rng, 200, objects)
        assert all(holds_a_held_out_pair(caption) for caption in captions)
        assert {object_count(caption) for caption in captions} == ({2, 3, 4} if objects is None else {objects})


def test_every_kind_is_in_one_held_out_pair():
    assert sorted(kind for pair in HELD_OUT for kind in pair) == sorted(map(str, KINDS))


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
    assert [object_count(caption) for caption in captions] == [1, 2, 3, 4, 1, 2, 3, 4]
    kinds = [kind for caption in captions for kind in parse_caption(caption)]
    assert len(set(kinds)) == 12


def test_balanced_captions_name_every_kind_equally_often():
    kinds = Counter(kind for caption in balanced_captions(192) for kind in parse_caption(caption))
    assert set(kinds.values()) == {48 * 10 // 12}


def test_so_many_captions_differ():
    # Each of 12 kinds shuts out itself and the one that it is held out with.
    assert count_captions() == 12 + 12 * 10 + 12 * 10 * 8 + 12 * 10 * 8 * 6
    drawn = balanced_captions(4 * 12 * 100)
    assert {caption for caption in drawn if len(parse_caption(caption)) == 1} == {str(kind) for kind in KINDS}
    assert len({caption for caption in drawn if len(parse_caption(caption)) == 2}) == 12 * 10


def test_balanced_captions_are_quarters_fixed_and_begin_alike():
    captions = balanced_captions(128)
    assert Counter(object_count(caption) for caption in captions) == {1: 32, 2: 32, 3: 32, 4: 32}
    assert balanced_captions(8) == captions[:8]
    assert balanced_captions(128) == captions
    assert balanced_captions(128, seed=1) != captions


def test_balanced_captions_name_each_kind_alone_once_in_twelve():
    singles = [caption for caption in balanced_captions(144) if object_count(caption) == 1]
    assert all(len(set(singles[i : i + 12])) == 12 for i in (0, 12, 24))


@pytest.mark.parametrize("objects", [0, 5])
def test_an_impossible_number_of_objects_is_a_user_error(objects):
    with pytest.raises(UserError, match=f"captions of {objects} objects asked for: give 1 to 4"):
        sample_captions(np.random.default_rng(0), 1, objects)


def test_one_object_is_no_pair_to_hold_out():
    with pytest.raises(UserError, match="captions of 1 objects asked for: give 2 to 4"):
        held_out_captions(np.random.default_rng(0), 1, 1)


def test_a_negative_count_is_a_user_error():
    with pytest.raises(UserError, match="-1 captions"):
        balanced_captions(-1)
