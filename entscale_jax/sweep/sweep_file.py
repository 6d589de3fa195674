"""A sweep in its YAML file: where it stands there, and its mistakes with file and line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from ..train_entropy import TrainEntropy
from ..yaml_file import Document, Place, read_yaml
from .cluster.nodes import promised_nodes
from .spec import TABLES, SpecError, SweepSpec, nearest


@dataclass(frozen=True)
class SweepFile:
    """A sweep and where it was read: paths in it are relative to the folder of its file."""

    path: Path
    spec: SweepSpec
    weights: Mapping[str, str]
    """Hashes of the models' weights that a run folder's own `spec.yaml` promises; empty elsewhere."""
    train_entropy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """E_T that the models shipped when a run folder's own `spec.yaml` was written; empty elsewhere."""
    document: Document | None = None
    """The file's text as values and lines; None for a sweep that was made in Python."""
    place: Place = ()
    """The keys that lead to the sweep in the document."""

    @property
    def folder(self) -> Path:
        return self.path.resolve().parent

    @property
    def nodes(self) -> int:
        """Nodes that the file's own cluster has at least."""
        return 1 if self.document is None else promised_nodes(self.document.value)

    def error(self, error: UserError, key: str = "") -> UserError:
        """The same error with the file and the line of the key of the sweep that it is about."""
        location: list[str | int] = [key]
        if isinstance(error, SpecError):
            items = list(getattr(self.spec, error.key))
            location = [error.key, *([items.index(error.item)] if error.item in items else [])]
        if self.document is None or not location[0]:
            return error
        if location[0] == "models" and "model" in self._written():
            location = ["model"]
        message = str(error).removeprefix(f"{location[0]}: ")
        return self.document.error((*self.place, *location), f"{_dotted(location)}: {message}")

    def error_at(self, place: Place, message: str) -> UserError:
        """The user's error at a place in the file."""
        return UserError(f"{self.path}: {message}") if self.document is None else self.document.error(place, message)

    def _written(self) -> Mapping[str, Any]:
        value: Any = self.document.value if self.document is not None else {}
        for key in self.place:
            value = value[key]
        return value


def read_sweep(path: str | Path) -> SweepFile:
    """The sweep in a YAML file: under `metadata: sweep:` of a Ray cluster configuration, or under a bare `sweep:`.

    Raises UserError, one line with file, line and remedy.
    """
    document = read_yaml(path)
    place = _find_section(document)
    section = document.value
    for key in place:
        section = section[key]
    if not isinstance(section, Mapping):
        raise document.error(place, f"{'.'.join(place)} holds no keys: see sweeps/aspect.yaml for an example")
    try:
        spec = SweepSpec.model_validate(section, context={"folder": document.path.resolve().parent})
    except ValidationError as error:
        raise _first_error(document, place, error) from error
    return SweepFile(document.path, spec, _weights(document), _shipped(document), document, place)


def _find_section(document: Document) -> tuple[str, ...]:
    top = document.value
    if not isinstance(top, Mapping):
        raise document.error((), "the file holds no keys: write the sweep under `sweep:`")
    metadata = top.get("metadata")
    if isinstance(metadata, Mapping) and "sweep" in metadata:
        return ("metadata", "sweep")
    if isinstance(metadata, Mapping) or "cluster_name" in top:
        place = ("metadata",) if "metadata" in top else ()
        raise document.error(place, "no sweep in this cluster configuration: write it under `metadata: sweep:`")
    for key in top:
        if key not in ("sweep", *_OF_A_RUN):
            raise document.error((key,), f"unknown key {key!r} at the top: {nearest(key, ('sweep', 'metadata'))}")
    if "sweep" not in top:
        raise document.error((), "no sweep in this file: write it under `sweep:`")
    return ("sweep",)


def _weights(document: Document) -> dict[str, str]:
    weights = document.value.get("weights", {}) if "metadata" not in document.value else {}
    if not isinstance(weights, Mapping) or not all(isinstance(value, str) for value in weights.values()):
        raise document.error(("weights",), "weights is no table of model: hash, as a run folder's spec.yaml has it")
    return {str(key): str(value) for key, value in weights.items()}


def _shipped(document: Document) -> dict[str, dict[str, float]]:
    models = document.value.get("train_entropy", {}) if "metadata" not in document.value else {}
    if not isinstance(models, Mapping):
        raise document.error(("train_entropy",), "train_entropy is no table of model: layers, as a run's spec.yaml has")
    return {str(model): _shipped_by(document, str(model), layers) for model, layers in models.items()}


def _shipped_by(document: Document, model: str, layers: object) -> dict[str, float]:
    place = ("train_entropy", model)
    if not isinstance(layers, Mapping):
        raise document.error(
            place, f"train_entropy.{model} is {layers!r}: give layer -> nats, as a run's spec.yaml has"
        )
    try:
        return dict(TrainEntropy.of(layers).layers)
    except UserError as error:
        raise document.error(place, f"train_entropy.{model}: {error}") from error


_OF_A_RUN = ("weights", "train_entropy", "undefined")
"""What a run folder's spec.yaml has beside the sweep."""


def _first_error(document: Document, place: tuple[str, ...], error: ValidationError) -> UserError:
    # A misspelt key makes two errors, the unknown key and the missing one: the unknown one says what to do.
    found = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")[0]
    location: list[str | int] = list(found["loc"])
    if location[:1] == ["models"] and (*place, "models") not in document.lines and (*place, "model") in document.lines:
        location[:] = ["model"]
    cause = found.get("ctx", {}).get("error")
    if isinstance(cause, SpecError) and not location:
        location[:] = [cause.key]
    if found["type"] == "invalid_key":
        location[-1] = str(found["input"])
    name = _dotted(location) or _dotted(place)
    return document.error((*place, *location), _explain(found, location, name))


def _dotted(location: Sequence[str | int]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if not str(part).startswith("<")]
    return "".join(parts).removeprefix(".")


def _explain(found: Any, location: list[str | int], name: str) -> str:
    kind = found["type"]
    if kind == "extra_forbidden":
        parent = TABLES.get(location[-2], SweepSpec) if len(location) > 1 else SweepSpec
        known = [*parent.model_fields, *(["model"] if parent is SweepSpec else [])]
        return f"unknown key {str(location[-1])!r}: {nearest(location[-1], known)}"
    if kind == "invalid_key":
        return f"unknown key {found['input']!r}: a key is a word"
    if kind == "missing":
        return f"key {'model' if name == 'models' else name!r} is missing: add it"
    if kind == "value_error":
        told = str(found["ctx"]["error"])
        return told if told.startswith(name) else f"{name}: {told}"
    value = repr(found["input"])
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    return f"{name} is {shown}: {_reason(found)}"


def _reason(found: Any) -> str:
    own = {
        "tuple_type": "give a list, as in [a, b]",
        "string_pattern_mismatch": "use letters, digits, dots, dashes and underscores",
        "string_too_short": "give a text that is not empty",
    }
    return own.get(found["type"], f"it should be {found['msg'].removeprefix('Input should be ')}")
