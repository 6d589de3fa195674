"""`python -m entscale_jax.sweep`, as a job of Ray runs it."""

import sys

from .script import main

sys.exit(main())
