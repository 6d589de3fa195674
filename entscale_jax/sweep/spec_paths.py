"""Where a spec may read: in its own folder, as what it names ends up in rows and reports that are passed on."""

from pathlib import Path

from ..errors import UserError


def input_path(folder: Path, name: str) -> Path:
    """The file that a spec in `folder` names. Raises UserError where that lies outside the folder, or is hidden there.

    Links are followed first. Models are no inputs in this sense: their weights are read and shown to nobody.
    """
    try:
        root = folder.resolve()
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name!r} is no path of a file: {error}") from error
    if not path.is_relative_to(root):
        raise UserError(f"{name!r} lies outside {root}, the folder of the sweep's file: copy it into that folder")
    if any(part.startswith(".") for part in path.relative_to(root).parts):
        raise UserError(f"{name!r} is a hidden file: copy it to another name beside the sweep's file")
    return path
