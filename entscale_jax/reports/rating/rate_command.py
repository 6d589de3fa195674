"""What `entscale rate` does: serves a run's pictures to be rated without saying what drew them, until it is stopped."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..run_folder import read_run
from .answers import FOLDER
from .rating_order import rated_pairs
from .rating_server import open_server
from .rating_session import RatingSession


def rate(
    folder: Path,
    *,
    rater: str | None,
    host: str,
    port: int,
    pairs: int | None,
    say: Callable[[str], None],
) -> None:
    """Serves until it is interrupted. Raises UserError where the run has nothing to rate or the place is taken."""
    run = read_run(folder)
    chosen = rated_pairs(run, pairs)
    session = RatingSession(run, chosen, only=rater, say=say)
    with open_server(session, host, port) as server:
        pictures = sum(len(pair.samples) for pair in chosen)
        say(f"{pictures} pictures of {len(chosen)} pairs are rated at {server.address}")
        say(f"answers go to {folder / FOLDER}; Ctrl-C stops, and the same command goes on")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    for name, done in session.answered.items():
        say(f"{name}: {done} of {pictures} pictures rated")
