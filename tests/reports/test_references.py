"""Pictures of folders and Parquet files as references: what an extractor sees of them is worked out here by hand."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from entscale_jax.errors import UserError
from entscale_jax.metrics.extractor import Extractor
from entscale_jax.reports.paper import reference_pictures, references
from entscale_jax.reports.paper.references import picture_reference

COUNT, KEPT, BATCH = 160, 50, 12
SIDE = 32
GROUP = 20
"""Rows of a row group."""


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(3).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoded(pictures):
    return [_png(picture) for picture in pictures]


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch):
    monkeypatch.setattr(references, "BATCH", BATCH)
    monkeypatch.setattr(references, "MOST", KEPT)


def _png(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def seeing(calls, stop=None, each=lambda: None):
    """Sees the mean colour of each picture, notes what it is shown in `calls`, and may be stopped."""

    def run(images):
        calls.append(len(images))
        each()
        if len(calls) == stop:
            raise KeyboardInterrupt
        return images.reshape(len(images), -1, 3).mean(axis=1, dtype=np.float32) / 64

    return Extractor("scenes", "0123456789abcdef", 3, "none", run)


def _write(place, kind, encoded):
    if kind == "folder":
        place.mkdir()
        for number, data in enumerate(encoded):
            (place / f"{number:03d}.png").write_bytes(data)
        return place
    rows = [{"bytes": data, "path": None} for data in encoded] if kind == "records" else encoded
    pq.write_table(pa.table({"image": rows}), place, row_group_size=COUNT if kind == "one group" else GROUP)
    return place


@pytest.mark.parametrize("kind", ["folder", "groups", "one group", "records"])
def test_what_is_seen_does_not_depend_on_how_pictures_lie(tmp_path, pictures, encoded, kind):
    found = picture_reference(_write(tmp_path / "real", kind, encoded), seeing([]), tmp_path / "cache")
    means = pictures.reshape(COUNT, -1, 3).mean(axis=1) / 64
    assert (found.name, found.moments.count) == (f"real ({COUNT} pictures)", COUNT)
    np.testing.assert_allclose(found.moments.mean, means.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.moments.covariance, np.cov(means.T), rtol=1e-4, atol=1e-9)
    chosen = np.random.default_rng(0).permutation(COUNT)[:KEPT]
    np.testing.assert_allclose(found.features, means[chosen], rtol=1e-5)


@pytest.mark.parametrize("kind", ["groups", "one group"])
def test_a_parquet_file_is_read_once_and_not_held(tmp_path, encoded, monkeypatch, kind):
    place, opened, held = _write(tmp_path / "real", kind, encoded), [], []

    class Counting(io.FileIO):
        taken = 0

        def read(self, size=-1, /):
            data = super().read(size)
            self.taken += len(data)
            return data

    def open_file(path, **options):
        opened.append(Counting(path))
        return file(opened[-1], **options)

    file = pq.ParquetFile
    monkeypatch.setattr(reference_pictures.pq, "ParquetFile", open_file)
    before = pa.total_allocated_bytes()
    calls = []
    look = seeing(calls, each=lambda: held.append(pa.total_allocated_bytes() - before))
    picture_reference(place, look, tmp_path / "cache")
    for one in opened:
        one.close()
    assert sum(one.taken for one in opened) < 1.5 * place.stat().st_size
    assert len(calls) == COUNT
    if kind == "groups":
        assert max(held) < 4 * GROUP * len(encoded[0]) < place.stat().st_size


def test_a_stopped_look_goes_on_to_the_same_bits(tmp_path, encoded):
    place = _write(tmp_path / "real", "groups", encoded)
    whole = picture_reference(place, seeing([]), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        picture_reference(place, seeing([], stop=100), tmp_path / "cache")
    rest = []
    found = picture_reference(place, seeing(rest), tmp_path / "cache")
    assert len(rest) == COUNT - 99 // BATCH * BATCH
    assert np.array_equal(found.features, whole.features)
    assert np.array_equal(found.moments.deviations, whole.moments.deviations)
    again = []
    assert np.array_equal(picture_reference(place, seeing(again), tmp_path / "cache").features, whole.features)
    assert again == []


@pytest.mark.parametrize("left", [lambda data: b"", lambda data: data[:-5], lambda data: data[:20], None])
def test_what_was_kept_and_is_broken_is_made_again(tmp_path, encoded, left):
    place = _write(tmp_path / "real", "groups", encoded)
    whole = picture_reference(place, seeing([]), tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("00003.npy")
    data = file.read_bytes()
    file.unlink()
    if left:
        file.write_bytes(left(data))
    again = []
    assert np.array_equal(picture_reference(place, seeing(again), tmp_path / "cache").features, whole.features)
    assert len(again) == BATCH
    assert file.read_bytes() == data


def test_a_place_where_nothing_can_be_kept_is_told(tmp_path, encoded):
    place = _write(tmp_path / "real", "folder", encoded)
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"folder .*/cache/\w+ can't be written \(Not a directory\): free its place"):
        picture_reference(place, seeing([]), tmp_path / "cache")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2], "column 'image' is of int64 and holds no encoded pictures: name the one that does"),
        (["one", "two"], "column 'image' is of string and holds no encoded pictures"),
        ([{"path": "a.png"}], "column 'image' is of struct<path: string> and holds no encoded pictures"),
        ([{"bytes": "a"}], "column 'image' is of struct<bytes: string> and holds no encoded pictures"),
        (pa.array([], pa.binary()), "holds no pictures: it has no rows"),
        (pa.array([None], pa.binary()), "real row 0 is no picture"),
    ],
)
def test_a_column_without_pictures_is_told(tmp_path, values, says):
    pq.write_table(pa.table({"image": values}), tmp_path / "real")
    with pytest.raises(UserError, match=says):
        picture_reference(tmp_path / "real", seeing([]), tmp_path / "cache")


def test_a_cut_parquet_file_is_told(tmp_path, encoded):
    place = _write(tmp_path / "real", "groups", encoded)
    data = bytearray(place.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40_000] = bytes(40_000)
    place.write_bytes(data)
    with pytest.raises(UserError, match=r"real can't be read as Parquet|real row \d+ is no picture"):
        picture_reference(place, seeing([]), tmp_path / "cache")
