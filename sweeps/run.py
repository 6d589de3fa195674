"""The script for `ray submit sweeps/aspect.yaml sweeps/run.py`: draws a cluster configuration's sweep on its cluster.

Ray copies this file alone to the head node. The sweep is in the configuration that Ray left there.
"""

import sys

from entscale_jax.sweep.script import main

if __name__ == "__main__":
    sys.exit(main())
