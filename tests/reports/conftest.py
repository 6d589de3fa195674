"""One browser for all tests of pages, as it takes a second to start."""

import pytest
from browser import CHROMIUM, chromium


@pytest.fixture(scope="session")
def started_browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: make setup-browser")
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(started_browser):
    """A browser on a desk, light, which must have said nothing and asked for nothing elsewhere when a test ends."""
    started_browser.screen(1280, 800)
    yield started_browser
    started_browser.listen()
    assert started_browser.said == []
    assert [url for url in started_browser.requests if not url.startswith(("file:///", "http://127.0.0.1:"))] == []
