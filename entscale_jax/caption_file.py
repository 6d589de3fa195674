"""Captions from a text file, one a line, or as they were typed."""

from pathlib import Path

from .errors import UserError


def read_caption_file(path: Path) -> list[str]:
    """Its lines that are not empty. Raises UserError where there are none, and where it can't be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"prompts: {path} can't be read ({reason}): give a text file with one caption a line"
        ) from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"prompts: {path} has no caption: write one a line")
    return captions


def is_caption_file(source: str) -> bool:
    """Whether what a user gave names a file: one word with a suffix or in a folder. A caption has neither."""
    return " " not in source and (bool(Path(source).suffix) or "/" in source)


def captions_of(source: str) -> list[str]:
    """Of a file that `source` names, or `source` itself. Raises UserError as `read_caption_file` does."""
    return read_caption_file(Path(source)) if is_caption_file(source) else [source]
