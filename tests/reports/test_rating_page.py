"""The rating page in a browser: by keyboard, by touch, resumed, with markup in captions, with a server that is gone."""

import json

import pytest
from rating_host import serving
from synthetic_run import SyntheticRun

from entscale_jax.reports.rating.answers import read_answers

HOSTILE = "<script>document.title = 'caught'</script><img src=x onerror=\"document.title = 'caught'\">"
QUOTES = "\"' onload='x' & '</script>'"
READY = "!document.getElementById('scores').disabled"
CAPTION = "document.getElementById('caption').textContent"
DONE = "document.getElementById('bar').value"
PROGRESS = "document.getElementById('progress').textContent"


@pytest.fixture
def folder(tmp_path):
    return SyntheticRun(sizes=((64, 64), (96, 64)), prompts=(HOSTILE, QUOTES), metrics=()).write(tmp_path / "run")


def scores(folder, rater="ann"):
    return [answer.score for answer in read_answers(folder / "ratings" / f"{rater}.jsonl")[0]]


def begin(browser, server, name="Ann"):
    browser.open(server.address)
    browser.send("Input.insertText", text=name)
    browser.press("Enter")
    browser.wait_for(READY)


def press(browser, key, done):
    browser.press(key)
    browser.wait_for(f"{DONE} === {done} && ({READY} || !document.getElementById('end').hidden)")


def test_rating_by_keyboard_to_the_end(browser, tmp_path):
    folder = SyntheticRun(sizes=((64, 64),), prompts=(HOSTILE, QUOTES), metrics=()).write(tmp_path / "run")
    with serving(folder) as server:
        begin(browser, server)
        captions = []
        for done, key in enumerate("1790", 1):
            captions.append(browser.run(CAPTION))
            press(browser, key, done)
        assert browser.run("document.getElementById('item').hidden")
        assert sorted(captions) == sorted([HOSTILE, QUOTES] * 2)
        assert scores(folder) == [1, 7, 9, 10]
        browser.listen()
        assert all(url.startswith(server.address) for url in browser.requests)
        assert not any(url.endswith("x") for url in browser.requests)
        assert browser.run("document.title") == "Rate pictures"


def test_back_shows_the_score_and_another_one_replaces_it(browser, folder):
    with serving(folder) as server:
        begin(browser, server)
        press(browser, "3", 1)
        browser.press("ArrowLeft")
        browser.wait_for(f"{READY} && document.querySelector('[aria-pressed=true]')?.value === '3'")
        browser.press("8")
        browser.wait_for(f"{READY} && {PROGRESS}.startsWith('Picture 2')")
        assert scores(folder) == [3, 8]
        assert browser.run(DONE) == 1


def test_it_goes_on_after_the_page_was_closed(browser, folder):
    with serving(folder) as server:
        begin(browser, server)
        press(browser, "9", 1)
        press(browser, "9", 2)
        browser.open(server.address + "?rater=ann")
        browser.wait_for(READY)
        assert browser.run(PROGRESS) == "Picture 3 of 8, 2 rated"


def test_two_presses_at_once_are_one_answer(browser, folder):
    with serving(folder) as server:
        begin(browser, server)
        press_now = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '4', bubbles: true}))"
        browser.run(f"{press_now}; {press_now}")
        browser.wait_for(f"{DONE} === 1 && {READY}")
        assert answers_sent(browser) == 1
        assert scores(folder) == [4]


def test_a_second_press_as_the_next_picture_appears_is_none(browser, folder):
    with serving(folder) as server:
        begin(browser, server)
        browser.run("window.setTimeout = (open) => { window.settled = open; }; 0")
        browser.press("4")
        browser.wait_for(f"{DONE} === 1 && window.settled !== undefined")
        browser.press("4")
        browser.run("window.settled()")
        browser.wait_for(READY)
        assert answers_sent(browser) == 1
        assert scores(folder) == [4]


def answers_sent(browser):
    browser.listen()
    return sum(url.endswith("/answer") for url in browser.requests)


def test_on_a_phone_all_is_in_reach_of_a_finger(browser, folder):
    browser.screen(360, 740, phone=True)
    with serving(folder, only="ann") as server:
        browser.open(server.address)
        browser.wait_for(READY)
        assert browser.run("document.documentElement.scrollWidth") == 360
        boxes = browser.run("""[...document.querySelectorAll('#scores button')].map((one) => {
            const box = one.getBoundingClientRect();
            return [box.width, box.height, box.right, box.bottom];
        })""")
        assert len(boxes) == 10
        assert min(min(width, height) for width, height, _, _ in boxes) >= 44
        assert max(right for _, _, right, _ in boxes) <= 360
        assert max(bottom for _, _, _, bottom in boxes) <= 740
        browser.tap("#scores button:nth-child(7)")
        browser.wait_for(f"{DONE} === 1 && {READY}")
        assert scores(folder) == [7]


def test_a_server_that_is_gone_is_told_and_the_picture_can_be_rated_again(browser, folder):
    with serving(folder) as server:
        begin(browser, server)
        port = server.server_port
    browser.press("6")
    browser.wait_for("document.getElementById('trouble').textContent.includes('rate this picture again')")
    assert not (folder / "ratings").exists()
    browser.listen()
    assert all("ERR_CONNECTION_REFUSED" in said for said in browser.said)
    browser.said.clear()
    with serving(folder, port=port):
        browser.open(f"http://127.0.0.1:{port}/?rater=ann")
        browser.wait_for(READY)
        press(browser, "6", 1)
        assert scores(folder) == [6]


def test_a_name_that_can_be_none_is_told_and_asked_again(browser, folder):
    with serving(folder) as server:
        browser.open(server.address + "?rater=a/b")
        browser.wait_for("document.getElementById('trouble').textContent.includes('give 1 to 40 letters')")
        assert not browser.run("document.getElementById('start').hidden")
        browser.listen()
        assert all("status of 400" in said for said in browser.said)
        browser.said.clear()


def test_a_picture_that_can_not_be_shown_can_be_skipped(browser, folder):
    for image in sorted((folder / "images").iterdir())[:4]:
        image.write_bytes(b"no picture")
    with serving(folder, only="ann") as server:
        browser.open(server.address)
        for done in range(4):
            _skip_until_ready(browser)
            browser.press("5")
            browser.wait_for(f"{DONE} === {done + 1}")
        assert len(scores(folder)) == 4
        browser.wait_for("!document.getElementById('skip').hidden || !document.getElementById('end').hidden")
        browser.listen()
        assert all("status of 404" in said for said in browser.said)
        browser.said.clear()


def _skip_until_ready(browser):
    while True:
        browser.wait_for(f"{READY} || !document.getElementById('skip').hidden")
        if browser.run(READY):
            return
        before = browser.run(PROGRESS)
        browser.click("#skip")
        browser.wait_for(f"{PROGRESS} !== {json.dumps(before)}")
