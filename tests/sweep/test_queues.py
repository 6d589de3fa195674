import pytest
from sweep_fakes import small_plan

from entscale_jax.sweep.executor import Compile, Result
from entscale_jax.sweep.queues import Queues
from entscale_jax.sweep.timings import Timings


def _queues(**changes):
    plan = small_plan(**changes)
    return plan, Queues(plan.tasks({cell.id for cell in plan.cells}))


def _measured(task, compile_seconds, draw_seconds):
    """Timings after one result, of a task that made one program ready."""
    timings = Timings()
    compiles = [Compile("denoise_latents", False, compile_seconds), Compile("encode_text", False, 0.0)]
    timings.add(task, Result((), compiles, compile_seconds, draw_seconds))
    return timings


def _bucket(task):
    return str(task.chunk.program.key.bucket)


def test_a_worker_stays_on_its_bucket_and_takes_the_one_with_most_work_first():
    _, queues = _queues()
    order = [_bucket(queues.take("a")) for _ in range(len(queues))]
    assert order == ["96x64"] * 6 + ["64x64"] * 6 + ["32x32"] * 6
    assert queues.take("a") is None
    assert queues.bucket_of("a") is None


def test_chunks_of_a_program_follow_each_other():
    _, queues = _queues()
    methods = [queues.take("a").chunk.program.method.label for _ in range(6)]
    assert methods == ["original"] * 3 + ["entropy"] * 3


def test_workers_spread_over_buckets_before_they_share_one():
    _, queues = _queues()
    assert [_bucket(queues.take(worker)) for worker in "abcd"] == ["96x64", "64x64", "32x32", "96x64"]


def test_a_worker_that_is_done_moves_to_the_most_work_left():
    _, queues = _queues(sizes=["64x64", "96x64"])
    for _ in range(3):
        queues.take("large")
        queues.take("small")
    assert _bucket(queues.take("small")) == "64x64"
    while _bucket(task := queues.take("small")) == "64x64":
        pass
    assert _bucket(task) == "96x64"


def test_a_chunk_put_back_comes_last_in_its_bucket():
    _, queues = _queues(sizes=["64x64"])
    first = queues.take("a")
    queues.put_back(first)
    assert [queues.take("a") for _ in range(6)][-1] is first
    assert len(queues) == 0


@pytest.mark.parametrize(
    ("compile_seconds", "takes"),
    # Eleven chunks of a second wait for the one worker there, and for three of them a third of that.
    [(0.0, [True, True, True]), (4.0, [True, True, False]), (6.0, [True, False, False]), (12.0, [False] * 3)],
)
def test_an_idle_worker_takes_over_where_that_pays(compile_seconds, takes):
    plan = small_plan(sizes=["64x64"], prompts=[f"prompt {i}" for i in range(12)])
    tasks = plan.tasks({cell.id for cell in plan.cells})
    told = []
    timings = _measured(tasks[0], compile_seconds, 1.0)
    queues = Queues(tasks, timings, lambda worker, takeover: told.append((worker, takeover)))
    assert queues.take("first") is tasks[0]
    taken = [queues.take(worker) is not None for worker in ("second", "third", "fourth")]
    assert taken == takes
    assert [worker for worker, _ in told] == ["second", "third", "fourth"][: sum(takes)]
    if told:
        assert told[0][1].compile_seconds == compile_seconds
        assert told[0][1].left_seconds == pytest.approx(11.0)
        assert [takeover.others for _, takeover in told] == [1, 2, 3][: len(told)]


def test_a_worker_that_has_the_program_ready_takes_over_at_no_cost():
    plan = small_plan(sizes=["64x64"], methods=["original"], prompts=[f"prompt {i}" for i in range(12)])
    tasks = plan.tasks({cell.id for cell in plan.cells})
    queues = Queues(tasks, _measured(tasks[0], 1000.0, 1.0))
    while queues.take("first"):
        pass
    assert queues.take("first") is None  # not on the bucket any more
    for task in tasks[:2]:
        queues.put_back(task)
    assert queues.take("second") is tasks[0]
    assert queues.take("third") is None
    assert queues.take("first") is tasks[1]


def test_before_anything_is_measured_every_worker_has_work():
    plan, queues = _queues(sizes=["64x64"])
    assert all(queues.take(worker) for worker in "abcdef")
    assert len(plan.chunks) == 6


def test_of_several_buckets_the_one_that_gains_most_is_taken_over():
    plan = small_plan(sizes=["64x64", "96x64"], methods=["original"])
    tasks = plan.tasks({cell.id for cell in plan.cells})
    timings = _measured(tasks[0], 2.5, 1.0)
    queues = Queues(tasks, timings)
    assert [_bucket(queues.take(worker)) for worker in "ab"] == ["96x64", "64x64"]
    # Two chunks of 1.5 s and two of 1 s wait; the larger bucket alone is worth a compile of 2.5 s.
    assert _bucket(queues.take("c")) == "96x64"
    assert queues.take("d") is None


def test_workers_of_one_bucket_share_its_programs_out():
    _, queues = _queues(sizes=["64x64"])
    first, second = queues.take("a"), queues.take("b")
    assert {task.program.method.label for task in (first, second)} == {"original", "entropy"}
    rest = {worker: [queues.take(worker).program for _ in range(2)] for worker in "ab"}
    assert rest == {"a": [first.program] * 2, "b": [second.program] * 2}


def test_suspects_come_last_and_those_of_fewest_cells_first():
    plan, queues = _queues(sizes=["64x64", "96x64"])
    suspect = queues.take("a")
    half, _ = suspect.halves()
    queues.put_back(suspect, suspect=True)
    queues.put_back(half, suspect=True)
    order = [queues.take("a") for _ in range(len(queues))]
    assert order[-2:] == [half, suspect]
    assert len(order) == len(plan.chunks) + 1


def test_a_bucket_of_a_worker_that_is_gone_is_free_again():
    _, queues = _queues(sizes=["64x64", "96x64"])
    assert _bucket(queues.take("a")) == "96x64"
    queues.leave("a")
    assert _bucket(queues.take("b")) == "96x64"
