"""`entscale submit`: the way that a YAML means, the commands of each, and that nothing of a spec is one of them."""

import http.server
import io
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sweep_fakes as fakes
import yaml
from rich.console import Console
from sweep_fakes import SPEC

from entscale_jax.errors import UserError
from entscale_jax.sweep import script
from entscale_jax.sweep import submit as submit_module
from entscale_jax.sweep.api import run_sweep
from entscale_jax.sweep.cluster import job_code
from entscale_jax.sweep.cluster.nodes import promised_nodes
from entscale_jax.sweep.cluster.ray_environment import prepare_token
from entscale_jax.sweep.events import NAME, EventLog, make_event
from entscale_jax.sweep.script import run_folder
from entscale_jax.sweep.submit import Submission, Way, choose_way, portable_spec, submit
from entscale_jax.sweep.sweep_file import read_sweep

LOCAL = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}


@pytest.mark.parametrize(
    ("document", "way"),
    [
        ({"sweep": {}}, Way.HERE),
        ({"provider": LOCAL, "auth": {}}, Way.HERE),
        ({"provider": {**LOCAL, "head_ip": "localhost"}}, Way.HERE),
        ({"provider": LOCAL, "auth": {"ssh_user": "me"}}, Way.CLUSTER),
        ({"provider": {**LOCAL, "head_ip": "192.0.2.1"}, "auth": {}}, Way.CLUSTER),
        ({"provider": {"type": "aws"}}, Way.CLUSTER),
    ],
)
def test_the_way_follows_from_the_yaml(document, way):
    assert choose_way(document, None) is way
    assert choose_way(document, "http://head:8265") is Way.JOB


def test_ways_that_are_refused():
    manifest = Path(__file__).parents[2] / "sweeps" / "clusters" / "kuberay.yaml"
    with pytest.raises(UserError, match="kubectl apply"):
        submit(Submission(manifest), Console(file=io.StringIO()))
    with pytest.raises(UserError, match="takes no jobs"):
        choose_way({"sweep": {}}, "ray://head:10001")


@pytest.mark.parametrize(
    ("config", "nodes"),
    [
        ({"sweep": {}}, 1),
        ({"provider": LOCAL}, 1),
        ({"provider": {**LOCAL, "worker_ips": ["a", "b"]}}, 3),
        ({"provider": {**LOCAL, "worker_ips": ["a", "b"]}, "min_workers": 1}, 2),
        ({"provider": LOCAL, "available_node_types": {"x": {"min_workers": 2}, "y": {}}}, 3),
    ],
)
def test_nodes_that_a_file_promises(config, nodes):
    assert promised_nodes(config) == nodes


class Cluster:
    """Plays Ray's launcher: keeps the commands, and a head node's home folder that files go to and come from.

    `code` is the exit code of a job's driver, None where its head tells none.
    """

    def __init__(self, folder, code=0, fail=()):
        self.folder, self.code, self.fail = folder, code, fail
        self.commands = []
        folder.mkdir()

    def __call__(self, command):
        assert command[:3] == [sys.executable, "-m", "ray.scripts.scripts"]
        assert all(isinstance(word, str) for word in command)
        verb, *rest = command[3:]
        self.commands.append((verb, *rest))
        if verb in self.fail:
            return 1
        if verb == "rsync-up":
            self._path(rest[2]).write_bytes(Path(rest[1]).read_bytes())
        elif verb == "exec" and "job_code" in rest[1]:
            return self._tell_code(rest[1])
        elif verb == "exec":
            return self._run(shlex.split(rest[1]))
        elif verb == "rsync-down":
            source, target = self._path(rest[1]), rest[2]
            if not source.exists():
                return 1
            subprocess.run(["cp", "-r", f"{source}/." if source.is_dir() else str(source), target], check=True)
        return 0

    def _path(self, name):
        assert name.startswith("~/")
        return self.folder / name[2:].rstrip("/")

    def _run(self, words):
        out = words[words.index("--out") + 1]
        if not out.startswith("s3://"):
            self._path(out).mkdir(parents=True, exist_ok=True)
            (self._path(out) / "spec.yaml").write_text("sweep: {name: small}\n")
            # What a run of days before left: it is not this job's.
            EventLog(self._path(out) / NAME)(make_event("end", outcome="interrupted", finished=1, failed=2))
        return int(self.code != 0)  # all that `ray exec` hands on

    def _tell_code(self, line):
        """The head's shell, with a Python that only asks for the job of the line before."""
        if self.code is None:
            return 1
        started = shlex.split(self.commands[-2][2])
        job = started[started.index("--submission-id") + 1]
        asked = f"-m entscale_jax.sweep.cluster.job_code http://127.0.0.1:8265 {job}"
        bins = self.folder / "bin"
        bins.mkdir()
        (bins / "python").write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] && exit {self.code}\nexit 99\n')
        (bins / "python").chmod(0o755)
        environment = {"HOME": str(self.folder), "PATH": f"{bins}:{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", line], env=environment, check=False).returncode


