"""What `entscale convert` writes beside its checkpoints: what they were made of, and how to make that again."""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ..errors import UserError

FILE = "entscale_manifest.json"
CHECKPOINT, UNREAD = "checkpoint", "unread.safetensors"
"""In a part's folder: the orbax checkpoint of its parameters, and the tensors that no parameter needs."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} leads out of the folder")
    return name


Name = Annotated[str, AfterValidator(_inside)]
"""Of a file, relative to the folder that it is in: nothing is read or written elsewhere."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceFile(_Record):
    """One safetensors file that export makes again."""

    name: Name
    """Within the part's folder."""
    header: str
    """Its own, to the last space: keys, dtypes, shapes and their order."""
    sha256: str


class SourcePart(_Record):
    """The weights of one part."""

    files: tuple[SourceFile, ...]
    """None where the source was a Flax pipeline, which is not written again."""
    index: dict[Name, str] = {}
    """Name and text of the index of the shards, if there is one."""
    checkpoint: dict[Name, int]
    """File of the checkpoint -> its bytes: orbax reads one that is cut off with many words."""


class Manifest(_Record):
    """The content of the manifest."""

    version: int = 1
    """Of this format."""
    source: str
    """The model as it was named: a folder or a hub id."""
    source_hash: str
    """`ModelInfo.weights_hash` of it, which is that of the checkpoint too."""
    variant: str | None = None
    """Of the weights, such as `fp16`."""
    versions: dict[str, str]
    """Of the packages that wrote this."""
    config: dict[str, dict[str, Any]]
    """Part -> its config.json."""
    copied: dict[Name, str]
    """File -> SHA-256, of all that is no weights."""
    parts: dict[Name, SourcePart]

    def check(self, folder: Path) -> None:
        """Raises UserError where a copied file is no longer what it was: the hash of the model would not be true."""
        for name, digest in self.copied.items():
            file = folder / name
            if not file.is_file() or sha256([file.read_bytes()]) != digest:
                what = "was changed" if file.is_file() else "is missing"
                raise UserError(f"{file} {what} since `entscale convert` wrote it: change the source and convert that")
        for part, source in self.parts.items():
            for name, size in source.checkpoint.items():
                file = folder / part / CHECKPOINT / name
                if not file.is_file() or file.stat().st_size != size:
                    what = "has another length" if file.is_file() else "is missing"
                    raise UserError(f"{file} {what} since `entscale convert` wrote it: convert the model again")


def read_manifest(folder: Path) -> Manifest | None:
    """That of a converted model, None of another folder. Raises UserError where it can't be read or does not fit."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        manifest = Manifest.model_validate_json(file.read_text())
    except (OSError, ValueError) as error:
        reason = _first(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{file} is no manifest of `entscale convert` ({reason}): convert the model again") from None
    if manifest.version != 1:
        raise UserError(f"{file} is of version {manifest.version}, and this one reads 1: update entscale-jax")
    manifest.check(folder)
    return manifest


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def lengths(folder: Path) -> dict[str, int]:
    """Bytes of each file below the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def sha256(blocks: Iterable[bytes]) -> str:
    """Hexadecimal, of the blocks together."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
