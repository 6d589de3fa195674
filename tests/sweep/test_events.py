"""The event log: whole lines whatever happens, and the numbers, lines and status that are told from it."""

import io
import itertools
import json
import os
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sweep_fakes as fakes
from rich.console import Console
from sweep_fakes import FakeExecutor

from entscale_jax.errors import UserError
from entscale_jax.sweep import events
from entscale_jax.sweep.events import NAME, EventLog, ObjectLog, make_event, parse_events, read_events
from entscale_jax.sweep.progress import RunProgress
from entscale_jax.sweep.status import read_status, show_status
from entscale_jax.sweep.tally import Tally

FIELDS = {
    kind: set(re.findall(r"`(\w+)`", text))
    for kind, text in re.findall(r"^\| `(\w+)` \| (.*) \|$", events.__doc__ or "", re.MULTILINE)
}
"""Kind of event -> words in code in the module's own table."""


def log(run):
    return list(read_events(run / NAME))


@pytest.fixture
def ticking(monkeypatch):
    """A clock of events that goes on by a second each time it is looked at, and is never set back."""
    seconds = itertools.count()

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 1, tzinfo=tz) + timedelta(seconds=next(seconds))

    monkeypatch.setattr(events, "datetime", Clock)


@pytest.fixture
def run(sweep, tmp_path):
    assert sweep(FakeExecutor(2)) == 0
    return tmp_path / "run"


@pytest.mark.usefixtures("ticking")
def test_a_run_is_told_whole(run):
    told = log(run)
    kinds = [event["event"] for event in told]
    assert (kinds[:2], kinds[-1]) == (["run", "workers"], "end")
    chunks = [event for event in told if event["event"] == "chunk"]
    assert sum(event["cells"] for event in chunks) == told[0]["cells"] == told[-1]["finished"] == 60
    assert len(chunks) == told[0]["chunks"]
    assert {event["bucket"]: 0 for event in chunks}.keys() == {one["bucket"] for one in told[0]["buckets"]}
    assert sum(one["cost"] for one in told[0]["buckets"]) == sum(event["cost"] for event in chunks)
    assert [event["time"] for event in told] == sorted(event["time"] for event in told)
    assert all(event["time"].endswith("+00:00") for event in told)


def test_every_field_is_documented(sweep, tmp_path):
    seen = {}

    def fault(worker, task):
        seen[task.chunk.index] = seen.get(task.chunk.index, 0) + 1
        return "no" if task.chunk.index == 0 or (task.chunk.index == 1 and seen[1] == 1) else None

    # More workers than buckets take over; failed cells that fail again stop the second run.
    assert sweep(FakeExecutor(8, fault=fault, load=lambda cell: Broken())) == 1
    assert sweep(FakeExecutor(fault=lambda worker, task: "no"), retry_failed=True, max_failures=1) == 1
    told = log(tmp_path / "run")
    assert {event["event"] for event in told} == FIELDS.keys()
    for event in told:
        assert event.keys() - {"time", "event"} <= FIELDS[event["event"]], event
    # The control: a field of another kind is not documented here.
    assert "steady_seconds" not in FIELDS["retry"]


