"""Executes notebooks of this folder again, in place, and keeps nothing in them that tells of the machine.

python notebooks/execute.py [NAME ...]     # such as quickstart; all where none is named
"""

import argparse
import base64
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
LIMIT = 600
"""Seconds that a cell may take before the notebook is given up."""
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
LANGUAGE = {"language_info": {"name": "python"}}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    for path in paths(parser.parse_args().names):
        with tempfile.TemporaryDirectory() as folder:
            executed = execute(path, Path(folder))
        nbformat.write(clean(executed), path)
        print(f"{path.name}: {path.stat().st_size // 1024} KiB", flush=True)


def paths(names: list[str] | None = None) -> list[Path]:
    """The notebooks of these names, or all of them."""
    return [FOLDER / f"{name}.ipynb" for name in names] if names else sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path, environment: Mapping[str, str] | None = None) -> NotebookNode:
    """The notebook of a file with the outputs of a new kernel, which works in `folder` and leaves its files there.

    Args:
        path: of the notebook, which is not changed.
        folder: an empty one.
        environment: variables of the kernel beside those of this process.

    Raises CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name=KERNEL["kernelspec"]["name"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env={**os.environ, **(environment or {})})


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook without the metadata of whoever ran it, its pictures packed tighter."""
    notebook.metadata = NotebookNode(KERNEL | LANGUAGE)
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key == "tags"})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = pack(output.data["image/png"])
                output.data.pop("image/jpeg", None)  # the same picture again, of Pillow's
    return notebook


def pack(encoded: str) -> str:
    """The same pixels of a PNG in base64, without the notes of the program that wrote it."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        opaque = picture.convert("RGBA").getextrema()[3] == (255, 255)
        pixels = picture.convert("RGB") if opaque else picture.convert("RGBA")
    packed = io.BytesIO()
    pixels.save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


if __name__ == "__main__":
    main()
