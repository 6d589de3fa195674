import pytest

from entscale_jax.errors import UserError
from entscale_jax.sweep.cluster.devices import Kind, place_workers
from entscale_jax.sweep.spec import Device

NODES = ("n0", "n1")


@pytest.mark.parametrize(
    ("resources", "kind", "count"),
    [
        ({"CPU": 8.0}, Kind.CPU, 2),
        ({"CPU": 8.0, "GPU": 3.0}, Kind.GPU, 3),
        ({"CPU": 8.0, "GPU": 3.0, "TPU": 4.0}, Kind.TPU, 4),
    ],
)
def test_the_best_device_is_chosen_and_each_gets_a_worker(resources, kind, count):
    placements = place_workers(resources, NODES, "auto", None)
    assert len(placements) == count
    assert {placement.kind for placement in placements} == {kind}
    assert all(placement.options["num_cpus"] == 0 for placement in placements)


def test_a_device_worker_claims_one_and_finds_it_itself():
    (gpu,) = place_workers({"CPU": 8.0, "GPU": 1.0}, NODES, "auto", None)
    assert gpu.options == {"num_cpus": 0, "num_gpus": 1.0}
    assert gpu.env == {"JAX_PLATFORMS": ""}
    (tpu,) = place_workers({"CPU": 8.0, "TPU": 1.0}, NODES, "auto", None)
    assert tpu.options == {"num_cpus": 0, "resources": {"TPU": 1}}


def test_cpu_workers_go_to_the_nodes_in_turn():
    placements = place_workers({"CPU": 8.0}, NODES, 3, None)
    assert [placement.node for placement in placements] == ["n0", "n1", "n0"]
    assert {placement.env["JAX_PLATFORMS"] for placement in placements} == {"cpu"}


def test_the_users_own_choice_of_platform_holds():
    (cpu, _) = place_workers({"CPU": 8.0, "GPU": 1.0}, NODES, "auto", "cpu")
    assert cpu.kind is Kind.CPU
    (gpu,) = place_workers({"CPU": 8.0, "GPU": 1.0}, NODES, "auto", "cuda,cpu")
    assert (gpu.kind, gpu.env["JAX_PLATFORMS"]) == (Kind.GPU, "cuda,cpu")


def test_workers_that_share_a_gpu_share_its_memory():
    placements = place_workers({"GPU": 1.0}, (), 3, None)
    assert {placement.options["num_gpus"] for placement in placements} == {1 / 3}
    assert {placement.env["XLA_PYTHON_CLIENT_MEM_FRACTION"] for placement in placements} == {"0.300"}
    alone = place_workers({"GPU": 4.0}, (), 2, None)
    assert [dict(placement.options) for placement in alone] == [{"num_cpus": 0, "num_gpus": 1.0}] * 2
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in alone[0].env


@pytest.mark.parametrize("nodes", [[1], [2], [3], [4], [2, 1], [1, 1, 3], [8, 0]])
@pytest.mark.parametrize("workers", range(1, 14))
def test_as_many_workers_as_were_asked_for_have_room_on_the_gpus(nodes, workers):
    """Ray's rule: a share is of one GPU and counts in ten-thousandths; whole GPUs are free where nobody shares them."""
    placements = place_workers({"GPU": sum(nodes)}, (), workers, None, by_node=[{"GPU": count} for count in nodes])
    free = [10_000] * sum(nodes)
    for placement in placements:
        need = int(placement.options["num_gpus"] * 10_000)
        place = next((gpu for gpu, left in enumerate(free) if left >= need), None)
        assert place is not None, f"no room for a worker of {need}: {free} is left"
        free[place] -= need
    assert len(placements) == workers
    # No smaller than they must be.
    shared = [10_000 - left for left in free if left < 10_000]
    assert workers > sum(nodes) or shared == [10_000] * workers


@pytest.mark.parametrize(("gpus", "workers", "share"), [(2, 3, 1 / 2), (2, 5, 1 / 3), (3, 4, 1 / 2), (2, 4, 1 / 2)])
def test_shares_of_several_gpus(gpus, workers, share):
    placements = place_workers({"GPU": gpus}, (), workers, None)
    assert {placement.options["num_gpus"] for placement in placements} == {share}
    assert {placement.env["XLA_PYTHON_CLIENT_MEM_FRACTION"] for placement in placements} == {f"{0.9 * share:.3f}"}


