"""Ray's own metrics of a sweep, which its dashboard and Prometheus show beside the cluster's."""

from ray.util.metrics import Counter, Gauge, Histogram

from ..events import Event
from ..tally import Tally

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Boundaries of the histogram."""


class RayMetrics:
    """An observer. Use it inside a connection to Ray, whose node exports what it counts with the prefix `ray_`.

    `entscale_cells_done` counts cells by `bucket` and `outcome` (`drawn`, `failed`); `entscale_chunk_seconds` is a
    histogram by `bucket` and `part` (`compile`, `steady`); `entscale_queue_cells` and `entscale_queue_chunks` are what
    is not done yet, what is in hand with it.
    """

    def __init__(self):
        self._tally = Tally()
        self._cells = Counter("entscale_cells_done", "Cells drawn or given up.", tag_keys=("bucket", "outcome"))
        self._seconds = Histogram(
            "entscale_chunk_seconds", "Seconds of a chunk.", boundaries=SECONDS, tag_keys=("bucket", "part")
        )
        self._queue_cells = Gauge("entscale_queue_cells", "Cells of the sweep that are not done.")
        self._queue_chunks = Gauge("entscale_queue_chunks", "Chunks of the sweep that are not done.")

    def __call__(self, event: Event) -> None:
        self._tally.add(event)
        if event["event"] == "chunk":
            self._count(event["bucket"], event["cells"] - event["failed"], event["failed"])
            for part in ("compile", "steady"):
                # A histogram takes nothing that is not above 0.
                self._seconds.observe(max(event[f"{part}_seconds"], 1e-6), {"bucket": event["bucket"], "part": part})
        elif event["event"] == "gave_up":
            self._count(event["bucket"], 0, event["cells"])
        self._queue_cells.set(self._tally.cells - self._tally.finished)
        self._queue_chunks.set(self._tally.chunks)

    def _count(self, bucket: str, drawn: int, failed: int) -> None:
        for outcome, cells in (("drawn", drawn), ("failed", failed)):
            if cells:
                self._cells.inc(cells, {"bucket": bucket, "outcome": outcome})