@pytest.fixture
def cluster_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"cluster_name": "c", "provider": {**LOCAL, "worker_ips": ["192.0.2.2"]}, "auth": {"ssh_user": "me"}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**config, "metadata": yaml.safe_load(SPEC)}))
    return path


def test_a_cluster_is_started_or_refreshed_and_the_run_comes_home(cluster_file, tmp_path):
    cluster = Cluster(tmp_path / "head")
    console = Console(file=io.StringIO(), width=300)
    assert submit(Submission(cluster_file), console, cluster) == 0
    verbs = [command[0] for command in cluster.commands]
    assert verbs == ["up", "rsync-up", "exec", "rsync-down", "rsync-down"]
    # --no-restart: the head's metadata is renewed and a sweep that runs there goes on.
    assert cluster.commands[0] == ("up", "-y", "--no-restart", str(cluster_file))
    words = shlex.split(cluster.commands[2][2])
    assert words[:3] == ["ray", "job", "submit"]
    assert words[words.index("--") + 1 :] == [
        *("python", "-m", "entscale_jax.sweep", "~/entscale-small.yaml", "--out", "~/runs/small", "--nodes", "2")
    ]
    assert (tmp_path / "runs" / "small" / NAME).is_file()
    assert "entscale report runs/small" in console.file.getvalue()
    sent = read_sweep(tmp_path / "head" / "entscale-small.yaml").spec
    assert sent == read_sweep(cluster_file).spec


@pytest.mark.parametrize("out", [None, "s3://bucket/run"])
@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (130, 130), (None, 1)])
def test_the_exit_code_is_the_sweeps_own_and_not_of_a_run_before(cluster_file, tmp_path, code, expected, out):
    cluster, console = Cluster(tmp_path / "head", code), Console(file=io.StringIO(), width=300)
    assert submit(Submission(cluster_file, out=out), console, cluster) == expected
    told = "entscale fetch s3://bucket/run brings it home" if out else "the run is in runs/small"
    assert told in console.file.getvalue()


@pytest.mark.parametrize("out", ["/data/run", "s3://bucket/run"])
def test_the_exit_code_of_a_job_is_asked_for_by_its_id(spec_file, out):
    commands = []

    def call(command):
        commands.append(command)
        return 1 if "submit" in command else 130

    job = Submission(spec_file, out=out, address="http://head:8265")
    assert submit(job, Console(file=io.StringIO()), call) == 130
    started, asked = commands
    name = started[started.index("--submission-id") + 1]
    assert name.startswith("entscale-small-")
    assert asked == [sys.executable, "-m", "entscale_jax.sweep.cluster.job_code", "http://head:8265", name]


