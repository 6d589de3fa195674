import numpy as np
import pyarrow as pa
import pytest

from entscale_jax.errors import UserError
from entscale_jax.sweep import captioned
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


def test_no_more_scenes_are_asked_for_than_there_are():
    _spec({"scenes": 6852})
    with pytest.raises(ValueError, match="6853 captions are asked for, and 6852 differ: give that many or fewer"):
        _spec({"scenes": 6853})


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


def _write_parquet(path, captions, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"caption": captions}), path, **options)


def test_parquet_is_the_sample_of_all_rows_with_a_text_however_it_is_stored(tmp_path, monkeypatch):
    """Of row groups, of several files and of dictionaries; expected by NumPy from the list itself."""
    rows = [None if i % 7 == 3 else "  " if i % 11 == 5 else f" caption {i % 40}\t" for i in range(500)]
    texts = [row.strip() for row in rows if row and row.strip()]
    chosen = sorted(np.random.default_rng(5).choice(len(texts), 60, replace=False).tolist())
    expected = tuple(texts[index] for index in chosen)
    _write_parquet(tmp_path / "one.parquet", rows, row_group_size=33)
    _write_parquet(tmp_path / "coded.parquet", pa.array(rows).dictionary_encode())
    for number, start in enumerate(range(0, 500, 190)):
        _write_parquet(tmp_path / "parts" / f"part-{number}.parquet", rows[start : start + 190])
    monkeypatch.setattr("entscale_jax.sweep.captioned.ROWS_AT_ONCE", 17)
    for name in ("one.parquet", "coded.parquet", "parts"):
        got = resolve_prompts(_spec({"parquet": name, "count": 60, "seed": 5}), tmp_path)
        assert got == expected, name
    assert resolve_prompts(_spec({"parquet": "parts", "count": 60, "seed": 6}), tmp_path) != expected


def test_of_a_large_column_a_part_is_in_memory(tmp_path):
    """4000 captions of 5 kB, 20 MB, of which 30 are taken: rows that are not at hand can't be kept."""
    _write_parquet(tmp_path / "large.parquet", [f"{i} " + "x" * 5000 for i in range(4000)], row_group_size=100)
    before = pa.total_allocated_bytes()
    held = []
    texts = captioned._texts

    def watched(files, column):
        for batch in texts(files, column):
            held.append(pa.total_allocated_bytes() - before)
            yield batch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(captioned, "ROWS_AT_ONCE", 50)
        patched.setattr(captioned, "_texts", watched)
        got = resolve_prompts(_spec({"parquet": "large.parquet", "count": 30}), tmp_path)
    assert len(got) == 30
    assert len(held) >= 80
    assert max(held) < 5e6


def _write_pictures(folder, captions):
    folder.mkdir(parents=True)
    for name, caption in captions.items():
        (folder / name).write_bytes(b"picture")
        if caption is not None:
            (folder / name).with_suffix(".txt").write_text(caption)


def test_a_folder_of_captioned_pictures_is_sampled_by_its_seed(tmp_path):
    _write_pictures(tmp_path / "laion" / "00001", {f"{i:03}.jpg": f"caption\n {i}" for i in range(20, 40)})
    _write_pictures(tmp_path / "laion" / "00000", {f"{i:03}.PNG": f"caption {i} " for i in range(20)})
    _write_pictures(tmp_path / "laion" / ".hidden", {"a.jpg": "hidden"})
    _write_pictures(tmp_path / "laion" / "rest", {"alone.jpg": None, "notes.md": "no picture's"})
    expected = [f"caption {i}" for i in sorted(np.random.default_rng(2).choice(40, 10, replace=False).tolist())]
    assert resolve_prompts(_spec({"folder": "laion", "count": 10, "seed": 2}), tmp_path) == tuple(expected)
    everything = resolve_prompts(_spec({"folder": "laion", "count": 40}), tmp_path)
    assert everything == tuple(f"caption {i}" for i in range(40))
    with pytest.raises(UserError, match="laion has 40 captions and count is 41: lower count"):
        resolve_prompts(_spec({"folder": "laion", "count": 41}), tmp_path)


@pytest.mark.parametrize(
    ("caption", "said"), [(b" \n", "a.txt is empty: write the caption"), (b"\xff\xfe\x00", "a.txt can't be read")]
)
def test_a_caption_that_is_none_is_named(tmp_path, caption, said):
    _write_pictures(tmp_path / "pictures", {"a.webp": ""})
    (tmp_path / "pictures" / "a.txt").write_bytes(caption)
    with pytest.raises(UserError, match=said):
        resolve_prompts(_spec({"folder": "pictures", "count": 1}), tmp_path)


def test_a_caption_by_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.txt").write_text("a secret")
    specs = tmp_path / "specs"
    _write_pictures(specs / "pictures", {"a.jpg": None})
    (specs / "pictures" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match="lies outside"):
        resolve_prompts(_spec({"folder": "pictures", "count": 1}), specs)
