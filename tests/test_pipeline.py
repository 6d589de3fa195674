"""What a call draws: the same picture alone or in a batch, at any size, and one clear message for what can't be."""

from dataclasses import replace

import numpy as np
import pytest

from entscale_jax import Scaling, TextToImage, UserError

CAPTIONS = ["a red circle", "a blue square", "a green triangle"]
QUICK = {"height": 24, "width": 40, "steps": 3}
# Of latents with unit variance: two compiled programs of different batch differ by float32 rounding alone.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def drawn(tiny):
    return tiny(CAPTIONS, seed=[7, 3, 11], measure_entropy=True, **QUICK)


def test_a_picture_does_not_depend_on_its_neighbours(tiny, drawn):
    alone = tiny(CAPTIONS[1], seed=3, **QUICK)
    np.testing.assert_allclose(alone.latents[0], drawn.latents[1], atol=ROUNDING)
    other = tiny(CAPTIONS[1], seed=4, **QUICK)
    assert np.abs(other.latents[0] - drawn.latents[1]).max() > 100 * ROUNDING


def test_one_seed_counts_up(tiny):
    counted, listed = tiny(CAPTIONS[:2], seed=5, **QUICK), tiny(CAPTIONS[:2], seed=[5, 6], **QUICK)
    np.testing.assert_array_equal(counted.latents, listed.latents)


def test_measuring_draws_the_same(tiny, drawn):
    plain = tiny(CAPTIONS, seed=[7, 3, 11], **QUICK)
    np.testing.assert_allclose(plain.latents, drawn.latents, atol=ROUNDING)
    assert plain.entropy is None
    assert plain.logit_gap is None


def test_entropy_and_logit_gap_are_a_layer_a_step_a_picture_a_head(tiny, drawn):
    assert set(drawn.entropy) == set(drawn.logit_gap) == set(tiny.layers)
    for name, (level, heads, _) in tiny.layers.items():
        entropy, gap = drawn.entropy[name], drawn.logit_gap[name]
        assert entropy.shape == gap.shape == (3, 3, heads)
        uniform = np.log(tiny.info.tokens(tiny.info.bucket(24, 40))[level])
        assert (entropy > 0).all()
        # No entropy is below the share of the largest weight: E >= -log max A = log N - gap.
        assert (uniform - gap <= entropy + 1e-4).all()
        assert (entropy <= uniform + 1e-4).all()
        assert (gap >= 0).all()


def test_levels_follow_the_path_of_a_layer(tiny):
    assert {name.rsplit("/", 5)[0]: level for name, (level, _, _) in tiny.layers.items()} == {
        "down_blocks/0": 0,
        "down_blocks/1": 1,
        "mid_block": 1,
        "up_blocks/0": 1,
        "up_blocks/1": 0,
    }


def test_rules_differ_off_the_training_size_and_agree_on_it(tiny):
    def distance(height, width):
        one, other = (
            tiny(CAPTIONS[0], height=height, width=width, rule=rule, steps=3) for rule in ("original", "entropy")
        )
        return np.abs(one.latents - other.latents).max()

    assert distance(32, 32) == 0
    assert distance(16, 64) == 0  # as many tokens at both levels as in training
    assert distance(64, 64) > 100 * ROUNDING


def test_fixed_takes_one_multiplier_or_one_a_level(tiny):
    size = {"height": 64, "width": 64, "steps": 3}
    entropy = tiny(CAPTIONS[0], rule="entropy", **size)
    multipliers = tiny.info.multipliers(tiny.info.bucket(64, 64), Scaling())
    fixed = tiny(CAPTIONS[0], rule="fixed", multiplier=multipliers, **size)
    np.testing.assert_allclose(fixed.latents, entropy.latents, atol=ROUNDING)
    one = tiny(CAPTIONS[0], rule={"rule": "fixed", "multiplier": 0.5}, **size)
    assert np.abs(one.latents - entropy.latents).max() > 100 * ROUNDING


def test_a_size_off_the_latent_grid_is_cropped_from_the_next_bucket(tiny):
    whole, part = (tiny(CAPTIONS[0], height=h, width=w, steps=3) for h, w in ((24, 40), (21, 37)))
    assert part.images.shape == (1, 21, 37, 3)
    np.testing.assert_array_equal(part.images, whole.images[:, 1:22, 1:38])


