"""How a task that fails is tried again, split or given up, without anything that draws."""

import pytest
from sweep_fakes import small_plan

from entscale_jax.sweep.retries import ALONE, ATTEMPTS, NODES, PASSING, WHOLE, Retries


def _tasks(**changes):
    plan = small_plan(**changes)
    return plan.tasks({cell.id for cell in plan.cells})


def test_halves_keep_program_and_places_and_hold_each_cell_once():
    task = _tasks()[0]
    one, two = task.halves()
    assert one.program == two.program == task.program
    assert [*one.wanted_cells, *two.wanted_cells] == [*task.wanted_cells]
    for half in (one, two):
        kept = [place for place, wanted in enumerate(half.wanted) if wanted]
        assert [half.cells[place] for place in kept] == [task.cells[place] for place in kept]
        assert set(half.cells) == set(half.wanted_cells)
    assert one.cost + two.cost == task.cost


@pytest.mark.parametrize("batch", [3, 2, 1])
def test_smaller_batches_hold_each_cell_once(batch):
    task = _tasks()[0]
    parts = task.smaller(batch)
    assert [cell for part in parts for cell in part.wanted_cells] == list(task.wanted_cells)
    assert {len(part.cells) for part in parts} == {part.program.batch for part in parts} == {batch}
    assert sum(part.cost for part in parts) == pytest.approx(task.cost)


def test_a_chunk_is_tried_whole_then_split_down_to_cells_that_are_tried_alone():
    retries = Retries()
    (task, *_) = _tasks()
    for _ in range(WHOLE - 1):
        assert retries.fault(task).again == (task,)
    half, other = retries.fault(task).again
    verdict = retries.fault(half)
    assert verdict.suspects
    cell, _ = verdict.again
    for _ in range(ALONE - 1):
        assert retries.fault(cell).again == (cell,)
    assert retries.fault(cell).given_up == (cell,)
    assert len(other.wanted_cells) == 2


def test_a_chunk_of_one_cell_has_all_its_attempts():
    retries = Retries()
    (task, *_) = _tasks(batch=1)
    assert [bool(retries.fault(task).again) for _ in range(ATTEMPTS)] == [True] * (ATTEMPTS - 1) + [False]


def test_nodes_and_passing_failures_count_apart():
    retries = Retries()
    (task, *_) = _tasks()
    for _ in range(NODES - 1):
        assert retries.node_lost(task).again == (task,)
    for _ in range(PASSING - 1):
        assert retries.passing(task).again == (task,)
    assert retries.fault(task).again == (task,)
    assert len(retries.node_lost(task).again) == 2


def test_a_batch_is_halved_once_for_all_of_a_bucket_that_is_in_hand():
    retries = Retries()
    first, second, *_ = [task for task in _tasks() if task.chunk.width == 96]
    assert {len(part.cells) for part in retries.out_of_memory(first, "gpu").again} == {2}
    assert {len(part.cells) for part in retries.out_of_memory(second, "gpu").again} == {2}
    (other, *_) = [task for task in _tasks() if task.chunk.width == 64]
    assert retries.within_limit(other, "gpu") == (other,)
    assert retries.within_limit(second, "larger gpu") == (second,)
    parts = retries.within_limit(second, "gpu")
    assert {len(part.cells) for part in retries.out_of_memory(parts[0], "gpu").again} == {1}
    (single, *_) = retries.within_limit(second, "gpu")
    assert retries.out_of_memory(single, "gpu").given_up == (single,)


@pytest.mark.parametrize("batch", [4, 7])
def test_a_cell_comes_to_the_same_place_of_a_halved_batch_whatever_else_is_wanted(batch):
    plan = small_plan(batch=batch)
    for chunk in plan.chunks:
        (whole,) = [chunk.task({cell.id for cell in chunk.cells})]
        retries = Retries()
        halves = retries.out_of_memory(whole, "gpu").again
        quarters = [part for half in halves for part in retries.out_of_memory(half, "gpu").again]
        places = {cell.id: (len(part.cells), part.cells.index(cell)) for part in quarters for cell in part.wanted_cells}
        later = Retries({(chunk.program.key, "gpu"): len(quarters[0].cells)})
        for cell in chunk.cells:
            (alone,) = later.within_limit(chunk.task({cell.id}), "gpu")
            assert (len(alone.cells), alone.wanted.index(True)) == places[cell.id]


def test_a_program_is_hopeless_only_where_it_has_drawn_nothing():
    tasks = _tasks(batch=1, methods=["original"], sizes=["64x64"])
    lost, found = Retries(), Retries()
    found.drew(tasks[3])
    for retries in (lost, found):
        for task in tasks[:2]:
            assert not retries.is_hopeless(tasks[2])
            for _ in range(ATTEMPTS):
                retries.fault(task)
    assert lost.is_hopeless(tasks[2])
    assert not found.is_hopeless(tasks[2])