ALL = {"CPU": 8.0, "GPU": 2.0, "TPU": 8.0}


@pytest.mark.parametrize(("kind", "count"), [("auto", 8), ("tpu", 8), ("gpu", 2), ("cpu", 2)])
def test_the_spec_names_the_kind(kind, count):
    placements = place_workers(ALL, NODES, "auto", None, Device(kind=kind))
    assert len(placements) == count
    assert {placement.kind.value for placement in placements} == {"tpu" if kind == "auto" else kind}
    assert {placement.options["num_cpus"] for placement in placements} == {0}


def test_a_named_kind_is_stronger_than_the_users_platform():
    (gpu, _) = place_workers(ALL, NODES, "auto", "cpu", Device(kind="gpu"))
    assert (gpu.kind, gpu.env["JAX_PLATFORMS"]) == (Kind.GPU, "")
    (cpu, _) = place_workers(ALL, NODES, "auto", "cuda,cpu", Device(kind="cpu"))
    assert (cpu.kind, cpu.env["JAX_PLATFORMS"]) == (Kind.CPU, "cpu")


def test_several_chips_for_one_worker():
    hosts = [{"TPU": 4.0}, {"TPU": 4.0}]
    placements = place_workers(ALL, NODES, "auto", None, Device(kind="tpu", per_worker=4), hosts)
    assert [dict(placement.options) for placement in placements] == [{"num_cpus": 0, "resources": {"TPU": 4}}] * 2
    assert {placement.devices for placement in placements} == {4}
    with pytest.raises(UserError, match=r"no node has 8 TPU chips for a worker \(the cluster has 8\)"):
        place_workers(ALL, NODES, "auto", None, Device(kind="tpu", per_worker=8), hosts)
    with pytest.raises(UserError, match="per_worker is 3: a worker can have 1, 2, 4, 8 TPU chips"):
        place_workers(ALL, NODES, "auto", None, Device(per_worker=3), hosts)


@pytest.mark.parametrize(
    ("device", "count", "share", "fraction"),
    [
        ({}, 4, 1.0, None),
        ({"per_worker": 2}, 2, 2.0, None),
        ({"per_worker": 0.5}, 8, 0.5, "0.450"),
        ({"per_worker": 0.5, "memory_fraction": 0.4}, 8, 0.5, "0.400"),
        ({"memory_fraction": 0.95}, 4, 1.0, "0.950"),
        ({"per_worker": 1 / 3}, 12, 1 / 3, "0.300"),
    ],
)
def test_shares_and_memory_of_gpus(device, count, share, fraction):
    nodes = [{"GPU": 3.0}, {"GPU": 1.0}] if share <= 1 else [{"GPU": 3.0}, {"GPU": 2.0}]
    total = {"GPU": sum(node["GPU"] for node in nodes)}
    placements = place_workers(total, NODES, "auto", None, Device(kind="gpu", **device), nodes)
    assert len(placements) == count
    assert {placement.options["num_gpus"] for placement in placements} == {share}
    assert {placement.env.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for placement in placements} == {fraction}


def test_a_host_of_several_cpu_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    placements = place_workers({"CPU": 8.0}, NODES, "auto", None, Device(kind="cpu", per_worker=4))
    assert {placement.devices for placement in placements} == {4}
    assert {placement.env["XLA_FLAGS"] for placement in placements} == {
        "--xla_dump_to=/nowhere --xla_force_host_platform_device_count=4"
    }
    assert "XLA_FLAGS" not in place_workers({"CPU": 8.0}, NODES, "auto", None)[0].env


def test_nodes_that_an_autoscaler_will_bring():
    placements = place_workers({"CPU": 2.0}, NODES[:1], 3, None, Device(kind="gpu"))
    assert [dict(placement.options) for placement in placements] == [{"num_cpus": 0, "num_gpus": 1.0}] * 3
    with pytest.raises(UserError, match="no node has 1 GPUs for a worker"):
        place_workers({"CPU": 2.0}, NODES[:1], "auto", None, Device(kind="gpu"))


def test_what_cannot_be_placed():
    with pytest.raises(UserError, match="workers is 5 and there are 4 TPU chips"):
        place_workers({"TPU": 4.0}, NODES, 5, None)
    with pytest.raises(UserError, match="nothing can draw"):
        place_workers({}, (), "auto", None)