def test_image_to_image_keeps_more_of_the_picture_with_less_strength(tiny):
    image = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
    options = {"image": image, "steps": 4, "guidance": 1.0, "decode": False}
    little, more, whole = (tiny(CAPTIONS[0], strength=strength, **options).latents for strength in (0.25, 0.75, 1.0))
    assert little.shape == (1, 6, 10, 4)
    assert np.abs(little - more).max() > 100 * ROUNDING
    again = tiny(CAPTIONS[0], strength=0.25, **options).latents
    np.testing.assert_array_equal(again, little)
    fresh = tiny(CAPTIONS[0], height=24, width=40, steps=4, guidance=1.0, decode=False).latents
    assert np.abs(whole - fresh).max() > 100 * ROUNDING  # at strength 1 a little of the picture is left in the noise


def test_image_to_image_at_a_size_off_the_grid_is_padded_and_cropped(tiny):
    image = np.random.default_rng(3).integers(0, 256, (21, 37, 3), np.uint8)
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)), mode="edge")
    part, whole = (tiny(CAPTIONS[0], image=each, steps=3).images for each in (image, padded))
    assert part.shape == (1, 21, 37, 3)
    np.testing.assert_array_equal(part, whole[:, 1:22, 1:38])


def test_one_picture_serves_all_captions_or_each_has_its_own(tiny):
    images = np.random.default_rng(4).integers(0, 256, (2, 24, 40, 3), np.uint8)
    both = tiny(CAPTIONS[:2], image=images, seed=[1, 1], steps=2, decode=False).latents
    first = tiny(CAPTIONS[:2], image=images[0], seed=[1, 1], steps=2, decode=False).latents
    np.testing.assert_allclose(both[0], first[0], atol=ROUNDING)
    assert np.abs(both[1] - first[1]).max() > 100 * ROUNDING


def test_negative_prompts_are_one_a_picture(tiny):
    two = tiny([CAPTIONS[0]] * 2, seed=[1, 1], negative_prompt=["", CAPTIONS[1]], decode=False, **QUICK).latents
    none = tiny(CAPTIONS[0], seed=1, decode=False, **QUICK).latents
    np.testing.assert_allclose(two[0], none[0], atol=ROUNDING)
    assert np.abs(two[1] - none[0]).max() > 100 * ROUNDING


def test_given_latents_replace_the_seed(tiny, drawn):
    start = np.random.default_rng(0).normal(size=(1, 6, 10, 4)).astype(np.float32)
    one, other = (tiny(CAPTIONS[0], latents=start, seed=seed, **QUICK) for seed in (1, 2))
    np.testing.assert_array_equal(one.latents, other.latents)


def test_guidance_1_throughout_draws_unguided(tiny):
    tiny(CAPTIONS[:2], guidance=[1.0, 1.0], height=24, width=32, steps=2)
    assert [request.guided for kind, request in _denoising(tiny) if request.grid == (6, 8)] == [False]
    tiny(CAPTIONS[:2], guidance=[1.0, 3.0], height=24, width=32, steps=2)
    assert sorted(request.guided for kind, request in _denoising(tiny) if request.grid == (6, 8)) == [False, True]


def test_guidance_is_one_a_picture(tiny):
    mixed = tiny([CAPTIONS[0]] * 2, seed=[1, 1], guidance=[2.0, 6.0], **QUICK)
    assert np.abs(mixed.latents[0] - mixed.latents[1]).max() > 100 * ROUNDING
    single = tiny(CAPTIONS[0], seed=1, guidance=6.0, **QUICK)
    np.testing.assert_allclose(mixed.latents[1], single.latents[0], atol=ROUNDING)


def test_compile_ahead_leaves_nothing_to_compile(tiny):
    tiny.compile(batch=2, height=32, width=24, steps=2)
    before = tiny.programs.compile_seconds
    tiny(CAPTIONS[:2], height=32, width=24, steps=2)
    assert tiny.programs.compile_seconds == before
    tiny.compile(batch=2, height=32, width=24, steps=2, strength=0.5)
    before = tiny.programs.compile_seconds
    tiny(CAPTIONS[:2], image=np.zeros((32, 24, 3), np.uint8), strength=0.5, steps=2)
    assert tiny.programs.compile_seconds == before


