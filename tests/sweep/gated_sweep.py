"""The script of a sweep, whose workers hold what they have in hand at a gate: see `storm`."""

import sys
from functools import partial

from storm import StormWorker

from entscale_jax.sweep import api, script

if __name__ == "__main__":
    api._with_ray = partial(api._with_ray, worker=StormWorker)
    sys.exit(script.main())
