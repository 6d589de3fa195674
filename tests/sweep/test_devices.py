import pytest

from entscale_jax.errors import UserError
from entscale_jax.sweep.devices import Kind, place_workers

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


def test_what_cannot_be_placed():
    with pytest.raises(UserError, match="workers is 5 and there are 4 TPU chips"):
        place_workers({"TPU": 4.0}, NODES, 5, None)
    with pytest.raises(UserError, match="nothing can draw"):
        place_workers({}, (), "auto", None)
