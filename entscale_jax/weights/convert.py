"""A model's folder as orbax checkpoints, and back to the files that it came from, bit for bit."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np

from ..environment import versions
from ..errors import UserError
from ..train_entropy import FILE as TRAIN_ENTROPY
from .checkpoint import read_checkpoint, write_checkpoint
from .files import Format, WeightFiles
from .folder import ModelInfo, describe
from .hub import LEFT_OUT
from .layout import canonical_name, to_torch, torch_name
from .manifest import CHECKPOINT, FILE, UNREAD, Manifest, SourceFile, SourcePart, lengths, read_manifest, sha256
from .safetensors_file import Header, file_blocks, header_for, open_safetensors, read_header
from .torch_format import Match, match_parameters

_PACKAGES = ("entscale-jax", "jax", "flax", "orbax-checkpoint", "numpy", "safetensors")
_INDEX = "model_index.json"
_NOTES = ("LICENSE*", "README*", "provenance.json", TRAIN_ENTROPY)
"""What a folder says about itself: terms of use go wherever weights go, and E_T of its attention with them."""


def convert(model: str | Path, out: Path, **options: Any) -> None:
    """Writes a model as orbax checkpoints with a manifest, which `TextToImage.from_pretrained` opens.

    Args:
        model: a diffusers folder, a hub id, or `scenes`.
        out: a new folder. `out/PART/checkpoint` is a tree of arrays by the names of `nnx.to_pure_dict`, in the dtypes
            stored; configs and tokenizers are copied.
        options: of the model, as `describe` takes them.

    Raises UserError where the model can't be opened, and where `out` exists already.
    """
    info = describe(model, **options)
    if info.manifest is not None:
        raise UserError(f"model {info.name!r} is a converted one already")
    for index in range(len(info.family.tokenizers)):
        info.tokenizer(index)  # raises where it can't be read
    with _new_folder(Path(out), outside=info.folder) as new:
        parts = {part: _convert_part(info, part, new / part) for part in info.family.parts}
        copied = _copy(info, new)
        config = {part: json.loads((new / part / "config.json").read_text()) for part in parts}
        manifest = Manifest(
            source=info.name,
            source_hash=info.weights_hash,
            variant=info.variant,
            versions=versions(_PACKAGES),
            config=config,
            copied=copied,
            parts=parts,
        )
        (new / FILE).write_text(manifest.model_dump_json(indent=2) + "\n")


def export(checkpoint: str | Path, out: Path) -> None:
    """Writes the diffusers folder that `convert` made the checkpoint of, with the same tensors bit for bit.

    Weights that were safetensors are the same files; those of PyTorch's `.bin`, and Flax's msgpack, become safetensors.

    Raises UserError where the checkpoint is none, where it is of a Flax pipeline, where it can't be read or gives other
    bits, and where `out` exists.
    """
    folder = Path(checkpoint)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} holds no {FILE}: give a folder that `entscale convert` wrote")
    if not all(source.files for source in manifest.parts.values()):
        raise UserError(f"{folder} is of a Flax pipeline, whose msgpack is not written: keep {manifest.source!r}")
    with _new_folder(Path(out), outside=folder) as new:
        for name in manifest.copied:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, new / name)
        for part, source in manifest.parts.items():
            _export_part(folder / part, source, new / part)


def _convert_part(info: ModelInfo, part: str, new: Path) -> SourcePart:
    files = info.weight_files(part)
    match = match_parameters(info.builder(part), files)
    write_checkpoint(new / CHECKPOINT, {path: match.read(name) for name, (path, _) in match.wanted.items()})
    if match.unread:
        _write(new / UNREAD, header_for(match.unread), lambda key: match.unread[key].read())
    sources = tuple(_source_files(info, part, files, match))
    return SourcePart(files=sources, index=_index(files), checkpoint=lengths(new / CHECKPOINT))


def _source_files(info: ModelInfo, part: str, files: WeightFiles, match: Match) -> Iterator[SourceFile]:
    if info.flax:
        return
    if files.format is Format.SAFETENSORS:
        for file in files.files:
            yield SourceFile(name=file.name, header=read_header(file).text, sha256=sha256(_blocks_of(file)))
        return
    tensors = {tensor.key: tensor for tensor in (*match.stored.values(), *match.unread.values())}
    header = header_for(tensors)
    digest = sha256(file_blocks(header, lambda key: tensors[key].read()))
    yield SourceFile(name=f"{info.weights_stem(part)}.safetensors", header=header.text, sha256=digest)


def _index(files: WeightFiles) -> dict[str, str]:
    # Tensors of `.bin` shards come back in one file, which needs no index.
    return (
        {}
        if files.index is None or files.format is not Format.SAFETENSORS
        else {files.index.name: files.index.read_text()}
    )


def _export_part(folder: Path, source: SourcePart, new: Path) -> None:
    new.mkdir(exist_ok=True)
    stored = read_checkpoint(folder / CHECKPOINT)
    arrays = {canonical_name(torch_name(path)): (path, array) for path, array in stored.items()}
    unread = open_safetensors(folder / UNREAD) if (folder / UNREAD).is_file() else {}

    def read(key: str) -> np.ndarray:
        return unread[key].read() if key in unread else to_torch(*arrays[canonical_name(key)])

    for file in source.files:
        header = Header(file.header)
        if lost := [key for key in header.tensors if key not in unread and canonical_name(key) not in arrays]:
            raise UserError(f"{folder} has no {', '.join(lost)}, which {FILE} lists: convert the model again")
        if _write(new / file.name, header, read) != file.sha256:
            raise UserError(f"{folder} gives other bits than {file.name} had: convert the model again")
    for name, text in source.index.items():
        (new / name).write_text(text)


def _copy(info: ModelInfo, new: Path) -> dict[str, str]:
    """Copies what is no weights; name -> SHA-256."""
    parts = info.family.parts
    files = [info.folder / part / "config.json" for part in parts] + [info.folder / "scheduler/scheduler_config.json"]
    for name in info.family.tokenizers:
        files += [file for file in (info.folder / name).glob("*") if file.is_file()]
    for pattern in _NOTES:
        files += [file for file in info.folder.glob(pattern) if file.is_file()]
    copied = {}
    for file in sorted(files):
        name = file.relative_to(info.folder).as_posix()
        (new / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, new / name)
        copied[name] = sha256(_blocks_of(file))
    # PyTorch's pipelines refuse a folder whose index lists a component that is not there.
    index = json.loads((info.folder / _INDEX).read_text())
    index |= {name: [None, None] for name in LEFT_OUT if name in index}
    (new / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return copied | {_INDEX: sha256(_blocks_of(new / _INDEX))}


def _write(file: Path, header: Header, read: Callable[[str], np.ndarray]) -> str:
    """Writes a safetensors file and returns its SHA-256."""
    with file.open("wb") as stream:
        return sha256(_written(stream, block) for block in file_blocks(header, read))


def _written(stream: BinaryIO, block: bytes) -> bytes:
    stream.write(block)
    return block


def _blocks_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            yield block


@contextmanager
def _new_folder(folder: Path, *, outside: Path) -> Iterator[Path]:
    """A folder that appears under its name when all of it is written; nothing is left of one that failed."""
    if folder.exists():
        raise UserError(f"{folder} exists already: give the name of a new folder")
    if folder.resolve().is_relative_to(outside.resolve()):
        raise UserError(f"{folder} lies in {outside}, which is what is read: give a folder elsewhere")
    if not folder.parent.is_dir():
        raise UserError(f"{folder} can't be written: there is no folder {folder.parent}; make it first")
    try:
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            new = Path(scratch) / folder.name
            new.mkdir()
            yield new
            new.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error}") from None
