"""A measurement of a model as a command that writes one section of a document."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError
from ..marks import find_section, replace_section
from ..pipeline import TextToImage


def write_section(
    name: str, measure: Callable[[TextToImage, Path], Sequence[str]], arguments: Sequence[str] | None = None
) -> None:
    """Runs `python -m MODULE DOCUMENT [--model MODEL]`.

    Args:
        name: of the section that the document has for it.
        measure: the model and the document's path to the section's lines.
        arguments: the command line's if None.

    A user's mistake is one line on standard error and exit code 2, before anything is measured where it shows by then.
    """
    parser = argparse.ArgumentParser(description=f"Measures a model and writes section {name!r} of a document.")
    parser.add_argument("document", type=Path, help="Markdown with the section's marks, such as docs/scenes.md")
    parser.add_argument("--model", default="scenes", help="a diffusers folder, or scenes, the built-in model")
    options = parser.parse_args(arguments)
    try:
        find_section(options.document, name)
        replace_section(options.document, name, measure(TextToImage.from_pretrained(options.model), options.document))
    except UserError as error:
        parser.exit(2, f"{error}\n")
