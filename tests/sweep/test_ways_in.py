"""Every way into a cluster, literally: `ray submit`, `ray job submit`, `entscale submit`, over a real sshd of its own.

All of it runs in its own processes, network and mounts, as `ray up` and `ray down` stop every Ray of a machine. A log
of one run is docs/ways-in.md, which `ENTSCALE_WAYS_IN=docs/ways-in.md` makes this write.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tiny_model import write_tiny_model

from entscale_jax.sweep.events import NAME, read_events

CHECKOUT = Path(__file__).parents[2]
INIT, STEPS = (Path(__file__).parent / name for name in ("namespace_init.py", "ways_in_steps.py"))
UNSHARE = ("unshare", "--pid", "--net", "--mount", "--mount-proc", "--fork")
LOOPBACK = re.compile(r"^(?:0100007F|0000000000000000FFFF00000100007F|00000000000000000000000001000000):")
NOISE = re.compile(r"\d{4}-\d\d-\d\d \S+\s+V*(?:INFO|WARN) |Warning: Permanently added")
"""Lines of Ray's own log, and of ssh, that a reader of the page can do without."""
SWEEP = {
    "name": "aspect",
    "sizes": ["32x32", "48x30"],
    "methods": ["original", "entropy"],
    "prompts": ["a red circle", 'it\'s "a $(touch pwned) circle"; `touch pwned`'],
    "seeds": [0],
    "sampler": {"name": "ddim", "steps": 3, "guidance": 5.0},
    "batch": 2,
    "metrics": ["entropy"],
}
CELLS = 8


