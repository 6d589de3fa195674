"""Lines, gaps and shares of entropies that are stated, so that every number is known."""

import math

import pytest

from entscale_jax.entropies import EntropyPoint, EntropyStudy, fit_line, network_order

LAYERS = ("down_blocks/0/attn1", "up_blocks/0/attn1")
TRAIN, LARGE, WIDE = (64, 64), (128, 128), (256, 64)


def point(size, method, *layers, tokens=None, images=(0.0, 0.0)):
    """Mean entropies of the layers; `images` are what each of the pictures has above them."""
    count = size[0] * size[1] // 16
    return EntropyPoint(
        size=size,
        method=method,
        tokens=tokens or (count, count),
        images={("a circle", seed): tuple(layer + above for layer in layers) for seed, above in enumerate(images)},
    )


def study(*points, train_size=TRAIN):
    return EntropyStudy(model="m", layers=LAYERS, train_tokens=(256, 256), train_size=train_size, points=points)


def test_a_line_of_known_slope_is_found():
    tokens = [64, 256, 1024]
    line = fit_line(tokens, [0.5 * math.log(count) + 2 for count in tokens])
    assert line.slope == pytest.approx(0.5)
    assert line.intercept == pytest.approx(2)
    assert line.r_squared == pytest.approx(1)
    assert line.at(100) == pytest.approx(0.5 * math.log(100) + 2)


def test_what_the_line_leaves_is_counted():
    """At log N = 0, 1, 2 the values 0, 3, 0: the best line is flat at 1 and explains nothing."""
    tokens = [1, math.e, math.e**2]
    line = fit_line(tokens, [0, 3, 0])
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((0, 1, 0), abs=1e-12)
    assert math.isnan(fit_line(tokens, [2, 2, 2]).r_squared)


def test_one_token_count_has_no_line():
    assert fit_line([256, 256], [3.0, 3.1]) is None


@pytest.mark.parametrize(("scaled", "share"), [(4.0, 0.0), (3.5, 0.5), (3.0, 1.0), (2.5, 1.5), (4.5, -0.5)])
def test_the_share_of_the_gap_that_comes_back(scaled, share):
    """E_T is 3 and E_N 4 under `original`."""
    found = study(
        point(TRAIN, "original", 2.0, 4.0), point(LARGE, "original", 3.0, 5.0), point(LARGE, "entropy", scaled, scaled)
    )
    original, entropy = found.points[1:]
    assert found.gap(original).mean == pytest.approx(1.0)
    told = found.share(entropy)
    assert (told.mean, told.low, told.high, told.count) == pytest.approx((share, share, share, 2))
    assert found.share(original) is None
    assert found.share(found.trained) is None


def test_no_share_is_told_where_no_gap_is_shown():
    """The pictures' gaps are 0.1 + 1 and 0.1 - 1: their interval includes 0."""
    found = study(
        point(TRAIN, "original", 3.0, 3.0),
        point(LARGE, "original", 3.1, 3.1, images=(1.0, -1.0)),
        point(LARGE, "entropy", 3.0, 3.0),
    )
    assert found.gap(found.points[1]).holds_zero
    assert found.share(found.points[2]) is None


def test_gaps_are_of_pairs():
    """Pictures differ by 2 nats and every one grows by 0.5; a picture that one side lacks counts for nothing."""
    large = point(LARGE, "original", 3.5, 3.5, images=(1.0, -1.0, 40.0))
    found = study(point(TRAIN, "original", 3.0, 3.0, images=(1.0, -1.0)), large)
    gap = found.gap(large)
    assert (gap.mean, gap.low, gap.high, gap.count) == pytest.approx((0.5, 0.5, 0.5, 2))


def test_layers_have_shares_of_their_own():
    found = study(
        point(TRAIN, "original", 3.0, 3.0), point(LARGE, "original", 4.0, 3.005), point(LARGE, "entropy", 3.8, 3.001)
    )
    share, none = found.layer_shares(found.points[2])
    assert share.mean == pytest.approx(0.2)
    assert none is None  # 0.005 nats are no gap
    assert found.layer_shares(found.points[1]) == (None, None)


def test_no_share_of_a_layer_is_told_where_no_gap_is_shown():
    trained, plain = point(TRAIN, "original", 3.0, 3.0), point(LARGE, "original", 3.5, 3.5, images=(1.0, -1.0))
    assert study(trained, plain, point(LARGE, "entropy", 3.1, 3.1)).layer_shares(plain) == (None, None)
    steady = point(LARGE, "original", 3.5, 3.5)
    found = study(trained, steady, point(LARGE, "entropy", 3.1, 3.1))
    assert [share.mean for share in found.layer_shares(found.points[2])] == pytest.approx([0.8, 0.8])


