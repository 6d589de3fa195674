"""Headless Chromium for tests of pages, driven through its DevTools protocol over a pipe: without another package."""

import base64
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: make setup-browser")
PATIENCE = 30.0
"""Seconds until what is waited for counts as never to come."""
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--no-default-browser-check", "--hide-scrollbars", "--no-pings", "--force-color-profile=srgb"),
)
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Tab": 9, "Backspace": 8}
_TYPED = {"Enter": ("\r", 13), " ": (" ", 32)}


class Browser:
    """One Chromium with one page, which keeps what the page asked for and said."""

    def __init__(self, profile: Path):
        read_commands, self._commands = os.pipe()
        self._messages, write_messages = os.pipe()
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        command = [str(CHROMIUM), *_FLAGS, *root, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads commands from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{read_commands} 4>&{write_messages}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(read_commands, write_messages),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_messages)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._messages, selectors.EVENT_READ)
        self._buffer = bytearray()
        self._last = 0
        self._session: str | None = None
        self.requests: list[str] = []
        """URLs of the page, of everything that it asked for but data URIs."""
        self.said: list[str] = []
        """What went to the console, exceptions and refusals of the content security policy too."""
        self._attach()

    def _attach(self) -> None:
        attached = self.send("Target.attachToTarget", targetId=self._page(), flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def _page(self) -> str:
        """The target that is the page, which comes some time after the browser answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            pages = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"]
            if len(pages) == 1:
                return pages[0]["targetId"]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(pages)} pages and not one")
            time.sleep(0.02)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._last += 1
        number = self._last
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        _write_all(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(deadline - time.monotonic())
            if answer is None:
                raise TimeoutError(method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None after so many seconds without one. Events are kept here."""
        while b"\0" not in self._buffer:
            if seconds <= 0 or not self._selector.select(seconds):
                return None
            read = os.read(self._messages, 1 << 20)
            if not read:
                raise EOFError("chromium ended")
            self._buffer += read
        text, _, rest = self._buffer.partition(b"\0")
        self._buffer = bytearray(rest)
        message = json.loads(text)
        self._keep(message.get("method"), message.get("params", {}))
        return message

    def _keep(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:"):
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            texts = [str(value.get("value", value.get("description"))) for value in parameters["args"]]
            self.said.append(f"{parameters['type']}: {' '.join(texts)}")
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.said.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
        elif method == "Log.entryAdded":
            entry = parameters["entry"]
            self.said.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")

    def listen(self, seconds: float = 0.0) -> None:
        """Takes in what the page has said by now, or says within so many seconds."""
        deadline = time.monotonic() + seconds
        self.run("1")
        while self._receive(deadline - time.monotonic()) is not None:
            pass

    def open(self, address: str) -> None:
        """Goes to an address and waits until the page is loaded."""
        self.send("Page.navigate", url="about:blank")
        self.wait_for("location.href === 'about:blank' && document.readyState === 'complete'")
        self.requests, self.said = [], []
        answer = self.send("Page.navigate", url=address)
        assert "errorText" not in answer, answer
        self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")
        self.paint()  # Chromium drops clicks and keys until a page was painted once.

    def paint(self) -> None:
        """Waits until the page has been painted as it is now."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page; a promise is awaited."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"].get("exception", done["exceptionDetails"]))
        return done["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self.run(expression):
                    return
            except RuntimeError as error:  # Between two pages there is none to ask.
                last: object = error
            else:
                last = "false"
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression}: {last}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """One key, down and up."""
        text, code = _TYPED.get(key, ("" if key in _KEYS else key, _KEYS.get(key, ord(key[0].upper()))))
        values = {"key": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **values, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element."""
        self.paint()  # What was just made can't be hit yet.
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """A finger's touch in the middle of an element."""
        self.paint()
        x, y = self.middle(selector)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Moves the mouse with its button down."""
        places = (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end))
        for kind, (x, y) in places:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window, scrolled to if need be."""
        left, top, width, height = self.box(selector)
        return left + width / 2, top + height / 2

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window, scrolled to if need be."""
        script = f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: 'nearest', behavior: 'instant'}});
            const box = element.getBoundingClientRect();
            return [box.left, box.top, box.width, box.height];
        }})()"""
        left, top, width, height = self.run(script)
        return left, top, width, height

    def screen(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Takes the page to a screen of this size and colour scheme; `phone` adds touch and a phone's pixels."""
        ratio = 2 if phone else 1
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=phone
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> Path:
        """What the screen shows, as a PNG file."""
        self.paint()
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return file

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        os.close(self._commands)
        os.close(self._messages)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            yield browser
        finally:
            browser.close()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
