"""The actor: a drawer in a process of its own, which looks for its device only after Ray has started it."""

import contextlib
import os
import platform
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from .cell_writer import store_result
from .executor import Failure, Result
from .plan import Task
from .spec import Extractors, Metric, Sharding
from .storage.places import open_files


class Worker:
    """Made by Ray in a worker process.

    `folders` says where the driver found each model, and `store` is the URI that results go to, where there is one.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        folders: Mapping[str, str],
        store: str | None = None,
        sharding: Sharding = Sharding.NONE,
        extractors: Extractors | None = None,
    ):
        import jax

        from ..compilation import enable_cache
        from ..image_rows import ImageRows
        from .compiles import CompileCounter
        from .drawer import Drawer, load_pipeline, load_upscaler

        # Even small programs are kept, so that the next worker reads all of them.
        enable_cache(every_program=True)
        # A terminal's Ctrl-C goes to this process too, where it would spoil what the driver lets finish.
        with contextlib.suppress(ValueError):  # outside of the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        devices = jax.local_devices()
        rows = ImageRows.over(devices) if sharding is Sharding.ROWS else None
        ids = "+".join(str(device.id) for device in (devices if rows else devices[:1]))
        name = f"{devices[0].device_kind}:{ids}@{platform.node()}"
        self._device, self._count, self._drawn_on = devices[0], len(devices), len(devices) if rows else 1
        self._files = None if store is None else open_files(store)
        load, enlarge = load_pipeline(folders, rows), load_upscaler(folders)
        self._drawer = Drawer(metrics, load, CompileCounter(), name, extractors, self._peak, enlarge)

    def hello(self, kind: str, devices: int = 1) -> dict[str, Any]:
        """What this worker is. Raises UserError where JAX found other devices than Ray gave it."""
        if self._device.platform != kind:
            raise UserError(
                f"Ray offers a {kind.upper()} on {platform.node()} and JAX finds only {self._device.platform}: install "
                f"the extra {'cuda' if kind == 'gpu' else kind}, or set JAX_PLATFORMS=cpu to draw without it"
            )
        if self._count < devices:
            raise UserError(
                f"a worker on {platform.node()} should have {devices} devices, and JAX finds {self._count} there"
            )
        return {
            "node": platform.node(),
            "pid": os.getpid(),
            "platform": self._device.platform,
            "kind": self._device.device_kind,
            "id": self._device.id,
            "count": self._drawn_on,
            "memory": (self._device.memory_stats() or {}).get("bytes_limit"),
        }

    def _peak(self) -> int | None:
        return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

    def draw(self, task: Task) -> Result | Failure:
        """See `Drawer.draw`. At a URI the worker stores what it drew, and sends back the rest."""
        result = self._drawer.draw(task)
        if self._files is None or isinstance(result, Failure):
            return result
        return store_result(self._files, task, result)