MIXED = {"seed": [7, 3, 11], "guidance": [1.0, 1.0, 6.0], "measure_entropy": True, **QUICK}


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_a_split_batch_draws_the_pictures_of_the_whole(tiny, sampler):
    whole, split = (tiny(CAPTIONS, sampler=sampler, max_batch=most, **MIXED) for most in (3, 2))
    assert split.images.shape == whole.images.shape
    np.testing.assert_allclose(split.latents, whole.latents, atol=ROUNDING)
    assert np.abs(split.images.astype(int) - whole.images).max() <= 1
    for found, wanted in ((split.entropy, whole.entropy), (split.logit_gap, whole.logit_gap)):
        for name in tiny.layers:
            np.testing.assert_allclose(found[name], wanted[name], atol=ROUNDING)
    # Each picture is its own, also the one that the last group holds twice.
    assert min(np.abs(split.latents[i] - whole.latents[j]).max() for i, j in ((0, 1), (1, 2), (2, 1))) > 100 * ROUNDING


def test_one_program_serves_every_group(tiny):
    tiny(CAPTIONS, guidance=[1.0, 1.0, 6.0], max_batch=2, height=32, width=56, steps=2)
    (key,) = [key for key in _denoising(tiny) if key[1].grid == (8, 14)]
    assert (key[1].batch, key[1].guided) == (2, True)
    before = tiny.programs.compile_seconds
    tiny.compile(batch=3, guidance=[1.0, 1.0, 6.0], max_batch=2, height=32, width=56, steps=2)
    assert tiny.programs.compile_seconds == before


def test_a_split_batch_takes_each_picture_s_own_latents(tiny):
    start = np.random.default_rng(0).normal(size=(3, 6, 10, 4)).astype(np.float32)
    whole, split = (tiny(CAPTIONS, latents=start, max_batch=most, **QUICK) for most in (None, 2))
    np.testing.assert_allclose(split.latents, whole.latents, atol=ROUNDING)
    assert tiny(CAPTIONS, latents=start, max_batch=2, decode=False, **QUICK).images is None


def test_pictures_decoded_in_turns_are_those_decoded_together(tiny, drawn):
    whole, parts = (np.asarray(tiny.programs.decode(drawn.latents, decode_batch=most).images) for most in (None, 2))
    assert parts.shape == whole.shape
    assert np.abs(parts.astype(int) - whole).max() <= 1
    assert np.abs(parts.astype(int) - whole[[1, 2, 0]]).max() > 10
    shapes = {key[1] for key in tiny.programs.cache.compiled if key[0] == "decode" and key[1][1:3] == (6, 10)}
    assert {(3, 6, 10, 4), (2, 6, 10, 4)} <= shapes


def test_tiles_are_decoded_and_put_together(tiny_folder):
    pipe = TextToImage.from_pretrained(tiny_folder)  # with programs of its own, which are counted
    # sample_size is 32 in its config: tiles of 8 cells, of which 6 lie between two beginnings.
    latents = np.random.default_rng(2).normal(size=(2, 7, 9, 4)).astype(np.float32)
    found = np.asarray(pipe.programs.decode(latents, tiling=True, decode_batch=1).images)
    assert found.shape == (2, 28, 36, 3)
    # What one tile alone covers is that tile's decoding: 8 cells less the 2 that it shares.
    first = np.asarray(pipe.programs.decode(latents[:, :7, :8]).images)
    assert np.abs(found[:, :24, :24].astype(int) - first[:, :24, :24]).max() <= 1
    assert np.abs(found.astype(int) - np.asarray(pipe.programs.decode(latents).images)).max() > 10
    assert sum(key[0] == "tile" for key in pipe.programs.cache.compiled) == 4


@pytest.mark.parametrize("how", [{}, {"tiling": True}, {"decode_batch": 2}])
def test_what_overflows_in_the_decoder_alone_is_counted_and_changes_no_other_picture(tiny, how):
    latents = np.random.default_rng(2).normal(size=(3, 7, 9, 4)).astype(np.float32)
    clean = tiny.programs.decode(latents, **how)
    np.testing.assert_array_equal(clean.broken, 0)
    latents[1] *= 1e37
    assert np.isfinite(latents).all()
    images, broken = map(np.asarray, tiny.programs.decode(latents, **how))
    np.testing.assert_array_equal(broken > 0, [False, True, False])
    np.testing.assert_array_equal(images[[0, 2]], np.asarray(clean.images)[[0, 2]])


