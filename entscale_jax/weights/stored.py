"""All tensors of a part's files by key, and whether they are where the index of the shards says."""

from pathlib import Path

from ..errors import UserError
from .files import Format, WeightFiles
from .msgpack_file import open_msgpack
from .safetensors_file import StoredTensor, open_safetensors


def read_stored(files: WeightFiles) -> dict[str, StoredTensor]:
    """Key -> tensor. Raises UserError for a file that can't be read, and for an index that does not fit its shards."""
    found: dict[str, StoredTensor] = {}
    for file in files.files:
        for key, tensor in _open(files, file).items():
            if key in found:
                raise UserError(f"{files.index}: {key} is in two shards, {found[key].file.name} and {file.name}")
            found[key] = tensor
    for key, shard in files.shards.items():
        if key not in found or found[key].file != shard:
            raise UserError(f"{files.index} names {key} in {shard.name}, which does not hold it: fetch it again")
    return found


def _open(files: WeightFiles, file: Path) -> dict[str, StoredTensor]:
    if files.format is Format.SAFETENSORS:
        return open_safetensors(file)
    if files.format is Format.MSGPACK:
        return open_msgpack(file)
    from .pickled import open_pickled

    return open_pickled(file)
