"""`python -m entscale_jax.sweep.cluster.job_code ADDRESS JOB` ends with the exit code of a job's driver.

`ray job submit` and `ray exec` hand on 1 for each that is not 0.
"""

import sys
from collections.abc import Sequence

from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

UNKNOWN = 1


def main(arguments: Sequence[str]) -> int:
    """The driver's exit code, of a signal as a shell tells it; 1 where no driver began or nobody answers."""
    address, job = arguments
    try:
        code = JobSubmissionClient(address).get_job_info(job).driver_exit_code
    except (OSError, RuntimeError, RayError) as error:
        print(f"the exit code of {job} is not known: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return UNKNOWN
    if code is None:
        return UNKNOWN
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
