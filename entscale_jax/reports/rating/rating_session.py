"""What the rating page may know: captions, pictures under names that say nothing, and how far a rater has come."""

import hmac
import io
import secrets
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import UserError
from ..records import Run, Sample
from .answers import Answer, AnswerFile, is_score, rater_name
from .rating_order import RatedPair, rating_order

_KEY_LENGTH = 24


class RatingSession:
    """The raters of one run. Safe to be called from several threads."""

    def __init__(self, run: Run, pairs: Sequence[RatedPair], *, only: str | None, say: Callable[[str], None]):
        self._run = run
        self._pairs = pairs
        self._only = None if only is None else rater_name(only)
        self._say = say
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._raters: dict[str, _Rater] = {}
        if self._only is not None:
            self._rater(self._only)

    @property
    def only(self) -> str | None:
        """The one rater that there is; None where the page asks for a name."""
        return self._only

    @property
    def answered(self) -> dict[str, int]:
        """How many pictures each rater of this session has rated, in this session and before."""
        return {name: rater.done for name, rater in self._raters.items()}

    def state(self, name: str, at: int | None = None, *, start: int = 0) -> dict[str, Any]:
        """What the page shows a rater: the picture at a place, or the first from `start` on that is not rated.

        `item` is None behind the last one. Raises UserError for a name that can be none or is not this session's.
        """
        rater = self._rater(name)
        place = rater.first_open(start) if at is None else min(max(at, 0), len(rater.order))
        item = rater.item(place) if place < len(rater.order) else None
        return {"rater": rater.name, "done": rater.done, "total": len(rater.order), "place": place, "item": item}

    def answer(self, name: str, key: str, score: object) -> None:
        """Keeps a score, on the disk when this returns.

        Raises UserError for an unknown picture or no score of 1 to 10, OSError where it can't be written.
        """
        rater = self._rater(name)
        if key not in rater.samples:
            raise UserError("the picture is not among those to be rated: load the page again")
        if not isinstance(score, int) or not is_score(score):
            raise UserError(f"score {score!r}: give a whole number from 1 to 10")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rater.file.add(Answer(cell=rater.samples[key].cell, score=score, time=now))

    def picture(self, name: str, key: str) -> bytes | None:
        """The PNG of a picture without the texts that say what made it; None where a rater has no such picture."""
        sample = self._rater(name).samples.get(key)
        return None if sample is None else _plain_png(self._run.folder / str(sample.image))

    def _rater(self, text: str) -> "_Rater":
        name = rater_name(text)
        if self._only not in (None, name):
            raise UserError(f"these pictures are for rater {self._only} alone")
        with self._lock:
            if name not in self._raters:
                file = AnswerFile(self._run.folder, name)
                self._raters[name] = _Rater(name, file, rating_order(self._pairs, name), self._secret)
                if file.note:
                    self._say(file.note)
            return self._raters[name]


class _Rater:
    def __init__(self, name: str, file: AnswerFile, order: Sequence[Sample], secret: bytes):
        self.name = name
        self.file = file
        self.order = order
        self.keys = [_key(secret, name, sample.cell) for sample in order]
        self.samples = dict(zip(self.keys, order, strict=True))

    @property
    def done(self) -> int:
        scores = self.file.scores
        return sum(sample.cell in scores for sample in self.order)

    def first_open(self, start: int) -> int:
        scores = self.file.scores
        places = (place for place, sample in enumerate(self.order) if sample.cell not in scores)
        return next((place for place in places if place >= start), len(self.order))

    def item(self, place: int) -> dict[str, Any]:
        sample = self.order[place]
        return {"key": self.keys[place], "caption": sample.prompt, "score": self.file.scores.get(sample.cell)}


def _key(secret: bytes, name: str, cell: str) -> str:
    """A picture's name in a link, which tells neither the cell nor that two raters see the same one."""
    return hmac.digest(secret, f"{name}/{cell}".encode(), "sha256").hex()[:_KEY_LENGTH]


def _plain_png(path: Path) -> bytes | None:
    target = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(target, "PNG", compress_level=1)
    except (OSError, SyntaxError, ValueError):
        return None
    return target.getvalue()
