import hashlib
from collections import Counter
from dataclasses import replace

import pytest
import sweep_fakes as fakes
from sweep_fakes import small_plan

from entscale_jax.buckets import Bucket
from entscale_jax.errors import UserError
from entscale_jax.scales import Scaling
from entscale_jax.sweep.plan import auto_batch
from entscale_jax.train_entropy import TrainEntropy


def test_every_combination_is_a_cell_once():
    plan = small_plan()
    assert len(plan.cells) == 3 * 2 * 5 * 2
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)
    in_chunks = Counter(cell.id for chunk in plan.chunks for cell in chunk.cells)
    assert in_chunks == Counter(cell.id for cell in plan.cells)


def test_duplicates_are_one_cell():
    twice = small_plan(
        prompts=(*fakes.PROMPTS, *fakes.PROMPTS), seeds=[0, 7, 0], sizes=["64x64", "96x64", "30x30", "64x64"]
    )
    assert twice.cells == small_plan().cells
    assert twice.chunks == small_plan().chunks


def test_cells_of_the_other_rules_keep_the_ids_that_they_had_before_calibrated():
    methods = [
        "original",
        "entropy",
        {"rule": "fixed", "multiplier": 0.8},
        {"rule": "fixed", "multiplier": [0.8, 1, 2]},
    ]
    plan = small_plan(methods=methods, sizes=["64x64"], prompts=["a red circle"], seeds=[3])
    ids = ["5a41df8f4bf09ee0", "c4d0025cdbea6a68", "e84e12544b5cfb64", "edaff7b8ef11cd52"]
    assert [cell.id for cell in plan.cells] == ids


def calibrated_plan(entropies, sizes=("64x64", "96x64"), methods=("original", "calibrated")):
    """Under E_T that the model ships: `entropies` in order of its layers."""
    info = fakes.FakeInfo()
    layers = zip(info.unet.self_attention, entropies * len(info.unet.self_attention), strict=False)
    info.__dict__["train_entropy"] = TrainEntropy(tuple(sorted(layers)), shipped=True)
    return small_plan(models={"fake": info}, sizes=list(sizes), methods=list(methods))


def test_a_calibrated_cell_depends_on_the_entropies():
    one, other, again = (calibrated_plan(values) for values in ([1.0], [1.0, 0.5], [1.0]))
    ids = [{cell.id for cell in plan.cells if cell.method.label == "calibrated"} for plan in (one, other, again)]
    assert ids[0] == ids[2]
    assert not ids[0] & ids[1]
    assert len(ids[0]) == 2 * 5 * 2
    original = [{cell.id for cell in plan.cells if cell.method.label == "original"} for plan in (one, other)]
    assert original[0] == original[1]


def test_a_model_without_entropies_is_told_how_to_measure_them():
    with pytest.raises(UserError, match="model 'fake' does not ship: measure it by `entscale calibrate fake"):
        small_plan(methods=["calibrated"])


def test_a_size_where_the_rule_has_no_value_is_left_out_and_told():
    # 20x16 pixels are 5x4 cells at the finest level, then 3x2 and 2x1; E_T = 1 exceeds log 2.
    plan = calibrated_plan([1.0], sizes=("64x64", "20x16"))
    found = {(cell.width, cell.method.label) for cell in plan.cells}
    assert found == {(64, "original"), (64, "calibrated"), (20, "original")}
    (left_out,) = plan.undefined
    assert (left_out.size, left_out.method.label) == ((20, 16), "calibrated")
    assert "at N = 2, T = 16, E_T = 1" in left_out.reason
    assert "20x16 calibrated is not drawn: rule 'calibrated' has no value in layer" in str(left_out)
    with pytest.raises(UserError, match="no value"):
        calibrated_plan([1.0], sizes=["20x16"], methods=["calibrated"])


def test_a_seed_for_each_caption_keeps_captions_that_come_twice():
    plan = small_plan(prompts=("a", "b", "a"), seeds={"first": 5}, sizes=["64x64"], methods=["entropy"])
    assert [(cell.prompt, cell.seed) for cell in plan.cells] == [("a", 5), ("b", 6), ("a", 7)]
    listed = small_plan(prompts=("a", "b", "a"), seeds=[5], sizes=["64x64"], methods=["entropy"])
    assert [(cell.prompt, cell.seed) for cell in listed.cells] == [("a", 5), ("b", 5)]


def test_a_limit_keeps_the_first_pairs_of_one_method():
    whole, limited = small_plan(), small_plan(limits={"entropy": 3})
    kept = [cell for cell in limited.cells if cell.method.label == "entropy"]
    assert len(kept) == 3 * 3
    assert {(cell.prompt, cell.seed) for cell in kept} == {(cell.prompt, cell.seed) for cell in whole.cells[:3]}
    assert [cell for cell in limited.cells if cell not in kept] == [
        cell for cell in whole.cells if cell.method.label == "original"
    ]
    assert set(limited.cells) < set(whole.cells)