def _lacking() -> str | None:
    """Why this can't run here."""
    for tool in ("/usr/sbin/sshd", "ssh", "rsync", "unshare", "ssh-keygen"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.name != "posix" or os.getuid() != 0:
        return "only root may mount and serve ssh"
    probe = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else None


REASON = _lacking()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The namespace's folder after every step was run in it."""
    folder = tmp_path_factory.mktemp("ways", numbered=True)
    work, home = folder / "work", folder / "home"
    shutil.copytree(CHECKOUT / "sweeps", work / "sweeps", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "entscale_jax", work / "entscale_jax", ignore=shutil.ignore_patterns("__pycache__"))
    model = write_tiny_model(folder / "model")
    config = yaml.safe_load((CHECKOUT / "sweeps" / "clusters" / "local.yaml").read_text())
    config["auth"] |= {"ssh_user": "root"}
    config["metadata"] = {"sweep": {**SWEEP, "model": str(model)}}
    (work / "sweeps" / "aspect.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    home.mkdir()
    # What a head node has after its setup commands, which find it done.
    (home / "entscale").symlink_to(sys.prefix)
    cache = folder / "xla"
    (home / ".bashrc").write_text(
        f"export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR='{cache}' PYTHONPATH='{CHECKOUT}'\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "JAX_", "XLA_", "PYTHON"))}
    environment = {
        **kept,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [*UNSHARE, sys.executable, str(INIT), str(folder), sys.executable, str(STEPS), str(CHECKOUT)]
    with open(folder / "log", "w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=1500)
    assert done.returncode == 0, (folder / "log").read_text()
    return folder


@pytest.fixture(scope="module")
def steps(folder):
    steps = json.loads((folder / "steps.json").read_text())
    if target := os.environ.get("ENTSCALE_WAYS_IN"):
        Path(target).write_text(_document(steps, folder))
    return steps


def _document(steps, folder):
    lines = [
        "# Every way in, as one test ran it",
        "",
        "Written by `pytest tests/sweep/test_ways_in.py`; its folder is FOLDER.",
        "",
    ]
    for name, step in steps.items():
        if "command" not in step:
            told = {key: sorted(value) if isinstance(value, dict) else value for key, value in step.items()}
            words = re.sub(
                r"(?:Component|NodeAddress|SessionName|Version|WorkerId|otel_\w+)=\"[^\"]*\",?", "", str(told)
            )
            lines += [f"**{name}**: `{words.replace(str(folder), 'FOLDER')}`", ""]
            continue
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", step["output"]).replace("\r", "")
        text = text.replace(str(folder), "FOLDER").replace(str(CHECKOUT), "CHECKOUT").replace(sys.prefix, "VENV")
        text = re.sub(r"/(?:tmp|root|home|work)(?=/)", "DIR", text)
        text = re.sub(r"[0-9a-f]{64}", "TOKEN", text)
        kept = [line.rstrip()[:400] for line in text.splitlines() if line.strip() and not NOISE.match(line)]
        shown = kept if len(kept) <= 14 else [*kept[:5], "...", *kept[-8:]]
        command = " ".join(step["command"]).replace(str(folder), "FOLDER")
        lines += [
            f"**{name}**, {step['seconds']} s, exit code {step['code']}",
            "",
            "```",
            f"$ {command}",
            *shown,
            "```",
            "",
        ]
    return "\n".join(lines)


def rows(run):
    table = pq.read_table(run / "samples.parquet").to_pylist()
    return {row["cell"]: (row["prompt"], row["entropy"], (run / row["image"]).read_bytes()) for row in table}


@pytest.fixture(scope="module")
def first(folder, steps):
    """What `ray submit` drew and `ray rsync-down` brought."""
    found = rows(folder / "work" / "runs" / "aspect")
    assert len(found) == CELLS
    return found


def test_ray_refuses_a_yaml_alone(steps):
    assert steps["refused alone"]["code"] == 2
    assert "Missing argument 'SCRIPT'" in steps["refused alone"]["output"]


def test_ray_submit_draws_and_the_run_comes_home(folder, steps, first):
    for name in ("up", "ray submit", "rsync-down"):
        assert steps[name]["code"] == 0, steps[name]["output"]
    assert f"{CELLS} of {CELLS} cells are drawn" in steps["ray submit"]["output"]
    assert {prompt for prompt, _, _ in first.values()} == set(SWEEP["prompts"])
    assert (folder / "home" / "runs" / "aspect" / "samples.parquet").is_file()


def test_the_run_makes_a_report(folder, steps):
    assert steps["report"]["code"] == 0, steps["report"]["output"]
    assert (folder / "work" / "runs" / "aspect" / "report" / "index.html").stat().st_size > 1000
    assert f"{CELLS} of {CELLS} cells, 0 failed" in steps["status"]["output"]


def test_metadata_is_renewed_by_entscale_submit_and_not_by_ray_submit(folder, steps, first):
    old = steps["ray submit of old metadata"]
    assert old["code"] == 0, old["output"]
    assert "drawing nothing" in old["output"]
    new = steps["entscale submit"]
    assert new["code"] == 0, new["output"]
    assert "will not be restarted" in new["output"]
    assert f"[{CELLS}/{CELLS}]" in new["output"]  # the log is followed
    assert rows(folder / "work" / "runs" / "renewed") == first
    assert [
        event["outcome"] for event in read_events(folder / "work/runs/renewed" / NAME) if event["event"] == "end"
    ] == ["done"]


def test_entscale_submit_ends_as_the_job_did_on_the_head(steps):
    refused = steps["entscale submit of another sweep"]
    assert "runs/renewed holds another sweep: sampler.steps is 3 there and 4 here" in refused["output"]
    # Of a refused job's 2, ssh and Ray make 1; and the run that is in the folder ended well.
    assert refused["code"] == 2, refused["output"]


def test_ray_job_submit_keeps_quotes_and_writes_where_it_is_told(folder, steps, first):
    job = steps["ray job submit"]
    assert job["code"] == 0, job["output"]
    assert rows(folder / "job run") == first
    sent = steps["entscale submit to an address"]
    assert sent["code"] == 0, sent["output"]
    assert rows(folder / "sent") == first
    lost = steps["ray job submit of a lost run"]
    assert lost["code"] != 0
    assert "whose working directory is thrown away" in lost["output"]


@pytest.mark.parametrize("way", ["auto", "client"])
def test_a_sweep_from_here_at_an_address(folder, steps, first, way):
    step = steps[f"address {way}"]
    assert step["code"] == 0, step["output"]
    assert rows(folder / way) == first


def test_nothing_listens_beyond_the_loopback(steps):
    assert steps["of this machine"]["code"] == 0, steps["of this machine"]["output"]
    for step in ("listening", "listening of this machine"):
        addresses = steps[step]["addresses"]
        assert len(addresses) > 5
        assert [address for address in addresses if not LOOPBACK.match(address)] == []
    assert not LOOPBACK.match("00000000:1F90")


def test_nothing_answers_without_the_token(steps):
    assert steps["token"]["code"] == 0
    assert steps["without token"]["dashboard"] == 401
    assert steps["status without token"]["code"] != 0
    assert steps["ray job submit without a token"]["code"] != 0
    assert "AuthenticationError" in steps["ray job submit without a token"]["output"]


def test_ray_exports_the_sweeps_metrics(steps):
    found = steps["metrics"]["found"]
    names = {name.split("{")[0] for name in found}
    assert {"ray_entscale_queue_cells", "ray_entscale_queue_chunks", "ray_entscale_chunk_seconds_count"} <= names
    assert any(name.startswith("ray_entscale_cells_done") and 'outcome="drawn"' in name for name in found)


def test_captions_ran_as_no_command(folder):
    assert list(folder.rglob("pwned")) == []


def test_the_cluster_is_gone_with_its_namespace(steps):
    assert steps["down"]["code"] == 0, steps["down"]["output"]
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "ways_in_steps" not in listed
