from sweep_fakes import small_plan

from entscale_jax.sweep.queues import Queues


def _queues(**changes):
    plan = small_plan(**changes)
    return plan, Queues(plan.tasks({cell.id for cell in plan.cells}))


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


def test_a_bucket_of_a_worker_that_is_gone_is_free_again():
    _, queues = _queues(sizes=["64x64", "96x64"])
    assert _bucket(queues.take("a")) == "96x64"
    queues.leave("a")
    assert _bucket(queues.take("b")) == "96x64"
