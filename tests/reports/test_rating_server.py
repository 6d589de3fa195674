"""What the rating server answers, refuses, and keeps to itself."""

import io
import json
import re
import socket
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rating_host import Client, serving
from synthetic_run import SyntheticRun

from entscale_jax import cli
from entscale_jax.errors import UserError
from entscale_jax.reports.rating.answers import read_answers
from entscale_jax.reports.rating.rating_server import is_loopback


@pytest.fixture
def folder(tmp_path):
    return SyntheticRun(prompts=("one", "two", "three"), metrics=()).write(tmp_path / "run")


@pytest.fixture
def server(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture
def client(server):
    return Client(server)


def answers(folder, rater):
    return read_answers(folder / "ratings" / f"{rater}.jsonl")[0]


def test_a_rater_comes_through_all_pictures_and_each_answer_is_on_the_disk(client, folder):
    state, captions = client.state("ann"), []
    for number in range(12):
        assert (state["done"], state["total"], state["place"]) == (number, 12, number)
        captions.append(state["item"]["caption"])
        status, state = client.rate("ann", state["item"]["key"], number % 10 + 1)
        assert status == 200
        assert len(answers(folder, "ann")) == number + 1
    assert state["item"] is None
    assert sorted(captions) == sorted(["one", "two", "three"] * 4)
    assert [answer.score for answer in answers(folder, "ann")] == [*range(1, 11), 1, 2]
    assert len({answer.cell for answer in answers(folder, "ann")}) == 12


def test_it_goes_on_where_a_rater_stopped_in_a_server_of_another_day(folder):
    with serving(folder) as server:
        client = Client(server)
        order = [client.state("ann", f"&at={place}")["item"]["caption"] for place in range(12)]
        for _ in range(5):
            client.rate("ann", client.state("ann")["item"]["key"], 4)
    with serving(folder) as server:
        client = Client(server)
        state = client.state("ANN")
        assert (state["rater"], state["done"], state["place"]) == ("ann", 5, 5)
        assert [client.state("ann", f"&at={place}")["item"]["caption"] for place in range(12)] == order
        assert client.state("ben")["done"] == 0


def test_a_score_can_be_changed_and_the_last_counts(client, folder):
    first = client.state("ann")["item"]
    client.rate("ann", first["key"], 4)
    assert client.state("ann", "&at=0")["item"] == {**first, "score": 4}
    _, state = client.rate("ann", first["key"], 9)
    assert (state["done"], state["place"]) == (1, 1)
    assert [answer.score for answer in answers(folder, "ann")] == [4, 9]


def test_two_servers_of_a_run_know_what_the_other_was_told(folder):
    with serving(folder) as first, serving(folder) as second:
        one, other = Client(first), Client(second)
        assert (one.state("ann")["done"], other.state("ann")["done"]) == (0, 0)
        one.rate("ann", one.state("ann")["item"]["key"], 3)
        seen = other.state("ann")
        assert (seen["done"], seen["place"]) == (1, 1)
        other.rate("ann", seen["item"]["key"], 9)
        assert [one.state("ann", f"&at={place}")["item"]["score"] for place in range(3)] == [3, 9, None]
    assert [answer.score for answer in answers(folder, "ann")] == [3, 9]


def test_places_are_whole_numbers_and_stay_within_the_order(client):
    assert client.state("ann", "&at=-5")["place"] == 0
    assert client.state("ann", "&at=500")["item"] is None
    assert client.state("ann", "&from=7")["place"] == 7
    assert client.state("ann", "&from=12")["item"] is None
    for text in ("x", "1.5", "-", "1" * 30):
        assert client.ask(f"state?rater=ann&at={text}")[0] == 400


def test_nothing_that_is_sent_tells_what_drew_a_picture(folder):
    synthetic = SyntheticRun(prompts=("one", "two", "three"), metrics=())
    other = synthetic.write(folder.with_name("other"))
    for row in synthetic.rows:
        with Image.open(other / row["image"]) as image:
            info = PngInfo()
            info.add_text("method", row["method"])
            image.save(other / row["image"], pnginfo=info)
    sent, keys = [], {}
    with serving(other) as server:
        client = Client(server)
        sent.append(client.ask("")[2])
        for rater in ("ann", "ben"):
            for place in range(12):
                state = client.state(rater, f"&at={place}")
                sent.append(json.dumps(state).encode())
                key = state["item"]["key"]
                status, headers, picture = client.ask(f"picture?rater={rater}&key={key}")
                assert (status, headers["Content-Type"]) == (200, "image/png")
                assert Image.open(io.BytesIO(picture)).info == {}
                sent += [picture, json.dumps(headers).encode()]
                keys.setdefault(rater, []).append(key)
    everything = b"\n".join(sent)
    told = {str(row[name]) for row in synthetic.rows for name in ("cell", "method", "image")} | {"64x64", "96x64"}
    assert [word for word in told if word.encode() in everything] == []
    assert b"method" in (other / synthetic.rows[0]["image"]).read_bytes()  # It would have been found.
    assert not set(keys["ann"]) & set(keys["ben"])


def test_pictures_are_those_of_their_cells(client, folder):
    for _ in range(12):
        item = client.state("ann")["item"]
        picture = np.asarray(Image.open(io.BytesIO(client.ask(f"picture?rater=ann&key={item['key']}")[2])))
        client.rate("ann", item["key"], 5)
        cell = answers(folder, "ann")[-1].cell
        np.testing.assert_array_equal(picture, np.asarray(Image.open(folder / "images" / f"{cell}.png")))
        assert json.loads((folder / "rows" / f"{cell}.json").read_text())["prompt"] == item["caption"]


@pytest.mark.parametrize("score", [0, 11, -1, 5.0, 5.5, "5", True, None, [5]])
def test_scores_that_are_none(client, folder, score):
    key = client.state("ann")["item"]["key"]
    status, body = client.rate("ann", key, score)
    assert status == 400
    assert "give a whole number from 1 to 10" in body["error"]
    assert not (folder / "ratings").exists()


@pytest.mark.parametrize("rater", ["../ann", "", "a/b", "%00"])
def test_raters_that_are_none(client, folder, rater):
    assert client.ask(f"state?rater={rater}")[0] == 400
    assert client.rate(rater, "key", 5)[0] == 400
    assert not (folder / "ratings").exists()


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b'{"rater": "ann"}', "application/json", "a rater, a key and a score"),
        (b"[1]", "application/json", "is a JSON object"),
        (b"{", "application/json", "is a JSON object"),
        (b" " * 5000, "application/json", "at most 4096 bytes"),
        (b"{}", "text/plain", "sent as application/json"),
    ],
)
def test_requests_that_are_no_answer(client, body, kind, said):
    status, _, answer = client.ask("answer", method="POST", body=body, headers={"Content-Type": kind})
    assert status == 400
    assert said in json.loads(answer)["error"]


