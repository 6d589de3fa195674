"""Which files hold the weights of one part of a model: one, or shards by an index, of one variant and format."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..errors import UserError

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""The stem of the files that each library writes."""


class Format(StrEnum):
    """Of weights, by the suffix of their files; the first of these that is there is taken."""

    SAFETENSORS = "safetensors"
    MSGPACK = "msgpack"
    """Flax's."""
    PICKLE = "bin"
    """PyTorch's."""


_STEMS = {
    Format.SAFETENSORS: {DIFFUSERS: DIFFUSERS, TRANSFORMERS: TRANSFORMERS},
    Format.MSGPACK: {DIFFUSERS: "diffusion_flax_model", TRANSFORMERS: "flax_model"},
    Format.PICKLE: {DIFFUSERS: DIFFUSERS, TRANSFORMERS: "pytorch_model"},
}


@dataclass(frozen=True)
class WeightFiles:
    """The files of one part."""

    files: tuple[Path, ...]
    """One, or the shards in the order in which the index names them."""
    index: Path | None = None
    shards: Mapping[str, Path] = field(default_factory=dict)
    """Key -> the shard that the index names; empty without an index."""
    format: Format = Format.SAFETENSORS

    @property
    def all(self) -> tuple[Path, ...]:
        """With the index, which a change of the weights may change alone."""
        return self.files if self.index is None else (self.index, *self.files)


def find_weights(
    folder: Path, stem: str, *, variant: str | None = None, allow_pickle: bool = False, flax: bool = False
) -> WeightFiles:
    """The files in a part's folder.

    Args:
        folder: of the part, such as `unet`.
        stem: `DIFFUSERS` or `TRANSFORMERS`.
        variant: the word in the files' names, such as `fp16`; None is the files without one.
        allow_pickle: takes PyTorch's `.bin` where there are neither safetensors nor Flax's msgpack.
        flax: takes Flax's msgpack alone, as Flax's classes do.

    Raises UserError where the weights are missing, of other variants only, pickles only, or their index is broken.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: the weights of a part are in a folder of that name")
    names = {file.name for file in folder.glob("*") if file.is_file()}
    name = choose_file(names, stem, variant=variant, allow_pickle=allow_pickle, flax=flax, folder=str(folder))
    format = next(each for each in Format if f".{each}" in name)
    if not name.endswith(".json"):
        return WeightFiles((folder / name,), format=format)
    shards = {key: folder / shard for key, shard in read_index(folder / name).items()}
    files = tuple(dict.fromkeys(shards.values()))
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder / name} names the shard {file.name}, which is not in {folder}: fetch it again")
    return WeightFiles(files, folder / name, shards, format)


def choose_file(
    names: Iterable[str], stem: str, *, variant: str | None, allow_pickle: bool, flax: bool = False, folder: str
) -> str:
    """Of the file names of a part's folder the one to start from: the weights, or the index of their shards.

    Raises UserError, which names `folder`, where there is none that may be read.
    """
    names = set(names)
    spelt = {format: _spellings(stem, variant, format) for format in Format}
    refused = set() if allow_pickle else {Format.PICKLE}
    allowed = [Format.MSGPACK] if flax else [format for format in Format if format not in refused]
    found = [name for format in allowed for name in spelt[format] if name in names]
    if found:
        return found[0]
    if not flax and (held := [name for name in spelt[Format.PICKLE] if name in names]):
        raise UserError(
            f"{folder} holds its weights only as {held[0]}, a pickle, and a pickle can run any code when it is opened: "
            "allow_pickle=True reads it all the same, with PyTorch and tensors only"
        )
    _explain_absence(names, stem, variant, folder, flax)
    safe, msgpack = spelt[Format.SAFETENSORS], spelt[Format.MSGPACK][0]
    if flax:
        raise UserError(f"{folder}/{msgpack} is missing, where a Flax model has its weights: fetch the model again")
    raise UserError(f"{folder}/{safe[0]} is missing, and so is {safe[1]}: fetch the model again")


def _explain_absence(names: set[str], stem: str, variant: str | None, folder: str, flax: bool) -> None:
    """Raises UserError where weights are there that are not those asked for, or not all of them."""
    index = f"{_STEMS[Format.MSGPACK][stem]}.{Format.MSGPACK}.index.json"
    if variant is None and index in names:
        raise UserError(f"{folder}/{index} lists shards, which are read of safetensors and .bin: save it as one file")
    if there := variants(names, stem, [Format.MSGPACK] if flax else Format):
        listed = ", ".join(repr(each) if each else "None (names without a variant)" for each in there)
        raise UserError(f"{folder} has no weights of variant={variant!r}: there is {listed}")
    if not flax and any(re.match(rf"{stem}-\d+-of-\d+\.", name) for name in names):
        missing = _spellings(stem, variant, Format.SAFETENSORS)[1]
        raise UserError(f"{folder}/{missing} is missing: it says which shard holds which tensor")


def variants(names: Iterable[str], stem: str, formats: Iterable[Format] = Format) -> list[str]:
    """The variants of a part's weights in any of the formats, "" for files without one."""
    names, found = list(names), set()
    for format in formats:
        # The shards of a variant are spelt fp16-00001-of-00002.
        one = rf"(?:\.(?P<variant>(?![^.]*-\d+-of-)[^.]+))?\.{format}"
        index = rf"\.{format}\.index(?:\.(?P<of_index>[^.]+))?\.json"
        matches = (re.fullmatch(rf"{_STEMS[format][stem]}(?:{index}|{one})", name) for name in names)
        found |= {match["variant"] or match["of_index"] or "" for match in matches if match}
    return sorted(found)


def read_index(file: Path) -> dict[str, str]:
    """Key -> name of its shard. Raises UserError where the index is broken."""
    try:
        content = json.loads(file.read_text(), object_pairs_hook=_without_repetition)
        shards = content["weight_map"]
        wrong = [name for name in shards.values() if not _is_plain(name)]
    except _Repeated as repeated:
        raise UserError(f"{file} names {repeated} twice: fetch it again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no index of shards ({type(error).__name__}: {error}): fetch it again") from None
    if wrong or not shards:
        raise UserError(f"{file} names {wrong[0]!r} as a shard" if wrong else f"{file} names no tensor")
    return shards


class _Repeated(Exception):
    """A key that stands twice in one JSON object, of which `json` would keep the last."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = {}
    for key, value in pairs:
        if key in content:
            raise _Repeated(key)
        content[key] = value
    return content


def _is_plain(name: object) -> bool:
    # A path would lead out of the model's folder.
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\")


def _spellings(stem: str, variant: str | None, format: Format) -> list[str]:
    name, word = _STEMS[format][stem], "" if variant is None else f".{variant}"
    one, index = f"{name}{word}.{format}", f"{name}.{format}.index{word}.json"
    return [one] if format is Format.MSGPACK else [one, index]
