"""The spec that a run folder keeps: all that decides its cells, so that another sweep in the same folder is noticed."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..errors import UserError
from ..scales import Scaling
from ..yaml_file import PlainLoader
from .plan import Plan
from .spec import SweepSpec

_SHOWN = 60
_OF_THE_CLUSTER = {"workers", "device", "sharding"}

# The same, many times faster, where PyYAML was built with libyaml.
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class SpecDumper(_BaseDumper):
    """Quotes a text that a reader of YAML 1.1 or of 1.2 would take for something else."""


_DIALECTS = (yaml.SafeDumper.yaml_implicit_resolvers, PlainLoader.yaml_implicit_resolvers)
SpecDumper.yaml_implicit_resolvers = {
    first: [rule for dialect in _DIALECTS for rule in dialect.get(first, [])]
    for first in {*_DIALECTS[0], *_DIALECTS[1]}
}


def dump_spec(
    spec: SweepSpec, prompts: Sequence[str], weights: Mapping[str, str], calibrated: Mapping[str, Any] | None = None
) -> str:
    """The text of `spec.yaml`: the sweep with its captions written out, and the hashes of the models' weights.

    Where rule `calibrated` is drawn, what `describe_calibrated` says too. It is a sweep file itself. Workers and their
    devices are left out: they decide no cell, and a run may go on elsewhere.
    """
    sweep = {**spec.model_dump(mode="json", exclude=_OF_THE_CLUSTER, exclude_none=True), "prompts": list(prompts)}
    content = {"sweep": sweep, "weights": dict(weights), **(calibrated or {})}
    return yaml.dump(content, Dumper=SpecDumper, sort_keys=False, allow_unicode=True)


def describe_calibrated(plan: Plan) -> dict[str, Any]:
    """E_T that models ship, where rule `calibrated` is drawn with them, and what is not drawn as it has no value."""
    methods = {(cell.model, cell.method) for cell in plan.cells} | {(one.model, one.method) for one in plan.undefined}
    shipped = {
        model: dict(method.train_entropy.layers)
        for model, method in methods
        if isinstance(method, Scaling) and method.train_entropy is not None and method.train_entropy.shipped
    }
    undefined = [
        {"model": one.model, "size": f"{one.size[0]}x{one.size[1]}", "method": one.method.label, "reason": one.reason}
        for one in plan.undefined
    ]
    return {name: value for name, value in (("train_entropy", shipped), ("undefined", undefined)) if value}


def check_same(place: str, there: str, spec: str) -> None:
    """Raises UserError with the difference where `there`, the text of the run at `place`, isn't of the sweep `spec`."""
    if there == spec:
        return
    try:
        old = yaml.load(there, Loader=PlainLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{place}/spec.yaml is no valid YAML any more: give another folder with --out") from error
    new = yaml.load(spec, Loader=PlainLoader)
    differences = list(_differences(old, new, ""))
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{place} holds another sweep: {'; '.join(differences[:3])}{more}. Give another folder with --out"
        )


def _differences(old: Any, new: Any, name: str) -> Sequence[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in _differences(old.get(key), new.get(key), _join(name, key))]
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list):
        gone, come = [item for item in old if item not in new], [item for item in new if item not in old]
        if gone or come:
            return [f"{name} has {_shown(gone)} there and {_shown(come)} here"]
    return [f"{name} is {_shown(old)} there and {_shown(new)} here"]


def _join(name: str, key: object) -> str:
    return str(key) if name in ("", "sweep") else f"{name}.{key}"


def _shown(value: Any) -> str:
    if value in (None, []):
        return "nothing"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
