from types import SimpleNamespace

import pytest
from sweep_fakes import FakeCounter, FakeInfo, FakePipe, small_plan

from entscale_jax.errors import UserError
from entscale_jax.sweep.drawer import Drawer, load_pipeline
from entscale_jax.sweep.executor import Failure, Result
from entscale_jax.sweep.spec import Metric


class NoCounter:
    def take(self):
        return [], 0.0


def _tasks():
    plan = small_plan()
    return plan.tasks({cell.id for cell in plan.cells})


def _drawer(pipe, counter=None, metrics=(Metric.ENTROPY,)):
    return Drawer(metrics, lambda cell: pipe, counter or NoCounter(), "fake")


def test_a_model_is_loaded_once_and_a_program_made_ready_once():
    pipe, loads = FakePipe(), []
    drawer = Drawer((), lambda cell: loads.append(cell.model) or pipe, NoCounter(), "fake")
    for task in _tasks():
        assert isinstance(drawer.draw(task), Result)
    assert loads == ["fake"]
    assert [(one["width"], one["rule"].label) for one in pipe.compiled] == [
        *((64, "original"), (64, "entropy"), (96, "original"), (96, "entropy"), (30, "original"), (30, "entropy"))
    ]
    assert {(one["batch"], one["steps"], one["guidance"]) for one in pipe.compiled} == {(4, 25, 5.0)}


def test_the_layers_of_a_model_are_looked_up_once():
    class CountingPipe(FakePipe):
        looked = 0

        @property
        def layers(self):
            self.looked += 1
            return FakePipe.layers

        def __call__(self, prompts, **keywords):
            before, output = self.looked, super().__call__(prompts, **keywords)
            self.looked = before
            return output

    pipe = CountingPipe()
    drawer = _drawer(pipe)
    results = [drawer.draw(task) for task in _tasks()]
    assert pipe.looked == 1
    tokens = {
        layer["layer"]: layer["tokens"] for result in results[:1] for drawn in result.drawn for layer in drawn.entropy
    }
    assert tokens == {"down/attn1": 256, "mid/attn1": 16}


def test_seconds_are_those_of_drawing_shared_by_the_stored_images(monkeypatch):
    now = 100.0
    monkeypatch.setattr("entscale_jax.sweep.drawer.time", SimpleNamespace(perf_counter=lambda: now))

    class SlowPipe(FakePipe):
        def compile(self, **keywords):
            nonlocal now
            now += 16.0

        def __call__(self, prompts, **keywords):
            nonlocal now
            now += 3.0
            return super().__call__(prompts, **keywords)

    result = _drawer(SlowPipe()).draw(_tasks()[2])
    assert result.steady_seconds == 3.0
    assert [drawn.columns["seconds"] for drawn in result.drawn] == [1.5] * 2


def test_compiling_within_a_call_is_taken_off_its_seconds():
    class Late(FakeCounter):
        def __init__(self):
            self.told = iter([0.0, 2.0, 5.0])

        def take(self):
            return [], next(self.told)

    result = _drawer(FakePipe(), Late()).draw(_tasks()[0])
    assert (result.compile_seconds, result.steady_seconds) == (7.0, 0.0)


def test_only_wanted_images_come_back_and_the_batch_is_full():
    pipe = FakePipe()
    chunk = small_plan().chunks[0]
    result = _drawer(pipe).draw(chunk.task({chunk.cells[2].id}))
    assert [drawn.cell for drawn in result.drawn] == [chunk.cells[2].id]
    assert pipe.calls[0]["prompts"] == [chunk.cells[2].prompt] * 4


def test_what_is_not_asked_for_is_not_measured():
    result = _drawer(FakePipe(), metrics=()).draw(_tasks()[0])
    assert all(drawn.entropy == [] and set(drawn.columns) == {"seconds", "device", "sha256"} for drawn in result.drawn)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (UserError("the folder has no unet"), ("the folder has no unet", True)),
        (RuntimeError("out of\n  memory"), ("RuntimeError: out of memory (test_drawer.py:", False)),
    ],
)
def test_an_error_comes_back_as_one_line(error, failure):
    def load(cell):
        raise error

    found = Drawer((), load, NoCounter(), "fake").draw(_tasks()[0])
    assert isinstance(found, Failure)
    assert found.error.startswith(failure[0])
    assert found.fatal is failure[1]
    assert "\n" not in found.error


class ObjectStoreFullError(Exception):
    """By the name of Ray's."""


@pytest.mark.parametrize(
    ("error", "memory", "passing"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("INTERNAL: no memory of that"), False, False),
        (ObjectStoreFullError("no room"), False, True),
    ],
)
def test_what_kind_of_failure_an_error_is(error, memory, passing):
    def load(cell):
        raise error

    found = Drawer((), load, NoCounter(), "fake").draw(_tasks()[0])
    assert (found.memory, found.passing, found.fatal) == (memory, passing, False)
    assert ("RESOURCE_EXHAUSTED" in found.error) == memory


def test_jax_says_that_word_where_an_array_does_not_fit():
    import jax
    import jax.numpy as jnp

    from entscale_jax.sweep.drawer import is_out_of_memory

    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros((2**46,), jnp.int8).block_until_ready()
    assert is_out_of_memory(caught.value)


def test_other_weights_on_a_node_are_an_error(monkeypatch, tmp_path):
    from entscale_jax import TextToImage

    asked = []

    def from_pretrained(model, *, train_size):
        asked.append((model, train_size))
        return FakePipe(FakeInfo(weights="cd" * 32))

    monkeypatch.setattr(TextToImage, "from_pretrained", from_pretrained)
    cell = small_plan().cells[0]
    for folder, opened in [(str(tmp_path), str(tmp_path)), ("/not/on/this/node", "fake")]:
        with pytest.raises(UserError, match="has the weights cdcdcdcdcdcd and not those of the plan, abababababab"):
            load_pipeline({"fake": folder})(cell)
        assert asked[-1] == (opened, (64, 64))
