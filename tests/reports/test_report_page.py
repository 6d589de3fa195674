"""The report in a browser: filters, order, slider, keys, links, themes, a phone, markup in captions, 5,000 images."""

import json
import shutil
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from synthetic_run import SyntheticRun

from entscale_jax.reports import write_report

CIRCLE, SQUARE = "a red circle", "a blue square"
HOSTILE = "<script>document.title = 'caught'</script><img src=x onerror=\"document.title = 'caught'\">"
QUOTES = "\"' onload='x' & '</script>'"
SMALL, WIDE = (64, 64), (96, 64)
TITLES = "[...document.querySelectorAll('.card-link')].map((link) => link.textContent)"
COUNT = "document.getElementById('count').textContent"
SLIDER = "document.getElementById('wipe')"
RUN = SyntheticRun(
    sizes=(SMALL, WIDE),
    prompts=(CIRCLE, SQUARE, HOSTILE, QUOTES),
    objects={
        (SMALL, "original", SQUARE): (False, 1, 0),
        (SMALL, "entropy", QUOTES): (False, 0, 3),
        (WIDE, "original", HOSTILE): (False, 2, 0),
        (WIDE, "entropy", HOSTILE): (False, 2, 0),
    },
    errors={(WIDE, "entropy", CIRCLE): "RuntimeError: no memory"},
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a report, beside its run."""
    return write_report(RUN.write(tmp_path_factory.mktemp("page") / "run")).as_uri()


def choose(browser, name, value):
    browser.run(f"""(() => {{
        const field = document.querySelector('#filters [name={name}]');
        field.value = {json.dumps(value)};
        field.dispatchEvent(new Event('input', {{bubbles: true}}));
    }})()""")


def open_pair(browser, selector=".card-link"):
    browser.click(selector)
    browser.wait_for("document.getElementById('viewer').open")


def close_pair(browser):
    """Closes the viewer and waits for what its close event does, which comes after the dialog is no longer open."""
    browser.press("Escape")
    browser.wait_for("location.hash === '#pairs'")


def shown(browser, selector):
    return browser.run(f"document.querySelector({json.dumps(selector)}).textContent")


def address(browser):
    return browser.run("location.hash")


def test_failed_and_worst_pairs_come_first(browser, page):
    browser.open(page)
    assert browser.run(TITLES) == [CIRCLE, QUOTES, HOSTILE, SQUARE, CIRCLE, HOSTILE, SQUARE, QUOTES]
    choose(browser, "order", "sweep")
    assert browser.run(TITLES) == [*RUN.prompts, *RUN.prompts]
    choose(browser, "order", "difference")
    assert browser.run(TITLES)[:3] == [CIRCLE, QUOTES, SQUARE]


def test_filters_by_size_verdict_caption_and_method(browser, page):
    browser.open(page)
    assert browser.run(COUNT) == "8 of 8 pairs"
    choose(browser, "size", "1")
    assert browser.run(COUNT) == "4 of 8 pairs"
    choose(browser, "verdict", "missing")
    assert browser.run(TITLES) == [HOSTILE]
    choose(browser, "size", "")
    assert browser.run(TITLES) == [HOSTILE, SQUARE]
    browser.click("[name=method][value=original]")
    assert browser.run(TITLES) == [HOSTILE]  # By entropy alone no object of the square is missing.
    assert browser.run("document.querySelectorAll('#cards img').length") == 1
    choose(browser, "verdict", "failed")
    assert browser.run(TITLES) == [CIRCLE]
    assert "RuntimeError: no memory" in shown(browser, ".card .bad")
    browser.click("#filters [type=reset]")
    browser.wait_for(f"{COUNT} === '8 of 8 pairs'")
    choose(browser, "prompt", "BLUE")
    assert browser.run(TITLES) == [SQUARE, SQUARE]
    choose(browser, "prompt", "nothing has this")
    assert browser.run(COUNT) == "0 of 8 pairs"


def test_captions_of_markup_stay_text(browser, page):
    browser.open(page)
    assert browser.run("document.title") == "Sweep synthetic"
    assert browser.run("document.querySelectorAll('script:not([type])').length") == 1
    for caption in (HOSTILE, QUOTES):
        choose(browser, "prompt", caption)
        assert browser.run(TITLES) == [caption, caption]
        open_pair(browser)
        assert shown(browser, "#viewer-title") == caption
        assert caption in browser.run("document.getElementById('left-image').alt")
        close_pair(browser)
    browser.listen(0.1)
    assert browser.run("document.title") == "Sweep synthetic"


def colour_at(browser, tmp_path, share):
    """The colour of the picture in the viewer, at a share of its width."""
    left, top, width, height = browser.box("#stage")
    screen = Image.open(browser.picture(tmp_path / "screen.png")).convert("RGB")
    return screen.getpixel((int(left + share * width), int(top + height / 2)))


def test_the_slider_wipes_between_the_two_pictures(browser, page, tmp_path):
    browser.open(page)
    choose(browser, "prompt", SQUARE)
    open_pair(browser)
    colours = {}
    for row in RUN.rows:
        if row["prompt"] == SQUARE and row["width"] == 64:
            colours[row["method"]] = Image.open(_image_of(page, row)).getpixel((0, 0))
    assert colours["original"] != colours["entropy"]
    for side in ("left", "right"):
        browser.wait_for(f"document.getElementById('{side}-image').src.endsWith('.png')")
        browser.run(f"document.getElementById('{side}-image').decode()")
    assert colour_at(browser, tmp_path, 0.3) == colours["original"]
    assert colour_at(browser, tmp_path, 0.7) == colours["entropy"]
    left, top, width, height = browser.box("#stage")
    browser.drag((left + width / 2, top + height / 2), (left + 0.9 * width, top + height / 2))
    assert browser.run(f"Math.round({SLIDER}.value)") == 90
    assert colour_at(browser, tmp_path, 0.7) == colours["original"]
    browser.press("f")
    assert colour_at(browser, tmp_path, 0.1) == colours["entropy"]
    browser.press("ArrowUp")
    assert browser.run(f"{SLIDER}.value") == "5"


def _image_of(page, row):
    return page.removeprefix("file://").replace("report/index.html", row["image"])


def test_keys_step_through_cards_and_pairs(browser, page):
    browser.open(page)
    for key in "jjjk":
        browser.press(key)
    assert browser.run("document.activeElement.textContent") == QUOTES
    browser.press("Enter")
    browser.wait_for("document.getElementById('viewer').open")
    assert "2 of 8" in shown(browser, "#viewer-about")
    browser.press("ArrowRight")
    browser.press("j")
    assert "4 of 8" in shown(browser, "#viewer-about")
    browser.press("ArrowLeft")
    assert shown(browser, "#viewer-title") == HOSTILE
    close_pair(browser)
    assert browser.run("document.activeElement.textContent") == HOSTILE
    browser.press("/")
    assert browser.run("document.activeElement.name") == "prompt"
    browser.press("j")
    assert browser.run("document.activeElement.value") == "j"


def test_a_link_to_a_pair_opens_it(browser, page):
    browser.open(page)
    choose(browser, "prompt", QUOTES)
    open_pair(browser, ".card:nth-child(2) .card-link")
    browser.run("""(() => {
        const side = document.getElementById('left');
        side.value = 'entropy';
        side.dispatchEvent(new Event('change'));
    })()""")
    link = browser.run("document.getElementById('permalink').href")
    assert browser.run("location.href") == link
    about = shown(browser, "#viewer-about").partition(";")[0]
    browser.open(link)
    assert shown(browser, "#viewer-title") == QUOTES
    assert shown(browser, "#viewer-about").partition(";")[0] == about == "96x64, seed 0"
    assert browser.run("document.getElementById('left').value") == "entropy"
    assert browser.run("document.getElementById('right').value") == "entropy"
    close_pair(browser)
    browser.run("location.hash = '#pair=0123'")
    browser.wait_for("!document.getElementById('unknown').hidden")
    assert not browser.run("document.getElementById('viewer').open")


def test_tables_sort_by_a_click(browser, page):
    browser.open(page)
    head = "#objects ~ .wide thead th:nth-child(6) button"
    column = """[...document.querySelector('#objects ~ .wide table').tBodies[0].rows]
        .map((row) => [0, 1, 5].map((column) => row.cells[column].textContent.trim().split(/\\s/)[0]))"""
    browser.click(head)
    browser.click(head)
    assert browser.run(column)[0] == ["64x64", "entropy", "0.75"]
    assert {tuple(row) for row in browser.run(column)[1:]} == {
        *(("64x64", "original", "0.00"), ("96x64", "original", "0.00"), ("96x64", "entropy", "0.00"))
    }
    browser.click("#objects ~ .wide thead th:nth-child(1) button")
    assert [row[0] for row in browser.run(column)] == ["64x64", "64x64", "96x64", "96x64"]


def background(browser):
    return browser.run("getComputedStyle(document.body).backgroundColor")


def test_light_dark_and_the_choice_of_the_reader(browser, page):
    browser.open(page)
    light = background(browser)
    browser.screen(1280, 800, dark=True)
    dark = background(browser)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    browser.click("#theme")
    assert background(browser) == light
    browser.click("#theme")
    browser.screen(1280, 800)
    assert background(browser) == dark
    browser.run("localStorage.clear()")


def test_a_phone_shows_all_of_a_pair_without_scrolling_sideways(browser, page):
    browser.screen(360, 740, phone=True)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") == 360
    edges = "[...document.querySelectorAll('.card img, .card .hole')].map((one) => one.getBoundingClientRect().right)"
    assert max(browser.run(edges)) <= 360
    fonts = (
        "[...document.querySelectorAll('p, td, th, select')].map((one) => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(browser.run(fonts)) >= 11
    open_pair(browser, ".card .pair")
    assert browser.run("document.getElementById('viewer').getBoundingClientRect().right") <= 360
    assert (
        browser.run("Math.min(...['next', 'close', 'left'].map((id) => document.getElementById(id).offsetHeight))")
        >= 38
    )


def test_the_page_alone_still_shows_thumbnails(browser, page, tmp_path):
    alone = shutil.copy(page.removeprefix("file://"), tmp_path / "alone.html")
    browser.open(alone.as_uri())
    choose(browser, "prompt", SQUARE)
    open_pair(browser)
    for side in ("left", "right"):
        browser.wait_for(f"document.getElementById('{side}-note').textContent.includes('is not beside this page')")
    assert browser.run("document.getElementById('left-image').naturalWidth") == 64
    browser.listen()
    assert all("ERR_FILE_NOT_FOUND" in said for said in browser.said)
    assert len(browser.said) == 2
    browser.said.clear()


def test_what_this_test_would_see(browser, page, tmp_path):
    """The negative control: a page that complains, and that asks elsewhere, is caught by the fixture's two checks."""
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        elsewhere = f"http://localhost:{refusing.getsockname()[1]}/x.png"
        (tmp_path / "bad.html").write_text(f"<script>console.error('oh')</script><img src='{elsewhere}'>")
        browser.open((tmp_path / "bad.html").as_uri())
    browser.listen(0.1)
    assert "error: oh" in browser.said
    assert elsewhere in browser.requests
    browser.open(page)


@pytest.mark.full
def test_five_thousand_images_do_not_stall(browser, tmp_path, capsys):
    prompts = tuple(f"caption {number} of many" for number in range(500))
    objects = {(SMALL, "original", prompt): (False, number % 7, 0) for number, prompt in enumerate(prompts)}
    run = replace(
        RUN,
        sizes=(SMALL, WIDE, (128, 128), (256, 256), (512, 288)),
        prompts=prompts,
        objects=objects,
        errors={},
        rows=[],
    )
    folder = run.write(tmp_path / "run")
    _draw_smoothly(folder, run.rows)
    start = time.perf_counter()
    page = write_report(folder)
    seconds = {"write": time.perf_counter() - start}
    watch = (
        "new PerformanceObserver((list) => (window.tasks ??= []).push(...list.getEntries().map((one) => one.duration)))"
    )
    browser.send("Page.addScriptToEvaluateOnNewDocument", source=f"{watch}.observe({{entryTypes: ['longtask']}})")
    start = time.perf_counter()
    browser.open(page.as_uri())
    seconds["load"] = time.perf_counter() - start
    assert browser.run(COUNT) == "2500 of 2500 pairs"
    seconds["filter"] = max(
        _timed(browser, name, value) for name, value in (("prompt", "7"), ("verdict", "missing"), ("order", "sweep"))
    )
    choose(browser, "verdict", "any")
    choose(browser, "prompt", "")
    start = time.perf_counter()
    browser.wait_for(
        "(scrollTo(0, document.getElementById('end').offsetTop), document.querySelectorAll('.card').length === 2500)"
    )
    seconds["scroll to the end"] = time.perf_counter() - start
    seconds["filter then"] = _timed(browser, "prompt", "caption 49")
    browser.listen(0.2)
    seconds["longest task"] = max(browser.run("window.tasks ?? [0]"), default=0) / 1000
    with capsys.disabled():
        print(
            f"\n{page.stat().st_size / 2**20:.1f} MiB,",
            ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()),
        )
    assert seconds["load"] < 10
    assert seconds["filter"] < 1
    assert seconds["filter then"] < 1
    assert seconds["longest task"] < 2


def _timed(browser, name, value):
    """Seconds until the page has been drawn after a choice."""
    start = time.perf_counter()
    choose(browser, name, value)
    browser.paint()
    return time.perf_counter() - start


def _draw_smoothly(folder, rows):
    """Pictures with as much in them as photographs, as flat ones would make a page small."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (24, 24, 3)).astype(np.uint8) for _ in range(40)]
    for number, row in enumerate(rows):
        image = Image.fromarray(coarse[number % len(coarse)]).resize(
            (row["width"], row["height"]), Image.Resampling.BICUBIC
        )
        image.save(folder / row["image"], compress_level=1)