def test_a_call_tells_which_pictures_broke_in_the_decoder(tiny, monkeypatch):
    denoise = tiny.programs.denoise

    def too_large(request, latents, *arguments):
        final, measured = denoise(request, latents, *arguments)
        return final.at[0].multiply(1e37), measured

    assert not tiny(CAPTIONS, max_batch=2, **QUICK).broken.any()
    monkeypatch.setattr(tiny.programs, "denoise", too_large)
    drawn = tiny(CAPTIONS, max_batch=2, **QUICK)
    assert np.isfinite(drawn.latents).all()
    np.testing.assert_array_equal(drawn.broken > 0, [True, False, True])
    assert tiny(CAPTIONS, decode=False, **QUICK).broken is None


def test_tiling_leaves_alone_what_one_tile_holds(tiny):
    latents = np.random.default_rng(2).normal(size=(1, 8, 7, 4)).astype(np.float32)
    whole, tiled = (np.asarray(tiny.programs.decode(latents, tiling=tiling).images) for tiling in (False, True))
    np.testing.assert_array_equal(whole, tiled)


def test_compile_ahead_knows_tiles_and_turns(tiny):
    options = {"tiling": True, "decode_batch": 1, **QUICK}
    tiny.compile(batch=2, **options)
    before = tiny.programs.compile_seconds
    tiled = tiny(CAPTIONS[:2], **options)
    assert tiny.programs.compile_seconds == before
    whole = tiny(CAPTIONS[:2], **QUICK)
    np.testing.assert_array_equal(tiled.latents, whole.latents)
    assert tiled.images.shape == whole.images.shape
    assert (tiled.images != whole.images).any()


def test_a_size_that_gives_no_tiles_is_named(tiny_folder):
    pipe = TextToImage.from_pretrained(tiny_folder)
    pipe.programs.first_stage.config = replace(pipe.info.vae, sample_size=24)
    with pytest.raises(UserError, match="sample_size=24 gives no tiles"):
        pipe(CAPTIONS[0], tiling=True, **QUICK)


def test_without_decoding_there_are_no_images(tiny):
    assert tiny(CAPTIONS[0], decode=False, **QUICK).images is None


def test_train_size_moves_t(tiny_folder):
    moved = TextToImage.from_pretrained(tiny_folder, train_size=(64, 32))
    assert moved.info.train_tokens == (128, 32)
    assert moved.unet.config.train_tokens == (128, 32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": []}, "prompts is empty: give at least one caption"),
        ({"prompts": ["a", 3]}, "prompt 3 is no text"),
        ({"height": 0}, "height is 0"),
        ({"height": 3}, "below one latent cell of 4x4 pixels"),
        ({"height": 4, "width": 4}, "1 token at the deepest of 2 levels"),
        ({"rule": "entropi"}, "unknown rule 'entropi'"),
        ({"rule": "fixed", "multiplier": [1.0, 1.0, 1.0]}, "3 values and the model 2 levels"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2000}, "steps is 2000"),
        ({"seed": -1}, "seed -1"),
        ({"seed": [1, 2]}, "seed has 2 values for 1 captions"),
        ({"guidance": [1.0, 2.0]}, "guidance is"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, "image is 8x8 and the size asked for 40x24"),
        ({"image": np.zeros((24, 40, 3), np.uint8), "strength": 0}, "strength is 0"),
        ({"target_size": (8, 8)}, "target_size are SDXL's"),
        ({"max_batch": 0}, "max_batch is 0: give a whole number from 1"),
        ({"max_batch": -2}, "max_batch is -2"),
        ({"max_batch": 1.5}, "max_batch is 1.5"),
        ({"max_batch": True}, "max_batch is True"),
        ({"decode_batch": 0}, "decode_batch is 0: give a whole number from 1"),
        ({"decode_batch": "2"}, "decode_batch is '2'"),
        ({"latents": np.zeros((1, 3, 3, 4), np.float32)}, r"latents have shape \(1, 3, 3, 4\)"),
    ],
)
def test_bad_input_is_named(tiny, arguments, said):
    with pytest.raises(UserError, match=said) as error:
        tiny(**{"prompts": CAPTIONS[:1], "height": 24, "width": 40, "steps": 3, **arguments})
    assert "\n" not in str(error.value)


def test_a_caption_that_is_too_long_is_cut_with_a_warning(tiny):
    with pytest.warns(UserWarning, match="reads 24 tokens, the rest is cut"):
        tiny("a red circle and " * 8, **QUICK)


def _denoising(pipe):
    return [key for key in pipe.programs.cache.compiled if key[0] == "denoise"]
