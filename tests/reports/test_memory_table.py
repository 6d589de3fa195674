"""The table of memory: from records of a run to cells and notes."""

import json

import pytest
from synthetic_run import SyntheticRun

from entscale_jax.reports.paper.paper_tables import make_tables
from entscale_jax.reports.paper.published import published
from entscale_jax.reports.paper.table_formats import markdown
from entscale_jax.reports.records import Size
from entscale_jax.reports.run_folder import read_run

MIB = 2**20
RECORDS = {
    # (width, height, method): pictures' sizes, images a call, bytes of programs.
    (64, 64, "original"): (["64x64"], 8, {"denoise_latents": 50 * MIB, "decode_latents": 30 * MIB}),
    (96, 64, "original"): (["96x64"], 3, {"denoise_latents": 40 * MIB, "decode_latents": 45 * MIB}),
    (96, 64, "entropy"): (["96x64"], 3, {"denoise_latents": 47 * MIB, "decode_latents": 45 * MIB}),
    (64, 64, "resize"): (["64x64", "96x64"], 8, {"denoise_latents": 50 * MIB}),
}


def entries(records=RECORDS, **more):
    found = []
    for (width, height, method), (sizes, batch, needed) in records.items():
        memory = {name: {"needed": value} for name, value in needed.items()}
        place = {"model": "scenes", "width": width, "height": height, "method": method, "batch": batch}
        counts = {"images": 2, "calls": 1, "compile_seconds": 1.0, "steady_seconds": 1.0}
        found.append({**place, **counts, "sizes": sizes, "memory": memory, **more})
    return found


@pytest.fixture
def make_run(tmp_path):
    def make(buckets, later=None):
        folder = SyntheticRun(methods=("original", "entropy", "resize")).write(tmp_path / "run")
        programs = json.loads((folder / "programs.json").read_text())
        (folder / "programs.json").write_text(json.dumps({**programs, "buckets": buckets}))
        if later is not None:
            (folder / "memory.json").write_text(json.dumps(later))
        return read_run(folder)

    return make


def table_of(run):
    return next((table for table in make_tables(run) if table.metric == "memory"), None)


def test_a_figure_is_what_the_largest_program_needs(make_run):
    table = table_of(make_run(entries()))
    found = {(str(size), method): entry.figure.value for (size, method), entry in table.entries.items()}
    assert found == {
        **{("64x64", "original"): 50.0, ("64x64", "resize"): 50.0},
        # Not the denoiser's but the decoder's; and `resize` draws at the training size.
        **{("96x64", "original"): 45.0, ("96x64", "entropy"): 47.0, ("96x64", "resize"): 50.0},
    }
    places = {(str(size), method): entry for (size, method), entry in table.entries.items()}
    assert places["96x64", "entropy"].difference == 2.0
    assert places["96x64", "resize"].difference is None  # of other counts of images
    notes = "; ".join(table.notes)
    assert "images a call: 8, but 3 of 96x64 original, 96x64 entropy;" in notes
    assert "the largest is one of decode_latents, denoise_latents" in notes
    assert "not recorded by this run: 64x64 entropy" in notes
    assert "allocator had in use" not in notes
    assert "| 96x64 | 45.0 | 47.0 | 50.0 |" in markdown([table])


def test_a_peak_of_the_device_is_told_as_a_bound(make_run):
    notes = "; ".join(table_of(make_run(entries(device_peak=300 * MIB))).notes)
    assert "most that the device's allocator had in use, an upper bound" in notes
    assert "96x64 entropy 300" in notes


def test_a_run_without_the_record_says_so(make_run):
    run = make_run([{**entry, "memory": {}} for entry in entries()])
    assert table_of(run) is None
    assert "device memory: not recorded by this run; --memory" in markdown(make_tables(run))


def test_what_was_compiled_again_is_told_apart(make_run):
    made = {"platform": "cpu", "versions": {"jaxlib": "0.10.2"}}
    run = make_run([{**entry, "memory": {}} for entry in entries()], {"made": made, "buckets": entries()})
    table = table_of(run)
    assert table.entries[Size("scenes", 64, 64), "original"].figure.value == 50.0
    assert "not recorded by the workers that drew, but compiled again on cpu with jaxlib 0.10.2" in table.notes
    assert "not recorded by this run; --memory" not in markdown(make_tables(run))


def test_the_papers_memory_stands_beside_that_of_its_model():
    model = "stabilityai/stable-diffusion-2-1-base"
    assert published("memory", Size(model, 768, 768), "multidiffusion").value == 9906
    assert published("memory", Size(model, 128, 128), "resize") == (4, 9324, None)
    assert published("memory", Size("scenes", 128, 128), "resize") is None
