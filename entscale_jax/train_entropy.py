"""E_T, the mean entropy of each self-attention layer at the training size: what rule `calibrated` is told."""

import json
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from .errors import UserError

FILE = "train_entropy.json"
"""Beside a folder's model_index.json: what the model ships."""
_REMEDY = "measure it by `entscale calibrate {model} -o FILE`"


@dataclass(frozen=True)
class TrainEntropy:
    """E_T in nats, layer by layer. Two are equal where these values are, wherever they come from."""

    layers: tuple[tuple[str, float], ...]
    """Each layer's path and its E_T, in the order of the paths."""
    weights_hash: str | None = field(default=None, compare=False)
    """Of the model that it was measured on; None where that is not known, as of a mapping."""
    train_size: str | None = field(default=None, compare=False)
    """WIDTHxHEIGHT that it was measured at, likewise."""
    shipped: bool = field(default=False, compare=False)
    """Whether it is the model's own."""

    @classmethod
    def of(cls, value: "TrainEntropy | Mapping[str, float] | str | Path") -> "TrainEntropy":
        """From layer -> nats, or from a file that `entscale calibrate` wrote. Raises UserError where it is neither."""
        if isinstance(value, TrainEntropy):
            return value
        if isinstance(value, str | Path):
            return _read(Path(value))
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"train_entropy is {value!r}: give layer -> nats, or the file of `entscale calibrate`")
        return cls(tuple(sorted((str(layer), _nats(layer, nats)) for layer, nats in value.items())))

    @property
    def digest(self) -> str:
        """8 hexadecimal digits that tell two sets of values apart."""
        return sha256(json.dumps(self.layers).encode()).hexdigest()[:8]

    def at(self, layer: str) -> float:
        """E_T of a layer. Raises UserError where there is none."""
        try:
            return dict(self.layers)[layer]
        except KeyError:
            raise UserError(f"train_entropy has no E_T for layer {layer!r}: give one for each layer") from None

    def check_layers(self, model: str, layers: Iterable[str]) -> None:
        """Raises UserError unless there is one E_T for each of these layers and for no other."""
        wanted, given = set(layers), {layer for layer, _ in self.layers}
        for what, names in (("has no E_T for", wanted - given), ("names layers that it lacks:", given - wanted)):
            if names:
                shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                raise UserError(f"train_entropy of model {model!r} {what} {shown}; {_REMEDY.format(model=model)}")

    def check_source(self, model: str, weights_hash: str, train_size: str) -> None:
        """Raises UserError where it was measured on other weights, or for another training size."""
        remedy = _REMEDY.format(model=model)
        if self.weights_hash not in (None, weights_hash):
            raise UserError(
                f"train_entropy was measured on the weights {self.weights_hash[:12]}, and model {model!r} has "
                f"{weights_hash[:12]}: {remedy}"
            )
        if self.train_size not in (None, train_size):
            raise UserError(
                f"train_entropy was measured at {self.train_size}, and model {model!r} is taken as trained at "
                f"{train_size}: {remedy}"
            )


def read_shipped(folder: Path) -> TrainEntropy | None:
    """What a model's folder holds. Raises UserError for a broken file."""
    file = folder / FILE
    if not file.is_file():
        return None
    found = _read(file)
    return TrainEntropy(found.layers, found.weights_hash, found.train_size, shipped=True)


def missing(model: str) -> UserError:
    """The error where neither caller nor model gives any."""
    return UserError(f"rule 'calibrated' needs E_T, which model {model!r} does not ship: {_REMEDY.format(model=model)}")


def _read(file: Path) -> TrainEntropy:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"train_entropy: {file} can't be read ({reason}): give what `entscale calibrate` wrote"
        ) from None
    try:
        layers = {layer: entry["entropy"] for layer, entry in content["layers"].items()}
        found = TrainEntropy.of(layers)
        return TrainEntropy(found.layers, str(content["weights_hash"]), str(content["train_size"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"train_entropy: {file} lacks {error}: give what `entscale calibrate` wrote") from None


def _nats(layer: object, value: Any) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise UserError(f"train_entropy of layer {layer!r} is {value!r}: give its mean entropy in nats, 0 or more")
    return float(value)
