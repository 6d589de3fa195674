"""Contact sheets: which picture stands where, what the labels say, what is missing, and what is refused."""

import io
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from synthetic_run import SyntheticRun, hash_free

from entscale_jax.caption_file import captions_of
from entscale_jax.errors import UserError
from entscale_jax.png import read_text
from entscale_jax.reports import write_sheet
from entscale_jax.reports.run_folder import read_run
from entscale_jax.reports.sheets.sheet import _draw
from entscale_jax.reports.sheets.sheet_choice import COUNT, MOST, Choice, Scaled, choose, read_scaled
from entscale_jax.reports.sheets.sheet_layout import Layout

CIRCLE, SQUARE = "a red circle", "a blue square"
HOSTILE = r"<b>$\alpha$</b> & %s {0} \n ~_^#"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return SyntheticRun(
        sizes=((64, 64), (96, 64)),
        methods=("original", "entropy", {"rule": "fixed", "multiplier": [0.9, 0.8]}),
        seeds=(0, 1),
    ).write(tmp_path_factory.mktemp("sheet") / "run")


def layout_of(folder, **choice):
    run, choice = read_run(folder), Choice(**choice)
    return Layout(run=run, shown=choose(run, choice), scaled=choice.scaled)


def texts(layout):
    """What is written on the sheet, with where: (x, y) -> text."""
    figure, _ = _draw(layout, enlarged=True)
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


def colour(prompt, method, seed):
    """What `SyntheticRun` paints a cell with."""
    return hash_free(prompt), hash_free(method), 40 * seed % 256


def placed(pixels, layout):
    """Row, column -> the picture there; it has one colour up to its edges and none beyond them."""
    found = {}
    for row in range(len(layout.shown.pairs)):
        for column in range(len(layout.shown.columns)):
            spot = layout.spot(row, column)
            picture = pixels[spot.y : spot.y + spot.height, spot.x : spot.x + spot.width]
            assert (picture == picture[0, 0]).all()
            assert (pixels[spot.y, spot.x - 1] == 255).all()
            assert (pixels[spot.y + spot.height, spot.x] == 255).all()
            found[row, column] = tuple(picture[0, 0].tolist())
    return found


def expected(layout):
    pairs, columns = layout.shown.pairs, layout.shown.columns
    return {
        (row, column): colour(prompt, columns[column].method, seed)
        for row, (prompt, seed) in enumerate(pairs)
        for column in range(len(columns))
    }


def test_each_picture_stands_below_its_labels(folder, tmp_path):
    layout = layout_of(folder, methods="original,entropy")
    pixels = np.asarray(Image.open(write_sheet(folder, tmp_path / "s.png", Choice(methods="original,entropy"))))
    assert pixels.shape == (layout.height, layout.width, 3)
    assert placed(pixels, layout) == expected(layout)
    written = texts(layout)
    for index, column in enumerate(layout.shown.columns):
        spot = layout.spot(0, index)
        assert written[spot.x, layout.method_top] == column.method
    for row, (prompt, seed) in enumerate(layout.shown.pairs):
        place = layout.block_left(row), layout.block_top(row)
        assert written[place].replace("\N{NO-BREAK SPACE}", " ") == f"{prompt} (seed {seed})"
        assert 0 < layout.spot(row, 0).y - place[1] < 40


def test_methods_that_are_swapped_are_noticed(folder, tmp_path):
    """The control: pictures of another order of columns are not those that the labels promise."""
    pixels = np.asarray(Image.open(write_sheet(folder, tmp_path / "s.png", Choice(methods="entropy,original"))))
    swapped, plain = layout_of(folder, methods="entropy,original"), layout_of(folder, methods="original,entropy")
    assert placed(pixels, swapped) == expected(swapped)
    assert placed(pixels, plain) != expected(plain)
    labels = [texts(layout)[layout.spot(0, 0).x, layout.method_top] for layout in (swapped, plain)]
    assert labels == ["entropy", "original"]


