"""A rating server in a thread of the test, and requests to it."""

import http.client
import json
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

from entscale_jax.reports.rating.rating_order import rated_pairs
from entscale_jax.reports.rating.rating_server import open_server
from entscale_jax.reports.rating.rating_session import RatingSession
from entscale_jax.reports.run_folder import read_run


@contextmanager
def serving(folder, *, only=None, host="127.0.0.1", port=0, said=None):
    """The server of a run folder, on a free port."""
    run = read_run(folder)
    session = RatingSession(run, rated_pairs(run), only=only, say=(said if said is not None else []).append)
    with open_server(session, host, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Client:
    """Asks a server at its address; answers are (status, headers, body)."""

    def __init__(self, server, base=None):
        self.address = urlsplit(server.address if base is None else base)

    def ask(self, path, *, method="GET", body=None, headers=None):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=20)
        try:
            connection.request(method, self.address.path + path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        finally:
            connection.close()

    def state(self, rater, query=""):
        status, _, body = self.ask(f"state?rater={rater}{query}")
        assert status == 200, body
        return json.loads(body)

    def rate(self, rater, key, score, **headers):
        body = json.dumps({"rater": rater, "key": key, "score": score})
        status, _, body = self.ask(
            "answer", method="POST", body=body, headers={"Content-Type": "application/json", **headers}
        )
        return status, json.loads(body)
