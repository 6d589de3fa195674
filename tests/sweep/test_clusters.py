"""The cluster headers in `sweeps/clusters/`: what Ray and its providers make of them, without an account."""

import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from entscale_jax.sweep.cluster.nodes import promised_nodes
from entscale_jax.sweep.submit import Way, choose_way
from entscale_jax.sweep.sweep_file import read_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"
CLUSTERS = SWEEPS / "clusters"
HEADERS = ("local", "ssh", "gcp-gpu", "gcp-tpu", "aws-gpu")
NODES = {"local": 1, "ssh": 3, "gcp-gpu": 5, "gcp-tpu": 2, "aws-gpu": 5}
LOOPBACK = ("127.0.0.1", "localhost")


def header(name):
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


@pytest.fixture
def quiet(monkeypatch):
    """Ray's launcher with its folders in a test's own and nothing said."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.mark.parametrize("name", HEADERS)
def test_ray_validates_it(name, quiet):
    """The same calls, in the same order, as `ray up` makes before it reaches for a provider."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = header(name)
    prepared = prepare_config({**config, "metadata": yaml.safe_load((SWEEPS / "aspect.yaml").read_text())["metadata"]})
    validate_config(prepared)
    assert prepared["metadata"]["sweep"]["name"] == "aspect"
    assert promised_nodes(prepared) == promised_nodes(config) == NODES[name]
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        validate_config({**prepared, "sweep": {}})
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "max_workers": "many"})


@pytest.mark.parametrize("name", HEADERS)
def test_copied_above_a_sweep_it_is_one_file(name, tmp_path):
    sweep = (SWEEPS / "aspect.yaml").read_text()
    path = tmp_path / "both.yaml"
    path.write_text((CLUSTERS / f"{name}.yaml").read_text() + sweep[sweep.index("metadata:") :])
    file = read_sweep(path)
    assert (file.spec.name, file.nodes) == ("aspect", NODES[name])
    assert choose_way(yaml.safe_load(path.read_text()), None) is Way.CLUSTER


@pytest.mark.parametrize("name", HEADERS)
def test_nothing_listens_further_than_it_must(name):
    config = header(name)
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    # Of Ray's own defaults for a cloud, this is what puts the dashboard, which runs jobs, on every interface.
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (CLUSTERS / f"{name}.yaml").read_text()
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    assert "~/.ray/auth_token" in config["file_mounts"]
    alone = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in start and "--node-ip-address=127.0.0.1" in start
    assert alone == (name == "local")


def test_this_machine_is_not_swept_clean():
    """`ray stop` ends every Ray of a machine, and `ray up` runs it by default."""
    assert not any("ray stop" in line for line in header("local")["head_start_ray_commands"])
    assert any("ray stop" in line for line in header("ssh")["head_start_ray_commands"])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of the test's own, in which providers make keys."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def aws(home, monkeypatch):
    """Amazon's interfaces, played by moto in this process, empty but for what every account has."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_amazon_bootstraps_it(aws, quiet, home, monkeypatch):
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    # It waits for a role to reach every region.
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda seconds: None)
    config = prepare_config(header("aws-gpu"))
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    validate_config(config)
    kinds = config["available_node_types"]
    assert (kinds["gpu"]["resources"]["GPU"], kinds["head"]["resources"].get("GPU", 0)) == (1, 0)
    ready = bootstrap_aws(config)
    for kind in ready["available_node_types"].values():
        assert kind["node_config"]["SubnetIds"]
        assert kind["node_config"]["SecurityGroupIds"]
    assert Path(ready["auth"]["ssh_private_key"]).is_relative_to(home)
    assert "ray-autoscaler" in ready["head_node"]["IamInstanceProfile"]["Arn"]
    assert ready["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    _check_group_is_closed(ready["available_node_types"]["head"]["node_config"]["SecurityGroupIds"])


def _check_group_is_closed(groups):
    import boto3

    (group,) = boto3.resource("ec2", region_name="us-west-2").security_groups.filter(GroupIds=groups)
    open_ports = {
        rule.get("FromPort") for rule in group.ip_permissions for given in rule["IpRanges"] if given["CidrIp"]
    }
    assert open_ports == {22}


class Google:
    """The few calls that Ray's launcher makes of Google: a project with a subnet, without a service account."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        def call(**arguments):
            self.asked.append((name, arguments))
            return self

        return call

    def execute(self):
        name, arguments = self.asked[-1]
        project = {
            "name": "my-project",
            "projectId": "my-project",
            "lifecycleState": "ACTIVE",
            "commonInstanceMetadata": {},
        }
        answers = {
            "get": project,
            "create": {"projectId": "my-project", "email": "ray@my-project"},
            "getIamPolicy": {"bindings": []},
            "list": {"items": [{"selfLink": "subnet"}]},
            "setCommonInstanceMetadata": {"name": "operation", "status": "DONE"},
        }
        if "serviceAccounts" in str(arguments.get("name", "")):
            answers["get"] = {"projectId": "my-project", "email": "ray@my-project"}
        if "operation" in arguments:
            answers["get"] = {"status": "DONE"}
        return answers.get(name, {})


