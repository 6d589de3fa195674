"""The rating page over HTTP: the standard library's server, to this machine alone or with a secret in its address."""

import hmac
import ipaddress
import json
import re
import secrets
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from ...errors import UserError
from ..page_parts import embedded_json, script, templates
from .rating_session import RatingSession

_LARGEST = 4096
"""Bytes of a request's body that are read."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class RatingServer(ThreadingHTTPServer):
    """Serves one session. Beyond loopback every path begins with a token, without which nothing is answered."""

    daemon_threads = True

    def __init__(self, session: RatingSession, host: str, port: int):
        self.session = session
        self.is_loopback = is_loopback(host)
        self.token = "" if self.is_loopback else secrets.token_urlsafe(16)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.allowed_hosts = {"localhost", "127.0.0.1", "::1", host}
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks the machine's name up, which can take long where there is no name server.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def address(self) -> str:
        """The link to the page, with the token where there is one."""
        host = own_address() if self.server_name in ("0.0.0.0", "::") else self.server_name
        named = f"[{host}]" if ":" in host else host
        return f"http://{named}:{self.server_port}/" + (f"{self.token}/" if self.token else "")


def open_server(session: RatingSession, host: str, port: int) -> RatingServer:
    """A server that listens. Raises UserError where the place is taken or there is no such address here."""
    try:
        return RatingServer(session, host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"can't serve at {host}, port {port} ({reason}): give another with --host or --port, 0 for any free port"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_address() -> str:
    """This machine's address in its network; its name where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing: it only has the system choose an interface.
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


class _Handler(BaseHTTPRequestHandler):
    timeout = 30

    @property
    def rating(self) -> RatingServer:
        """The server, by its own type."""
        return cast(RatingServer, self.server)

    def do_GET(self) -> None:
        self._answer({"": self._page, "state": self._state, "picture": self._picture})

    def do_POST(self) -> None:
        self._answer({"answer": self._keep})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a request would drown what the command says."""

    def _answer(self, pages: dict[str, Any]) -> None:
        place = self._place()
        if place is None or place not in pages:
            self._send_error(HTTPStatus.NOT_FOUND, "nothing is here: open the whole link that was given")
            return
        try:
            pages[place]()
        except UserError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"not saved: {error.strerror or error}")

    def _place(self) -> str | None:
        """The path below the token; None where the token is missing, or the page was reached by a foreign name."""
        path = urlsplit(self.path).path.removeprefix("/")
        if self.rating.is_loopback:
            # A name of someone else's that leads to this machine would let their pages read this one.
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            return path if host in self.rating.allowed_hosts else None
        token, _, rest = path.partition("/")
        return rest if hmac.compare_digest(token.encode(), self.rating.token.encode()) else None

    def _page(self) -> None:
        code = script("report/elements.js", "rating/rating.js")
        text = (
            templates()
            .get_template("rating.html.j2")
            .render(script=code, settings=embedded_json({"only": self.rating.session.only}))
        )
        self._send(text.encode(), "text/html; charset=utf-8")

    def _state(self) -> None:
        at, start = self._number("at"), self._number("from")
        self._send_json(self.rating.session.state(self._query("rater"), at, start=start or 0))

    def _picture(self) -> None:
        data = self.rating.session.picture(self._query("rater"), self._query("key"))
        if data is None:
            self._send_error(HTTPStatus.NOT_FOUND, "there is no such picture")
        else:
            self._send(data, "image/png")

    def _keep(self) -> None:
        values = self._body()
        name, key = values.get("rater"), values.get("key")
        if not isinstance(name, str) or not isinstance(key, str):
            raise UserError("an answer has a rater, a key and a score")
        self.rating.session.answer(name, key, values.get("score"))
        self._send_json(self.rating.session.state(name))

    def _query(self, name: str) -> str:
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0]

    def _number(self, name: str) -> int | None:
        text = self._query(name)
        if not re.fullmatch(r"-?[0-9]{0,9}", text) or text == "-":
            raise UserError(f"{name}={text}: give a whole number")
        return int(text) if text else None

    def _body(self) -> dict[str, Any]:
        # A form of another page can't send this type without asking, which is not granted.
        if self.headers.get_content_type() != "application/json":
            raise UserError("answers are sent as application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST:
            raise UserError(f"an answer has at most {_LARGEST} bytes")
        try:
            values = json.loads(self.rfile.read(int(length)))
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise UserError("an answer is a JSON object")
        return values

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self._send_json({"error": message}, status)

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