@pytest.mark.parametrize(
    ("choice", "columns", "pairs"),
    [
        ({}, 6, 4),
        ({"sizes": [(96, 64)]}, 3, 4),
        ({"sizes": [(96, 64), (64, 64)], "methods": " entropy , fixed:0.9,0.8 "}, 4, 4),
        ({"prompts": [SQUARE]}, 6, 2),
        ({"seeds": [1]}, 6, 2),
        ({"prompts": [SQUARE, CIRCLE], "seeds": [1], "count": 1}, 6, 1),
        ({"count": 3}, 6, 3),
    ],
)
def test_what_is_asked_for_is_shown(folder, choice, columns, pairs):
    shown = layout_of(folder, **choice).shown
    assert (len(shown.columns), len(shown.pairs)) == (columns, pairs)
    if "sizes" in choice:
        assert [(size.width, size.height) for size in shown.sizes] == choice["sizes"]
    if "prompts" in choice:
        assert shown.pairs[0][0] == choice["prompts"][0]
    if "methods" in choice:
        assert [column.method for column in shown.columns[:2]] == ["entropy", "fixed:0.9,0.8"]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"sizes": [(65, 64)]}, "--sizes '65x64' is not in run synthetic, which has 64x64, 96x64"),
        ({"sizes": []}, "--sizes '' is not in run synthetic, which has 64x64, 96x64"),
        ({"methods": "original,entropi"}, "--methods 'entropi' is not in run synthetic, which has original, entropy,"),
        ({"methods": "fixed:0.9"}, "--methods 'fixed:0.9' is not"),
        ({"methods": ","}, "--methods ',' is not"),
        ({"prompts": ["a"]}, "--prompts 'a' is not"),
        ({"seeds": [7]}, "--seeds '7' is not in run synthetic, which has 0, 1"),
        ({"count": 5}, "--count 5: give 1 to 4"),
        ({"count": 0}, "--count 0: give 1 to 4"),
    ],
)
def test_what_the_run_has_not_is_named(folder, tmp_path, choice, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        write_sheet(folder, tmp_path / "s.png", Choice(**choice))
    assert not any(tmp_path.iterdir())


def test_a_scale_that_is_unknown():
    assert read_scaled("pixels") is Scaled.PIXELS
    with pytest.raises(UserError, match="--scale 'big' is unknown: give height or pixels"):
        read_scaled("big")


def test_sizes_have_one_height_or_a_pixel_as_large_in_all(tmp_path):
    run = SyntheticRun(sizes=((32, 16), (64, 64)), methods=("original",), prompts=("a",)).write(tmp_path / "run")
    same, true = layout_of(run), layout_of(run, scaled=Scaled.PIXELS)
    assert [same.spot(0, column).height for column in (0, 1)] == [same.spot(0, 0).height] * 2
    assert same.spot(0, 0).width == pytest.approx(2 * same.spot(0, 0).height, abs=1)
    small, large = (true.spot(0, column) for column in (0, 1))
    assert (small.width, small.height) == pytest.approx((large.width / 2, large.height / 4), abs=1)
    assert "scaled to one height." in " ".join(same.foot)
    assert "a pixel is as large in all." in " ".join(true.foot)


def test_captions_with_markup_stay_text(tmp_path):
    run = SyntheticRun(prompts=(HOSTILE, "two\nlines\x00"), sizes=((64, 64),)).write(tmp_path / "run")
    written = " ".join(texts(layout_of(run)).values()).replace("\N{NO-BREAK SPACE}", " ")
    assert f"{HOSTILE} (seed 0)" in written
    assert "two lines\N{REPLACEMENT CHARACTER} (seed 0)" in written
    for kind in ("png", "webp", "pdf"):
        file = write_sheet(run, tmp_path / f"s.{kind}")
        assert file.stat().st_size > 1000
    assert HOSTILE in read_text(tmp_path / "s.png")["Description"]
    with Image.open(tmp_path / "s.webp") as image:
        assert b"&lt;b&gt;$\\alpha$&lt;/b&gt; &amp; %s {0}" in image.info["xmp"]


def test_a_long_caption_keeps_within_its_block_and_the_whole_of_it_is_in_the_file(tmp_path):
    prompt = "x" * 300 + " " + "a word " * 300 + "雪 in any script"
    run = SyntheticRun(prompts=(prompt,), sizes=((64, 64),)).write(tmp_path / "run")
    layout = layout_of(run)
    lines = layout.captions(0)
    assert len(lines) == 3
    assert lines[-1].endswith("… (seed\N{NO-BREAK SPACE}0)")
    figure, _ = _draw(layout, enlarged=True)
    figure.canvas.draw()
    assert max(text.get_window_extent().x1 for text in figure.axes[0].texts) <= layout.width
    write_sheet(run, tmp_path / "s.png")
    assert prompt in read_text(tmp_path / "s.png")["Description"]


def test_names_of_methods_have_room_over_narrow_pictures(tmp_path):
    long = {"rule": "fixed", "multiplier": [0.9, 0.8, 0.7, 0.6]}
    run = SyntheticRun(sizes=((16, 128), (64, 64)), methods=("original", long), prompts=("a",)).write(tmp_path / "run")
    labels = [lines for _, lines in layout_of(run).method_labels]
    assert labels[:2] == [["original"], ["fixed:0.9,0.8,", "0.7,0.6"]]


def test_what_is_not_there_is_a_frame_that_says_why(tmp_path):
    errors = {((64, 64), "entropy", CIRCLE): "RuntimeError: no memory"}
    made = SyntheticRun(errors=errors, sizes=((64, 64),), prompts=(CIRCLE, SQUARE, "c"))
    run = made.write(tmp_path / "run")
    rows = {(row["prompt"], row["method"]): row for row in made.rows}
    (run / rows[SQUARE, "original"]["image"]).unlink()
    (run / rows[SQUARE, "entropy"]["image"]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (run / "rows" / f"{rows['c', 'entropy']['cell']}.json").unlink()
    layout = layout_of(run)
    figure, notes = _draw(layout, enlarged=True)
    assert notes == [
        ["exact", "failed: RuntimeError: no memory"],
        ["the file is missing", "the file can't be read"],
        ["exact", "not drawn"],
    ]
    assert len(figure.axes[0].patches) == 4
    assert len(figure.axes[0].images) == 2
    written = " ".join(texts(layout).values())
    assert "failed: RuntimeError: no memory" in written
    assert "exact" not in written
    text = read_text(write_sheet(run, tmp_path / "s.png"))["Description"]
    assert "Row 1: a red circle, seed 0. 64x64 original: exact; 64x64 entropy: failed: RuntimeError: no memory." in text


def test_a_rule_without_a_value_at_a_size_says_so(tmp_path):
    run = SyntheticRun(methods=("original", "calibrated"), prompts=(CIRCLE,)).write(tmp_path / "run")
    for row in (run / "rows").glob("*.json"):
        content = json.loads(row.read_text())
        if (content["width"], content["method"]) == (64, "calibrated"):
            row.unlink()
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    undefined = {"model": "scenes", "size": "64x64", "method": "calibrated", "reason": "log N is below E_T"}
    (run / "spec.yaml").write_text(yaml.safe_dump({**spec, "undefined": [undefined]}))
    _, notes = _draw(layout_of(run), enlarged=True)
    assert notes == [["exact", "undefined at this size", "exact", "exact"]]


def test_what_the_sweeps_limits_leave_out_is_not_called_missing(tmp_path):
    made = SyntheticRun(sizes=((64, 64),), limits={"entropy": 1})
    run = made.write(tmp_path / "run")
    (cell,) = (row["cell"] for row in made.rows if (row["prompt"], row["method"]) == (SQUARE, "entropy"))
    (run / "rows" / f"{cell}.json").unlink()
    _, notes = _draw(layout_of(run), enlarged=True)
    assert notes == [["exact", "exact"], ["exact", "left out by the sweep's limits"]]


def test_the_text_alternative_tells_columns_rows_and_origin(folder, tmp_path):
    text = read_text(write_sheet(folder, tmp_path / "s.png", Choice(methods="entropy,original")))["Description"]
    assert text.startswith(
        "Contact sheet of run synthetic. Columns: 64x64 entropy, 64x64 original, 96x64 entropy, 96x64 original."
    )
    assert f"Row 2: {CIRCLE}, seed 1." in text
    assert "scenes (weights 0123abcd0123); ddim, 2 steps, guidance 5." in text


def test_the_same_sheet_has_the_same_bytes(folder, tmp_path):
    for kind in ("png", "webp", "pdf"):
        one, two = (write_sheet(folder, tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert one == two


def test_a_pdf_holds_its_pictures_and_text(folder, tmp_path):
    content = write_sheet(folder, tmp_path / "s.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.count(b"/Subtype /Image") >= 24
    assert b"CreationDate" not in content


def test_large_pictures_keep_their_detail_within_bounds(tmp_path):
    run = SyntheticRun(sizes=((512, 512),), methods=("original",), prompts=("a",)).write(tmp_path / "run")
    assert 250 < layout_of(run).dpi <= 400
    assert layout_of(run).spot(0, 0).width == pytest.approx(512, abs=2)


def test_too_many_pictures_are_refused_in_one_line(tmp_path):
    prompts = tuple(f"caption {number}" for number in range(MOST // 2 + 1))
    run = SyntheticRun(sizes=((8, 8),), prompts=prompts, metrics=()).write(tmp_path / "run")
    assert len(layout_of(run).shown.pairs) == COUNT
    assert len(layout_of(run, count=MOST // 2).shown.pairs) == MOST // 2
    with pytest.raises(UserError, match=rf"would hold {MOST + 2} pictures, and {MOST} is the most: choose fewer with"):
        write_sheet(run, tmp_path / "s.png", Choice(count=MOST // 2 + 1))


def test_a_sheet_that_memory_should_not_hold_is_refused(tmp_path):
    prompts = tuple(f"caption {number}" for number in range(200))
    run = SyntheticRun(sizes=((256, 16),), prompts=prompts, metrics=()).write(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"the sheet would be [\d,]+ x [\d,]+ pixels, too large for \.png: choose fewer"
    ):
        write_sheet(run, tmp_path / "s.png", Choice(count=200))


def test_webp_holds_less_than_the_others(tmp_path):
    prompts = tuple(f"caption {number}" for number in range(200))
    run = SyntheticRun(sizes=((8, 8),), methods=("original",), prompts=prompts, metrics=()).write(tmp_path / "run")
    layout = layout_of(run, count=200)
    layout.check(".png")
    with pytest.raises(UserError, match=r"too large for \.webp"):
        layout.check(".webp")


@pytest.mark.parametrize("name", ["s.jpg", "s", "png"])
def test_an_unknown_kind_is_refused(folder, tmp_path, name):
    with pytest.raises(UserError, match=r"has no known kind: give a name that ends in \.png, \.webp, \.pdf"):
        write_sheet(folder, tmp_path / name)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="missing"):
        write_sheet(tmp_path / "missing", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_place_that_can_not_be_written_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="can't be written"):
        write_sheet(folder, tmp_path / "no" / "folder" / "out.png", Choice(count=1))


def test_the_command_reads_its_options_as_the_others_do(folder, tmp_path, monkeypatch, capsys):
    from entscale_jax import cli

    (tmp_path / "captions.txt").write_text(f"{SQUARE}\n\n{CIRCLE}\n")
    options = ("--sizes", "96x64", "--methods", "entropy", "--prompts", tmp_path / "captions.txt", "--prompts", CIRCLE)
    more = ("--seeds", "1", "--count", 2, "--scale", "pixels", "-o", tmp_path / "s.png")
    monkeypatch.setattr("sys.argv", ["entscale", "sheet", *map(str, (folder, *options, *more))])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert capsys.readouterr().out == f"sheet: {tmp_path / 's.png'}\n"
    choice = {"sizes": [(96, 64)], "methods": "entropy", "prompts": captions_of(str(tmp_path / "captions.txt"))}
    layout = layout_of(folder, **choice, seeds=(1,), count=2, scaled=Scaled.PIXELS)
    with Image.open(io.BytesIO((tmp_path / "s.png").read_bytes())) as image:
        assert placed(np.asarray(image), layout) == expected(layout)
    assert layout.shown.pairs == ((SQUARE, 1), (CIRCLE, 1))