@pytest.mark.parametrize(("name", "has_tpu"), [("gcp-gpu", None), ("gcp-tpu", True)])
def test_google_bootstraps_it(name, has_tpu, quiet, home, monkeypatch):
    pytest.importorskip("googleapiclient")
    from ray.autoscaler._private.gcp import config as gcp
    from ray.autoscaler._private.gcp.node import GCPNodeType
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    google = Google()
    monkeypatch.setattr(gcp, "construct_clients_from_provider_config", lambda provider: (google,) * 4)
    config = GCPNodeProvider.fillout_available_node_types_resources(prepare_config(header(name)))
    validate_config(config)
    ready = gcp.bootstrap_gcp(config)
    assert ready["provider"].get(gcp.HAS_TPU_PROVIDER_FIELD) is has_tpu
    kinds = {kind: gcp.get_node_type(node["node_config"]) for kind, node in ready["available_node_types"].items()}
    workers = GCPNodeType.TPU if has_tpu else GCPNodeType.COMPUTE
    assert kinds == {"head": GCPNodeType.COMPUTE, "tpu" if has_tpu else "gpu": workers}
    assert Path(ready["auth"]["ssh_private_key"]).is_relative_to(home)
    assert oct(os.stat(ready["auth"]["ssh_private_key"]).st_mode)[-3:] == "600"
    assert ready["head_node"]["serviceAccounts"][0]["email"] == "ray@my-project"


def test_the_tpu_slice_is_one_host_with_the_chips_that_it_promises(quiet):
    pytest.importorskip("googleapiclient")
    from ray.autoscaler._private.gcp.config import _get_num_tpu_chips, _is_single_host_tpu

    kind = header("gcp-tpu")["available_node_types"]["tpu"]
    assert _get_num_tpu_chips(kind["node_config"]) == kind["resources"]["TPU"] == 8
    assert _is_single_host_tpu(kind["node_config"])
    assert not _is_single_host_tpu({**kind["node_config"], "acceleratorType": "v5litepod-16"})


def manifests():
    return list(yaml.safe_load_all((CLUSTERS / "kuberay.yaml").read_text()))


def test_the_manifest_holds_a_sweep_that_its_job_reads(tmp_path):
    config, job = manifests()
    (tmp_path / "sweep.yaml").write_text(config["data"]["sweep.yaml"])
    assert read_sweep(tmp_path / "sweep.yaml").spec.name == "aspect"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"] == [{"name": "sweep", "configMap": {"name": config["metadata"]["name"]}}]
    (mount,) = head["containers"][0]["volumeMounts"]
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "entscale_jax.sweep"]
    assert words[3] == f"{mount['mountPath']}/sweep.yaml"
    workers = sum(group["replicas"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    assert words[words.index("--nodes") + 1] == str(1 + workers)
    assert "://" in words[words.index("--out") + 1]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_the_scripts_flags_are_those_of_the_manifest(capsys):
    from entscale_jax.sweep.script import main

    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(flag in told for flag in ("--out", "--nodes", "--retry-failed", "--no-resume", "--max-failures"))


@pytest.mark.skipif("RAYJOB_CRD" not in os.environ, reason="RAYJOB_CRD names no ray.io_rayjobs.yaml of KubeRay")
def test_kuberays_own_schema_takes_the_manifest():
    """The schema is 1.4 MB and not ours; docs/clusters.md says of which version this was last run."""
    crd = yaml.safe_load(Path(os.environ["RAYJOB_CRD"]).read_text())
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in crd["spec"]["versions"] if version["name"] == "v1"]
    strict = _closed(schema)
    job = manifests()[1]
    jsonschema.validate(job, strict)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(job, strict)


def _closed(schema):
    """The schema with unknown keys refused, which Kubernetes' own form drops in silence."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        closed.pop("anyOf", None)
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        named = schema["properties"]
        # Of an embedded object Kubernetes itself knows these.
        if (
            not {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & schema.keys()
            and "metadata" not in named
        ):
            closed["additionalProperties"] = False
    return closed
