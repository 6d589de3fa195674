"""Draws cells of a sweep again as its workers do, without Ray: `python spot_redraw.py SWEEP OUT CELL...`.

A process of its own, as the tests' switches are not those that a sweep is drawn with. Writes OUT/CELL.png and
OUT/rows.json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))

from sweep_fakes import FakeExecutor

from entscale_jax.compilation import enable_cache
from entscale_jax.sweep.api import plan_sweep
from entscale_jax.sweep.drawer import load_pipeline
from entscale_jax.sweep.executor import Finished
from entscale_jax.sweep.spec import Metric

COMPARED = (Metric.OBJECTS, Metric.SCENES_CLIP)
"""What the cells that are kept tell of; features are not drawn again."""


def main(sweep_file: str, out: str, *wanted: str) -> None:
    enable_cache(every_program=True)
    sweep = plan_sweep(sweep_file, out)
    folders = {name: str(info.folder.resolve()) for name, info in sweep.plan.models.items()}
    executor = FakeExecutor(metrics=COMPARED, load=load_pipeline(folders))
    (worker,) = executor.start()
    rows = {}
    for task in sweep.plan.tasks(set(wanted)):
        executor.submit(worker, task)
        (event,) = executor.wait(0)
        assert isinstance(event, Finished), event
        for drawn in event.result.drawn:
            assert drawn.error is None, drawn.error
            (Path(out) / f"{drawn.cell}.png").write_bytes(drawn.png)
            rows[drawn.cell] = dict(drawn.columns)
    (Path(out) / "rows.json").write_text(json.dumps(rows))


main(*sys.argv[1:])