def test_the_page_has_the_same_table():
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    rows = [line for line in (events.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(rows) == len(FIELDS) + 2
    assert "\n".join(rows) in page


class Broken(fakes.FakePipe):
    """A pipe whose third image can't be measured."""

    def __call__(self, *args, **keywords):
        output = super().__call__(*args, **keywords)
        return replace(output, images=[image if i != 2 else None for i, image in enumerate(output.images)])


def test_going_on_begins_another_run_in_the_same_log(sweep, tmp_path):
    calls = []

    def fault(worker, task):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt

    assert sweep(FakeExecutor(fault=fault)) == 130
    first = log(tmp_path / "run")
    assert first[-1]["outcome"] == "interrupted"
    assert sweep(FakeExecutor()) == 0
    told = log(tmp_path / "run")
    assert told[: len(first)] == first
    assert (told[len(first)]["event"], told[len(first)]["finished"]) == ("run", first[-1]["finished"])
    assert told[-1]["outcome"] == "done"
    before = (tmp_path / "run" / NAME).read_bytes()
    assert sweep(FakeExecutor()) == 0
    assert (tmp_path / "run" / NAME).read_bytes() == before


@pytest.mark.parametrize("left", ['{"time": "2026', "", "\n", "x" * 2_000_000])
def test_what_a_killed_driver_left_of_a_line_is_dropped(tmp_path, left):
    path = tmp_path / NAME
    EventLog(path)(make_event("run", cells=1))
    with open(path, "a") as file:
        file.write(left)
    EventLog(path)(make_event("end", outcome="done"))
    kinds = [json.loads(line)["event"] for line in path.read_text().splitlines() if line and line[0] == "{"]
    assert kinds == ["run", "end"] == [event["event"] for event in read_events(path)]
    # The control: appended by hand, the half line and the next one are both lost.
    with open(path, "a") as file:
        file.write('{"event": "ha' + json.dumps(make_event("lost")) + "\n")
    assert [event["event"] for event in read_events(path)] == ["run", "end"]


def test_a_full_disk_takes_no_part_of_a_line_and_ends_no_run(tmp_path, monkeypatch):
    path = tmp_path / NAME
    log = EventLog(path)
    log(make_event("run"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    log(make_event("chunk"))

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log(make_event("chunk"))
    monkeypatch.undo()
    log(make_event("end"))
    assert [event["event"] for event in read_events(path)] == ["run", "end"]
    assert path.read_bytes().count(b"\n") == 2


def test_a_log_that_can_not_be_opened_ends_no_run(sweep, tmp_path):
    (tmp_path / "run").mkdir()
    assert sweep(FakeExecutor()) == 0
    (tmp_path / "run" / NAME).unlink()
    (tmp_path / "run" / NAME).mkdir()
    assert sweep(FakeExecutor(), resume=False) == 0
    assert list(read_events(tmp_path / "run" / NAME)) == []


def test_at_a_uri_events_are_objects_of_some_seconds_each():
    seconds, reachable = (0, 1, 11, 15, 22, 23), (True, True, False, True, True, True)
    objects, counts = {}, []

    def write(name, data):
        if not reachable[len(counts)]:
            raise OSError("unreachable")
        assert name not in objects
        objects[name] = data

    log = ObjectLog(write, seconds=10.0, clock=lambda: seconds[len(counts)])
    told = [_run_event(), *(_chunk(worker=f"w{i}") for i in range(4)), make_event("end", outcome="done")]
    for event in told:
        log(event)
        counts.append(len(objects))
    # At once where a run begins and ends; else every ten seconds, and what was lost with the next.
    assert counts == [1, 1, 1, 1, 2, 3]
    text = "".join(objects[name].decode() for name in sorted(objects))
    assert list(parse_events(text.splitlines(keepends=True))) == told


def test_what_ray_is_told_to_count(monkeypatch):
    pytest.importorskip("ray")
    from entscale_jax.sweep.cluster import ray_metrics

    told = []

    class Metric:
        def __init__(self, name, *_, **__):
            self.name = name

        def inc(self, value, tags):
            told.append((self.name, value, tags))

        observe = inc

        def set(self, value):
            told.append((self.name, value))

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Metric)
    metrics = ray_metrics.RayMetrics()
    metrics(_run_event())
    assert told == [("entscale_queue_cells", 16), ("entscale_queue_chunks", 4)]
    told.clear()
    metrics(_chunk(failed=1))
    assert told == [
        ("entscale_cells_done", 3, {"bucket": "a", "outcome": "drawn"}),
        ("entscale_cells_done", 1, {"bucket": "a", "outcome": "failed"}),
        ("entscale_chunk_seconds", 6.0, {"bucket": "a", "part": "compile"}),
        ("entscale_chunk_seconds", 4.0, {"bucket": "a", "part": "steady"}),
        ("entscale_queue_cells", 12),
        ("entscale_queue_chunks", 3),
    ]


def _run_event(**changes):
    buckets = [{"bucket": "a", "cells": 8, "cost": 80}, {"bucket": "b", "cells": 8, "cost": 160}]
    return make_event("run", **{"cells": 20, "finished": 4, "failed": 0, "chunks": 4, "buckets": buckets, **changes})


def _chunk(bucket="a", worker="w0", cells=4, cost=40, failed=0, compile_seconds=6.0, steady_seconds=4.0):
    return make_event("chunk", **locals(), size="8x8", method="entropy")


def test_the_time_left_is_that_of_each_bucket():
    now = 0.0
    tally = Tally(clock=lambda: now)
    tally.add(_run_event())
    tally.add(make_event("workers", workers=[{"worker": "w0"}, {"worker": "w1"}]))
    assert (tally.left(), tally.left_in("a")) == (None, None)
    now = 10.0
    tally.add(_chunk())
    # 40 of cost in 4 s: 40 left in a, one worker on it; nothing known of b but its cost, and that it has to compile.
    assert tally.left_in("a") == pytest.approx(4.0)
    assert tally.left_in("b") == pytest.approx(16.0)
    assert tally.left() == pytest.approx((4 + 16 + 6) / 2)
    assert tally.images_per_second() == pytest.approx(0.4)
    tally.add(_chunk(bucket="b", worker="w1", cost=80, steady_seconds=16.0))
    assert tally.left_in("b") == pytest.approx(16.0)
    tally.add(_chunk(bucket="b", worker="w0", cells=2, cost=40, steady_seconds=8.0, failed=1))
    assert tally.left_in("b") == pytest.approx(8.0 / 2)
    assert (tally.finished, tally.failed, tally.drawn, tally.chunks) == (14, 1, 9, 1)
    assert tally.open_buckets() == ["a", "b"]


def test_what_was_given_up_counts_as_failed_and_takes_no_time():
    tally = Tally()
    tally.add(_run_event(failed=1))
    tally.add(_chunk())
    left = tally.left_in("b")
    tally.add(make_event("gave_up", bucket="b", cells=4, cost=80, size="8x8", method="x", error="e", chunk=1))
    assert (tally.failed, tally.finished, tally.drawn) == (5, 12, 4)
    assert tally.left_in("b") == pytest.approx((left or 0) / 2)


def test_plain_lines_where_there_is_no_terminal(sweep, console, run):
    lines = [line for line in console.file.getvalue().splitlines() if re.match(r"\[\d+/60\]", line)]
    assert len(lines) == 18
    assert all(
        re.search(r"\d x?\S* ?.* cells in \d+\.\d s, [\d.]+ images/s, about \d+ s left$", line) for line in lines
    )
    assert "\x1b" not in console.file.getvalue()


def test_bars_on_a_terminal():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, _environ={})
    with RunProgress(console) as progress:
        progress(_run_event())
        progress(_chunk(failed=1))
        progress(make_event("cell_failed", cell="1", size="8x8", method="m", prompt="a [red]\x1b[2J circle", error="e"))
        progress._bar.refresh()
    text = file.getvalue()
    assert "8/20" in text
    assert "4/8" in text
    assert "1 failed" in text
    assert "images/s" in text
    assert re.search(r"\ba\b.*about 4 s left", text)
    # A caption is neither markup nor an order to the terminal.
    assert "a [red]\\x1b[2J circle" in text
    assert "\x1b[2J" not in text


def _status(run):
    console = Console(file=io.StringIO(), width=200)
    show_status(run, console)
    return console.file.getvalue()


def test_status_after_a_run(run):
    text = _status(run)
    assert "done, " in text
    assert "60 of 60 cells, 0 failed" in text


def test_status_while_it_draws_and_when_its_driver_is_gone(sweep, tmp_path):
    seen = []

    def fault(worker, task):
        if len(seen) == 7:
            raise SystemExit  # as a driver that is killed, which tells no end
        seen.append(_status(tmp_path / "run"))

    with pytest.raises(SystemExit):
        sweep(FakeExecutor(fault=fault))
    assert "drawing, last heard of" in seen[-1]
    assert "20 of 60 cells, 0 failed" in seen[-1]
    assert "images/s" in seen[-1]
    assert sorted(re.findall(r"fake \d+x\d+ +(\d+/20) ", seen[-1])) == ["0/20", "0/20", "20/20"]
    path = tmp_path / "run" / NAME
    told = [json.loads(line) for line in path.read_text().splitlines()]
    told = [{**event, "pid": 2**22 + 1} if event["event"] == "run" else event for event in told[:-1]]
    path.write_text("".join(json.dumps(event) + "\n" for event in told))
    assert "its driver is gone" in _status(tmp_path / "run")
    elsewhere = [{**event, "host": "elsewhere"} if event["event"] == "run" else event for event in told]
    path.write_text("".join(json.dumps(event) + "\n" for event in elsewhere))
    assert "run: last heard of" in _status(tmp_path / "run")


def test_status_names_failures(sweep, tmp_path):
    assert sweep(FakeExecutor(fault=lambda worker, task: "out of luck" if task.chunk.index == 3 else None)) == 1
    text = _status(tmp_path / "run")
    assert "60 of 60 cells, 4 failed" in text
    assert "failed: 64x64 entropy: out of luck" in text


def test_status_of_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_status(tmp_path)
    (tmp_path / "spec.yaml").write_text("sweep: {}\n")
    with pytest.raises(UserError, match="no event yet"):
        read_status(tmp_path)


def test_status_looks_and_touches_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    _status(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
