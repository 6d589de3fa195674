"""Every way into a cluster, one after the other, inside `namespace_init`: writes what came of each to `steps.json`.

Run as `ways_in_steps.py CHECKOUT`, in the folder of the namespace. `test_ways_in.py` looks at what it writes.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE, HOME = Path.cwd(), Path.home()
DASHBOARD = "http://127.0.0.1:8265"
STATES = {"0A": "listen"}


class Steps:
    """Runs commands and keeps what they said, in order, on disk after each."""

    def __init__(self):
        self.done: dict[str, dict] = {}

    def run(self, name: str, *command: str, **environment: str) -> dict:
        start = time.monotonic()
        done = subprocess.run(
            command,
            cwd=HERE / "work",
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=400,
        )
        return self.keep(
            name,
            command=list(command),
            code=done.returncode,
            seconds=round(time.monotonic() - start, 1),
            output=done.stdout,
        )

    def keep(self, name: str, **fields) -> dict:
        self.done[name] = fields
        (HERE / "steps.json").write_text(json.dumps(self.done, indent=1))
        return fields


def listening() -> list[str]:
    """Addresses of this namespace that are listened at, as hexadecimal words of /proc/net."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return sorted({fields[1] for fields in lines if fields[3] in STATES})


def status_of(url: str) -> int:
    """The HTTP status without a token."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def watch_listening(found: dict[str, str], stop: threading.Event) -> None:
    """Gathers every address that is listened at, until told to stop."""
    while not stop.wait(0.2):
        found.update(dict.fromkeys(listening(), ""))


def watched(watch, call) -> dict[str, str]:
    """What `watch` found while `call` ran."""
    found: dict[str, str] = {}
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(found, stop))
    watcher.start()
    call()
    stop.set()
    watcher.join()
    return found


def watch_metrics(found: dict[str, str], stop: threading.Event) -> None:
    """Keeps the last value of each of our metrics that a node exports, until told to stop."""
    while not stop.wait(1.0):
        try:
            targets = json.loads(Path("/tmp", "ray", "prom_metrics_service_discovery.json").read_text())[0]["targets"]
            with urllib.request.urlopen(f"http://{targets[0]}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (OSError, ValueError, LookupError):
            continue
        found.update(line.rsplit(" ", 1) for line in lines if line.startswith("ray_entscale_"))


def main(checkout: str) -> None:
    steps = Steps()
    run, yaml = steps.run, "sweeps/aspect.yaml"
    run("token", "ray", "get-auth-token", "--generate")
    run("refused alone", "ray", "submit", yaml)
    run("up", "ray", "up", "-y", yaml)
    steps.keep("listening", addresses=listening())
    steps.keep(
        "without token", dashboard=status_of(f"{DASHBOARD}/api/jobs/"), version=status_of(f"{DASHBOARD}/api/version")
    )
    run("status without token", "ray", "status", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 32)
    found = watched(watch_metrics, lambda: run("ray submit", "ray", "submit", yaml, "sweeps/run.py"))
    steps.keep("metrics", found=found)
    (HERE / "work" / "runs" / "aspect").mkdir(parents=True)
    run("rsync-down", "ray", "rsync-down", yaml, "~/runs/aspect/", "runs/aspect/")
    run("report", "entscale", "report", "runs/aspect")
    run("status", "entscale", "status", "runs/aspect")
    text = (HERE / "work" / yaml).read_text()
    (HERE / "work" / yaml).write_text(text.replace("name: aspect", "name: renewed"))
    run("ray submit of old metadata", "ray", "submit", yaml, "sweeps/run.py")
    run("entscale submit", "entscale", "submit", yaml)
    other = (HERE / "work" / yaml).read_text().replace("steps: 3", "steps: 4")
    (HERE / "work" / "sweeps" / "other.yaml").write_text(other)
    run("entscale submit of another sweep", "entscale", "submit", "sweeps/other.yaml")
    job = ("ray", "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--")
    out = str(HERE / "job run")
    run("ray job submit", *job, "python", "-m", "entscale_jax.sweep", yaml, "--out", out, RAY_AUTH_MODE="token")
    sweep = ("python", "-m", "entscale_jax.sweep")
    run("ray job submit without a token", *job, *sweep, yaml, "--out", out, RAY_AUTH_MODE="disabled")
    run("ray job submit of a lost run", *job, *sweep, yaml, "--out", "runs/lost", RAY_AUTH_MODE="token")
    run(
        "entscale submit to an address", "entscale", "submit", yaml, "--address", DASHBOARD, "--out", str(HERE / "sent")
    )
    run("address auto", "entscale", "sweep", yaml, "--address", "auto", "--out", str(HERE / "auto"))
    run(
        "address client", "entscale", "sweep", yaml, "--address", "ray://127.0.0.1:10001", "--out", str(HERE / "client")
    )
    before = set(listening())
    alone = ("entscale", "sweep", yaml, "--out", str(HERE / "alone"))
    found = watched(watch_listening, lambda: run("of this machine", *alone))
    steps.keep("listening of this machine", addresses=sorted(found.keys() - before))
    run("down", "ray", "down", "-y", yaml)


if __name__ == "__main__":
    main(sys.argv[1])