@pytest.fixture
def jobs():
    """A head node's address for jobs, as Ray's client asks there; `jobs.code` is of the driver of job `known`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            details = {"type": "SUBMISSION", "status": "FAILED", "entrypoint": "x", "driver_exit_code": server.code}
            answers = {"/api/version": VERSION, "/api/jobs/known": {**details, "submission_id": "known"}}
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path)).encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


VERSION = {"version": "4", "ray_version": "2", "ray_commit": "", "session_name": ""}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("told", "code"), [("2\n", 2), ("", 1), ("a full disk", 1)])
def test_a_head_whose_file_tells_no_code(tmp_path, told, code):
    def call(command):
        if "rsync-down" in command:
            Path(command[-1]).write_text(told)
        return 0

    assert submit_module._code_on_head("cluster.yaml", "aspect", "job", tmp_path, call) == code


@pytest.mark.parametrize(("driver", "code"), [(0, 0), (1, 1), (2, 2), (130, 130), (-9, 137), (None, 1)])
def test_a_jobs_code_is_that_of_its_driver(jobs, driver, code):
    jobs.code = driver
    assert job_code.main([jobs.address, "known"]) == code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_job_that_is_not_known_has_failed(jobs, capsys):
    jobs.code = 2
    assert job_code.main([jobs.address, "other"]) == 1
    assert capsys.readouterr().err.startswith("the exit code of other is not known: ")


@pytest.mark.parametrize("verb", ["up", "rsync-up", "rsync-down"])
def test_a_step_that_fails_is_said(cluster_file, tmp_path, verb):
    with pytest.raises(UserError, match=r"failed \(exit code 1\)|began no run"):
        submit(Submission(cluster_file), Console(file=io.StringIO()), Cluster(tmp_path / "head", fail=(verb,)))


def test_a_folder_of_other_things_is_seen_before_the_cluster_is(cluster_file, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "thesis.tex").write_text("")
    cluster = Cluster(tmp_path / "head")
    with pytest.raises(UserError, match="holds other things and no run"):
        submit(Submission(cluster_file), Console(file=io.StringIO()), cluster)
    assert cluster.commands == []


def test_a_run_of_another_sweep_is_not_written_over(cluster_file, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "spec.yaml").write_text("sweep: {name: other}\n")
    with pytest.raises(UserError, match="holds another sweep: name is other there and small here"):
        submit(Submission(cluster_file), Console(file=io.StringIO()), Cluster(tmp_path / "head"))
    assert not (tmp_path / "runs" / "small" / NAME).exists()


def test_a_job_takes_the_sweep_alone(spec_file):
    seen = []

    def call(command):
        folder = command[command.index("--working-dir") + 1]
        seen.append((command[3:], os.listdir(folder), read_sweep(f"{folder}/sweep.yaml").spec))
        return 0

    sent = Submission(spec_file, out="s3://bucket/a b", address="http://head:8265", retry_failed=True, max_failures=3)
    assert submit(sent, Console(file=io.StringIO()), call) == 0
    ((command, files, spec),) = seen
    assert command[:4] == ["job", "submit", "--address", "http://head:8265"]
    assert command[command.index("--") + 1 :] == [
        *("python", "-m", "entscale_jax.sweep", "sweep.yaml", "--out", "s3://bucket/a b", "--retry-failed"),
        *("--max-failures", "3"),
    ]
    assert (files, spec) == (["sweep.yaml"], read_sweep(spec_file).spec)
    for out in (None, "runs/a"):
        with pytest.raises(UserError, match="working directory is thrown away"):
            submit(Submission(spec_file, out=out, address="http://head:8265"), Console(file=io.StringIO()), call)
    assert len(seen) == 1


def test_a_job_waits_for_the_nodes_of_its_yaml(cluster_file):
    commands = []
    job = Submission(cluster_file, out="/data/run", address="http://head:8265")
    assert submit(job, Console(file=io.StringIO()), lambda command: commands.append(command) or 0) == 0
    ((*_, flag, nodes),) = commands
    assert (flag, nodes) == ("--nodes", "2")


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ({"out": "s3://bucket/run"}, r"--home h: .* entscale fetch s3://bucket/run --to h$"),
        ({"out": "s3://bucket/run", "address": "http://head:8265"}, "entscale fetch s3://bucket/run --to h$"),
        ({"out": "/data/run", "address": "http://head:8265"}, "--home h: with --address a run stays on the head node"),
    ],
)
def test_a_home_that_no_run_comes_to_is_refused_before_anything_runs(cluster_file, way, told):
    commands = []
    with pytest.raises(UserError, match=told):
        submit(Submission(cluster_file, home=Path("h"), **way), Console(file=io.StringIO()), commands.append)
    assert commands == []


def test_what_travels_names_no_file(tmp_path):
    (tmp_path / "captions.txt").write_text("no\n1:30\n$(touch pwned)\n")
    prompts = SPEC[SPEC.index("[a red") : SPEC.index("]", SPEC.index("[a red")) + 1]
    text = SPEC.replace(prompts, "captions.txt").replace("[entropy, objects]", "[]").replace("batch: 4", "workers: 3")
    (tmp_path / "s.yaml").write_text(text)
    (tmp_path / "there.yaml").write_text(portable_spec(read_sweep(tmp_path / "s.yaml")))
    sent = read_sweep(tmp_path / "there.yaml").spec
    assert sent.prompts == ("no", "1:30", "$(touch pwned)")
    assert sent.workers == 3


@pytest.mark.parametrize("out", ["~/runs/$(touch pwned)", "runs/a", "~/a b", "~/a;b", "~/a\nb", "~x/../a`b`"])
def test_a_path_on_the_head_is_plain(cluster_file, tmp_path, out):
    cluster = Cluster(tmp_path / "head")
    with pytest.raises(UserError, match="no plain path on the head node"):
        submit(Submission(cluster_file, out=out), Console(file=io.StringIO()), cluster)
    assert cluster.commands == []


HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "| touch pwned",
    "{0.__class__.__mro__}",
    "{cell!r} %s %(name)s {{7*7}} ${HOME}",
    "[bold]a[/bold] [link=file:///etc/passwd]b[/link]",
    "<script>alert(1)</script>",
    "../../pwned",
    "a\\0b\\nc",
    "!!python/object/apply:os.system ['touch pwned']",
    "__import__('os').system('touch pwned')",
]


def test_captions_are_captions_and_nothing_else(fake_models, tmp_path, monkeypatch, console):
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    sweep = {**yaml.safe_load(SPEC)["sweep"], "prompts": HOSTILE, "sizes": ["64x64"], "seeds": [0], "metrics": []}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"sweep": sweep}))
    executor = fakes.FakeExecutor(fault=lambda worker, task: "no" if task.chunk.index == 0 else None)
    before = set(os.listdir(tmp_path))
    code = run_sweep(tmp_path / "s.yaml", out="run", console=console, open_executor=fakes.opening(executor))
    assert code == 1
    rows = pq.read_table(tmp_path / "run" / "samples.parquet").to_pylist()
    assert {row["prompt"] for row in rows} == set(HOSTILE)
    assert set(os.listdir(tmp_path)) == before | {"run"}
    # Every file of the run is named by a hash or by us.
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name[0] != "."}
    cells = {row["cell"] for row in rows}
    assert {name for name in names if name.split(".")[0] not in cells} == {
        *("spec.yaml", "environment.json", "events.jsonl", "programs.json", "samples.parquet")
    }
    assert "7*7" in console.file.getvalue() or "{0.__class__" in (tmp_path / "run" / "spec.yaml").read_text()


def test_the_line_for_the_head_is_quoted_as_a_shell_reads_it(cluster_file, tmp_path):
    """What `ray exec` hands to the head's shell is run by one here, with a command that only tells its arguments."""
    cluster = Cluster(tmp_path / "head")
    submit(Submission(cluster_file, out="~/runs/small"), Console(file=io.StringIO()), cluster)
    tell = tmp_path / "bin" / "ray"
    tell.parent.mkdir()
    tell.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    tell.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tell.parent}:{os.environ['PATH']}"}
    line = cluster.commands[2][2]
    told = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == shlex.split(line)[1:]
    assert "~/runs/small" in json.loads(told)  # and not some home folder of here