@pytest.mark.parametrize(
    "path", ["../spec.yaml", "images/", "picture?rater=ann&key=0", "state/", "answer", "report/index.html"]
)
def test_there_is_nothing_else(client, path):
    assert client.ask(path)[0] == 404


def test_an_answer_that_can_not_be_kept_is_not_confirmed(client, folder):
    (folder / "ratings").write_text("in the way")
    status, body = client.rate("ann", client.state("ben")["item"]["key"], 5)
    assert status in (400, 500)
    assert body["error"]


def test_a_foreign_name_for_this_machine_is_refused(client):
    assert client.ask("state?rater=ann", headers={"Host": "evil.example"})[0] == 404
    assert client.ask("state?rater=ann", headers={"Host": "localhost:1234"})[0] == 200


def test_beyond_loopback_nothing_is_answered_without_the_token(folder):
    with serving(folder, host="0.0.0.0") as server:
        assert len(server.token) >= 20
        base = f"http://127.0.0.1:{server.server_port}/"
        for path in (
            "",
            "state?rater=ann",
            f"{server.token[:-1]}/",
            f"{server.token}x/",
            "%C3%A9/",
        ):
            assert Client(server, base).ask(path)[0] == 404
        inside = Client(server, f"{base}{server.token}/")
        assert inside.ask("", headers={"Host": "elsewhere.example"})[0] == 200
        status, _ = inside.rate("ann", inside.state("ann")["item"]["key"], 3)
        assert status == 200
        assert re.fullmatch(rf"http://\S+:{server.server_port}/{server.token}/", server.address)
        assert "0.0.0.0" not in server.address
    with serving(folder, host="0.0.0.0") as again:
        assert again.token != server.token