def test_a_share_is_uncertain_where_pictures_differ_and_its_mean_is_that_of_the_means():
    """Of two pictures the rule brings back 0.2 of 1 nat and 0.6 of 3: of the two together 0.8 of 4.

    Resampled, the first alone has 20%, both 20%: no width. With 0.2 and 1.8 it is 20% to 60%.
    """
    trained, plain = point(TRAIN, "original", 3.0, 3.0), point(LARGE, "original", 4.0, 4.0, images=(0.0, 2.0))
    even, uneven = (point(LARGE, "entropy", 4.0, 4.0, images=images) for images in ((-0.2, 1.4), (-0.2, 0.2)))
    for scaled, bounds in ((even, (0.2, 0.2, 0.2)), (uneven, (0.5, 0.2, 0.6))):
        found = study(trained, plain, scaled)
        for share in (found.share(scaled), *found.layer_shares(scaled)):
            assert (share.mean, share.low, share.high) == pytest.approx(bounds)


def test_gaps_of_layers_are_of_pairs():
    large = point(LARGE, "original", 3.5, 2.0, images=(1.0, -1.0))
    found = study(point(TRAIN, "original", 3.0, 3.0, images=(1.0, -1.0)), large)
    one, other = found.layer_gaps(large)
    assert (one.mean, one.low, one.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (other.mean, other.low, other.high) == pytest.approx((-1.0, -1.0, -1.0))
    # The layers' own means are as uncertain as the pictures differ.
    assert large.layer_intervals[0].high - large.layer_intervals[0].low == pytest.approx(2.0)
    assert found.layer_gaps(found.trained) is None


def test_the_line_has_intervals_over_the_pictures_that_all_sizes_share():
    """Sizes of 256 and 1,024 tokens: both pictures grow by log 4 times 1, or the second by none."""
    grown = math.log(4)
    same = [
        point(TRAIN, "original", 3.0, 3.0, images=(0, 1)),
        point(LARGE, "original", 3 + grown, 3 + grown, images=(0, 1)),
    ]
    slope, intercept = study(*same).line_intervals("original")
    assert (slope.mean, slope.low, slope.high, slope.count) == pytest.approx((1, 1, 1, 2))
    assert (intercept.low, intercept.high) == pytest.approx((3 - math.log(256), 4 - math.log(256)))
    uneven = [same[0], point(LARGE, "original", 3 + grown, 3 + grown, images=(0, 1 - grown))]
    slope, _ = study(*uneven).line_intervals("original")
    assert (slope.mean, slope.low, slope.high) == pytest.approx((0.5, 0, 1))
    assert study(*uneven).line("original").slope == pytest.approx(slope.mean)
    others = [same[0], point(LARGE, "original", 3.0, 3.0, images=(0, 1, 2))]
    assert study(*others).line_intervals("original") is None
    assert study(same[0]).line_intervals("original") is None


def test_without_the_training_size_there_is_no_gap():
    found = study(point(LARGE, "original", 3.0, 3.0), point(LARGE, "entropy", 2.9, 2.9), train_size=None)
    assert found.trained is None
    assert found.gap(found.points[0]) is None
    assert found.share(found.points[1]) is None
    assert found.layer_shares(found.points[1]) == (None, None)
    assert found.layer_gaps(found.points[1]) is None


def test_panels_are_the_sizes_nearest_to_half_and_twice_and_never_of_n_equal_t():
    sizes = [(32, 32), (64, 64), (128, 32), (48, 48), (80, 80), (128, 128), (256, 64), (512, 512)]
    found = study(*(point(size, "original", 3.0, 3.0) for size in sizes))
    assert found.panels() == [(32, 32), (80, 80), (128, 128)]
    assert study(point(TRAIN, "original", 3.0, 3.0)).panels() == []


def test_layers_come_in_the_order_of_the_network():
    names = [
        *(
            "down_blocks/0/attentions/0/transformer_blocks/2/attn1",
            "down_blocks/0/attentions/0/transformer_blocks/10/attn1",
        ),
        *("down_blocks/1/attentions/0/transformer_blocks/0/attn1", "mid_block/attentions/0/transformer_blocks/0/attn1"),
        "up_blocks/0/attentions/0/transformer_blocks/0/attn1",
    ]
    assert sorted(sorted(names), key=network_order) == names
    assert sorted(names) != names