@pytest.mark.parametrize("out", [None, "runs/a", "."])
def test_a_job_writes_nothing_that_is_thrown_away(out):
    with pytest.raises(UserError, match="working directory is thrown away"):
        run_folder(out, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    assert run_folder(out, {}) == out


@pytest.mark.parametrize("out", ["s3://b/run", "/data/run", "~/run"])
def test_a_job_writes_to_places_that_stay(out):
    kept = run_folder(out, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    assert kept == os.path.expanduser(out)


def test_the_script_says_in_one_line_what_is_wrong(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("sweep: {name: a}\n")
    assert script.main([str(tmp_path / "s.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path / 's.yaml'}:1: key 'model' is missing")


def test_ctrl_c_while_the_script_plans_is_one_line(monkeypatch, capsys):
    def planning(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run_sweep", planning)
    assert script.main(["s.yaml"]) == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


@pytest.mark.parametrize(
    ("options", "resume"), [([], True), (["--resume"], True), (["--no-resume"], False)], ids=["", "resume", "no-resume"]
)
def test_the_script_takes_both_forms_of_resume(monkeypatch, options, resume):
    asked = []
    monkeypatch.setattr(script, "run_sweep", lambda path, **rest: asked.append(rest["resume"]) or 0)
    assert script.main(["s.yaml", *options]) == 0
    assert asked == [resume]


def test_a_yaml_of_this_machine_is_drawn_here(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("entscale_jax.sweep.submit.run_sweep", lambda path, **rest: asked.append((path, rest)) or 7)
    (tmp_path / "s.yaml").write_text(SPEC)
    assert submit(Submission(tmp_path / "s.yaml", out="x"), Console(file=io.StringIO())) == 7
    assert asked[0][0] == tmp_path / "s.yaml"
    assert asked[0][1]["out"] == "x"
    assert submit(Submission(tmp_path / "s.yaml", home=tmp_path / "h"), Console(file=io.StringIO())) == 7
    assert asked[1][1]["out"] == tmp_path / "h"
    with pytest.raises(UserError, match="--out x and --home h: the sweep is drawn here, in one folder"):
        submit(Submission(tmp_path / "s.yaml", out="x", home=Path("h")), Console(file=io.StringIO()))
    assert len(asked) == 2


def test_the_token_of_the_home_folder_is_shown_to_clusters(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    empty: dict[str, str] = {}
    prepare_token(empty)
    assert empty == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 32)
    prepare_token(empty)
    assert empty == {"RAY_AUTH_MODE": "token"}
    own = {"RAY_AUTH_MODE": "disabled"}
    prepare_token(own)
    assert own == {"RAY_AUTH_MODE": "disabled"}