def test_loopback_has_no_token(server):
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("box", False)],
)
def test_which_addresses_are_this_machine_alone(host, only_here):
    assert is_loopback(host) == only_here


def test_one_rater_alone(folder):
    with serving(folder, only="Ann") as server:
        client = Client(server)
        assert client.state("ann")["rater"] == "ann"
        status, _, body = client.ask("state?rater=ben")
        assert (status, json.loads(body)["error"]) == (400, "these pictures are for rater ann alone")


def test_many_raters_at_once_lose_nothing(client, folder):
    def go(rater):
        while (item := client.state(rater)["item"]) is not None:
            client.rate(rater, item["key"], 6)

    threads = [threading.Thread(target=go, args=(f"rater-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(answers(folder, f"rater-{number}")) for number in range(4)] == [12] * 4


def test_a_file_cut_in_the_middle_is_told_in_one_line_and_nothing_is_lost(folder):
    with serving(folder) as server:
        client = Client(server)
        for _ in range(3):
            client.rate("ann", client.state("ann")["item"]["key"], 8)
    file = folder / "ratings" / "ann.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-30])
    said = []
    with serving(folder, said=said) as server:
        client = Client(server)
        assert client.state("ann")["done"] == 2
        client.rate("ann", client.state("ann")["item"]["key"], 8)
    (line,) = said
    assert "\n" not in line
    assert "are set aside in ann.cut, 2 rated pictures are kept" in line
    assert file.read_bytes().count(b"\n") == 3
    assert file.with_suffix(".cut").read_bytes() == content[:-30].rpartition(b"\n")[2] + b"\n"
    assert [answer.cell for answer in answers(folder, "ann")] == [
        json.loads(line)["cell"] for line in content.splitlines()
    ]


def test_a_place_that_is_taken(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(UserError, match="give another with --host or --port"),
            serving(folder, port=taken.getsockname()[1]),
        ):
            pass


def test_the_command_says_where_and_how_far_and_stops_quietly(folder, monkeypatch, capsys):
    client = {}

    def serve(server):
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        client["state"] = Client(server).ask("state?rater=ann")
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr("entscale_jax.reports.rating.rating_server.RatingServer.serve_forever", serve)
    monkeypatch.setattr(sys, "argv", ["entscale", "rate", str(folder), "--port", "0", "--pairs", "4"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"8 pictures of 4 pairs are rated at http://127\.0\.0\.1:\d+/", first)
    assert second.startswith(f"answers go to {folder / 'ratings'}")
    assert third == "ann: 0 of 8 pictures rated"
    assert client["state"][0] == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["RUN", "--rater", "../x"], "give 1 to 40 letters"),
        (["RUN", "--pairs", "1"], "1 pairs: give 2 to 6"),
        (["RUN", "--host", "203.0.113.77", "--port", "0"], "can't serve at 203.0.113.77"),
        (["RUN", "--port", "70000"], "'--port'"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, arguments, said):
    texts = [str(folder) if text == "RUN" else text for text in arguments]
    monkeypatch.setattr(sys, "argv", ["entscale", "rate", *texts])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(error.splitlines()) == 1
    assert said in error
