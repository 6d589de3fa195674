import pytest

from entscale_jax.errors import UserError
from entscale_jax.sweep.prompts import resolve_prompts
from entscale_jax.sweep.spec import SweepSpec


def _spec(prompts, metrics=()):
    keys = {"name": "a", "model": "m", "sizes": ["8x8"], "methods": ["original"], "metrics": list(metrics)}
    return SweepSpec.model_validate({**keys, "prompts": prompts})


def test_scenes_are_balanced_captions(tmp_path):
    captions = resolve_prompts(_spec({"scenes": 6}), tmp_path)
    assert [caption.count(" and ") + caption.count(",") + 1 for caption in captions] == [1, 2, 3, 4, 1, 2]


def test_scenes_of_one_seed_begin_each_other_and_of_another_do_not(tmp_path):
    long, short, other = (
        resolve_prompts(_spec({"scenes": count, "seed": seed}), tmp_path) for count, seed in ((40, 3), (12, 3), (40, 4))
    )
    assert long[:12] == short
    assert long != other
    assert resolve_prompts(_spec({"scenes": 40, "seed": 0}), tmp_path) == resolve_prompts(
        _spec({"scenes": 40}), tmp_path
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_study_of_any_seed_has_its_captions(tmp_path, seed):
    assert len(resolve_prompts(_spec({"scenes": 512, "seed": seed}), tmp_path)) == 512


def test_a_file_beside_the_sweep(tmp_path):
    (tmp_path / "captions.txt").write_text("one\n\n  two \n")
    assert resolve_prompts(_spec("captions.txt"), tmp_path) == ("one", "two")


def test_parquet_is_drawn_by_its_seed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"caption {i}" for i in range(50)]}), tmp_path / "f.parquet")
    ask = {"parquet": "f.parquet", "column": "text", "count": 10}
    first, again, other = (resolve_prompts(_spec({**ask, "seed": seed}), tmp_path) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) == 10
    with pytest.raises(UserError, match="no column 'caption': use one of text"):
        resolve_prompts(_spec({"parquet": "f.parquet", "count": 3}), tmp_path)
    with pytest.raises(UserError, match="has 50 captions and count is 51: lower count"):
        resolve_prompts(_spec({**ask, "count": 51}), tmp_path)


@pytest.mark.parametrize("prompts", ["gone.txt", {"parquet": "gone.parquet", "count": 1}])
def test_a_missing_file(tmp_path, prompts):
    with pytest.raises(UserError, match=r"prompts: .*gone\.\w+ can't be read") as caught:
        resolve_prompts(_spec(prompts), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no caption"):
        resolve_prompts(_spec("empty.txt"), tmp_path)


def test_objects_need_captions_of_scenes(tmp_path):
    with pytest.raises(UserError, match=r"metric objects can't read the prompt 'a dog'.*leave objects out"):
        resolve_prompts(_spec(["a red circle", "a dog"], ["objects"]), tmp_path)
    assert resolve_prompts(_spec(["a red circle", "a dog"]), tmp_path)[1] == "a dog"