def test_a_chunk_is_of_one_program_and_size_and_at_most_a_batch():
    for chunk in small_plan().chunks:
        assert 1 <= len(chunk.cells) <= chunk.program.batch == 4
        assert {(cell.width, cell.height, cell.method) for cell in chunk.cells} == {
            (chunk.width, chunk.height, chunk.program.method)
        }
    assert [len(chunk.cells) for chunk in small_plan().chunks[:3]] == [4, 4, 2]


def test_sizes_share_the_bucket_that_covers_them():
    plan = small_plan(sizes=["30x30", "32x32", "31x29"])
    assert {chunk.program.key.bucket for chunk in plan.chunks} == {Bucket(32, 32)}
    assert len(plan.programs) == 2
    assert all(chunk.width == chunk.cells[0].width for chunk in plan.chunks)


def test_guidance_of_one_draws_unguided():
    assert all(program.guided for program in small_plan(sampler={"guidance": 5}).programs)
    assert not any(program.guided for program in small_plan(sampler={"guidance": 1}).programs)


def test_the_id_follows_from_every_part_of_the_content():
    cell = small_plan().cells[0]
    changes = {
        "model": "b",
        "weights_hash": "cd" * 32,
        "train_size": (64, 96),
        "width": 65,
        "height": 65,
        "method": Scaling.of({"rule": "fixed", "multiplier": 1.0}),
        "prompt": "other",
        "seed": 1,
        "sampler": "other",
        "steps": 9,
        "guidance": 2.0,
        "upscaler_hash": "cd" * 32,
    }
    assert changes.keys() == cell.__dataclass_fields__.keys()
    ids = {replace(cell, **{name: value}).id for name, value in changes.items()}
    assert len(ids | {cell.id}) == len(changes) + 1
    assert replace(cell).id == cell.id


def test_the_id_is_the_same_in_every_process():
    # The canonical JSON written by hand, keys in order.
    text = (
        '{"guidance":5.0,"height":64,"model":"fake","multiplier":1.0,"prompt":"a red circle","rule":"original",'
        '"sampler":"ddim","seed":0,"steps":25,"train_size":[64,64],"weights_hash":"' + "ab" * 32 + '","width":64}'
    )
    cell = small_plan(prompts=("a red circle",), seeds=[0]).cells[0]
    assert cell.id == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_multipliers_tell_methods_apart():
    methods = ["original", {"rule": "fixed", "multiplier": 0.8}, {"rule": "fixed", "multiplier": [0.8, 0.8, 0.8]}]
    assert len(small_plan(methods=methods).cells) == 3 * 3 * 10


def test_a_short_chunk_is_padded_with_its_first_cell():
    last = small_plan().chunks[2]
    task = last.task({cell.id for cell in last.cells})
    assert task.cells == (*last.cells, last.cells[0], last.cells[0])
    assert task.wanted == (True, True, False, False)


def test_finished_positions_are_filled_and_not_wanted():
    chunk = small_plan().chunks[0]
    task = chunk.task({chunk.cells[1].id, chunk.cells[3].id})
    assert task.cells == (chunk.cells[1], chunk.cells[1], chunk.cells[1], chunk.cells[3])
    assert task.wanted == (False, True, False, True)
    assert task.wanted_cells == (chunk.cells[1], chunk.cells[3])
    assert chunk.task(set()) is None


@pytest.mark.parametrize(
    ("width", "height", "batch"),
    [(64, 64, 8), (32, 32, 8), (64, 48, 8), (96, 64, 5), (128, 32, 8), (96, 96, 3), (128, 128, 2), (512, 512, 1)],
)
def test_auto_batch_keeps_the_area(width, height, batch):
    assert auto_batch(Bucket(height, width), (64, 64), images=840) == batch


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (3, 3), (5, 5), (6, 3), (8, 4), (9, 5), (11, 4)])
def test_auto_batch_fills_its_calls_evenly(images, batch):
    assert auto_batch(Bucket(64, 96), (64, 64), images) == batch


def test_a_batch_is_no_larger_than_the_images_of_a_size_and_method():
    assert {chunk.program.batch for chunk in small_plan(batch=64).chunks} == {10}
    assert {chunk.program.batch for chunk in small_plan(batch="auto", seeds=[0]).chunks} == {5}


def test_what_a_model_cannot_draw():
    with pytest.raises(UserError, match="size 3x64 with model fake: size 3x64 is below one latent cell"):
        small_plan(sizes=["64x64", "3x64"])
    with pytest.raises(UserError, match=r"size 4x16 with model fake: .* token at the deepest of 3 levels"):
        small_plan(sizes=["4x16"])
    with pytest.raises(UserError, match="multiplier has 2 values and the model 3 levels"):
        small_plan(methods=[{"rule": "fixed", "multiplier": [1.0, 2.0]}])


def test_two_models_have_cells_and_buckets_of_their_own():
    models = {"a": fakes.FakeInfo("a"), "b": fakes.FakeInfo("b", weights="ef" * 32)}
    plan = small_plan(models=models)
    assert len(plan.cells) == 2 * 60
    assert len({program.key for program in plan.programs}) == 2 * 3
