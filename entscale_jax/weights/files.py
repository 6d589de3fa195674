"""Which files hold the weights of one part of a model: one, or shards by an index, of one variant and format."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""The stem of the files that each library writes."""
_PICKLE_STEM = {DIFFUSERS: DIFFUSERS, TRANSFORMERS: "pytorch_model"}


@dataclass(frozen=True)
class WeightFiles:
    """The files of one part."""

    files: tuple[Path, ...]
    """One, or the shards in the order in which the index names them."""
    index: Path | None = None
    shards: Mapping[str, Path] = field(default_factory=dict)
    """Key -> the shard that the index names; empty without an index."""
    pickled: bool = False
    """Whether they are PyTorch's pickles and not safetensors."""

    @property
    def all(self) -> tuple[Path, ...]:
        """With the index, which a change of the weights may change alone."""
        return self.files if self.index is None else (self.index, *self.files)


def find_weights(folder: Path, stem: str, *, variant: str | None = None, allow_pickle: bool = False) -> WeightFiles:
    """The files in a part's folder.

    Args:
        folder: of the part, such as `unet`.
        stem: `DIFFUSERS` or `TRANSFORMERS`.
        variant: the word in the files' names, such as `fp16`; None is the files without one.
        allow_pickle: takes PyTorch's `.bin` where there are no safetensors.

    Raises UserError where the weights are missing, of other variants only, pickles only, or their index is broken.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: the weights of a part are in a folder of that name")
    names = {file.name for file in folder.glob("*") if file.is_file()}
    name = choose_file(names, stem, variant=variant, allow_pickle=allow_pickle, folder=str(folder))
    pickled = ".safetensors" not in name
    if not name.endswith(".json"):
        return WeightFiles((folder / name,), pickled=pickled)
    shards = {key: folder / shard for key, shard in read_index(folder / name).items()}
    files = tuple(dict.fromkeys(shards.values()))
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder / name} names the shard {file.name}, which is not in {folder}: fetch it again")
    return WeightFiles(files, folder / name, shards, pickled)


def choose_file(names: Iterable[str], stem: str, *, variant: str | None, allow_pickle: bool, folder: str) -> str:
    """Of the file names of a part's folder the one to start from: the weights, or the index of their shards.

    Raises UserError, which names `folder`, where there is none that may be read.
    """
    names = set(names)
    safe, pickles = _spellings(stem, variant, "safetensors"), _spellings(_PICKLE_STEM[stem], variant, "bin")
    found = [name for name in safe + (pickles if allow_pickle else []) if name in names]
    if found:
        return found[0]
    if held := [name for name in pickles if name in names]:
        raise UserError(
            f"{folder} holds its weights only as {held[0]}, a pickle, and a pickle can run any code when it is opened: "
            "allow_pickle=True reads it all the same, with PyTorch and tensors only"
        )
    if there := variants(names, stem):
        listed = ", ".join(repr(each) if each else "None (names without a variant)" for each in there)
        raise UserError(f"{folder} has no weights of variant={variant!r}: there is {listed}")
    if any(re.match(rf"{stem}-\d+-of-\d+\.", name) for name in names):
        raise UserError(f"{folder}/{safe[1]} is missing: it says which shard holds which tensor")
    raise UserError(f"{folder}/{safe[0]} is missing, and so is {safe[1]}: fetch the model again")


def variants(names: Iterable[str], stem: str) -> list[str]:
    """The variants of a part's weights in any format, "" for files without one."""
    any_stem = "|".join(dict.fromkeys([stem, _PICKLE_STEM[stem]]))
    one = r"(?:\.(?P<variant>(?![^.]*-\d+-of-)[^.]+))?\.(?:safetensors|bin)"
    index = r"\.(?:safetensors|bin)\.index(?:\.(?P<of_index>[^.]+))?\.json"
    found = (re.fullmatch(rf"(?:{any_stem})(?:{index}|{one})", name) for name in names)
    # The shards of a variant are spelt fp16-00001-of-00002.
    return sorted({match["variant"] or match["of_index"] or "" for match in found if match})


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


def _spellings(stem: str, variant: str | None, suffix: str) -> list[str]:
    word = "" if variant is None else f".{variant}"
    return [f"{stem}{word}.{suffix}", f"{stem}.{suffix}.index{word}.json"]
