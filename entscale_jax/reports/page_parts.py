"""What pages are made of: templates, the files of their script, and data that no caption can break out of."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .gallery import SizeGallery

# `<` could end the script or begin a comment in it; JSON has another way to write each of them.
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


@dataclass(frozen=True)
class Script:
    """Code for one `<script>` element."""

    text: Markup

    @property
    def source(self) -> str:
        """How a content security policy names exactly this code."""
        return f"'sha256-{base64.b64encode(sha256(self.text.encode()).digest()).decode()}'"


def templates(**filters: Callable[..., str]) -> Environment:
    """Of the templates: every text is escaped, and a name that is not given is an error."""
    made = Environment(
        loader=PackageLoader("entscale_jax.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made


def script(*names: str) -> Script:
    """The files of `templates` one after the other, in one scope of their own."""
    folder = files("entscale_jax.reports") / "templates"
    code = "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
    return Script(Markup(f'(() => {{\n"use strict";\n{code}}})();\n'))


def embedded_json(value: Any) -> Markup:
    """JSON that can stand within a `<script>` element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.translate(_ESCAPED))


def gallery_data(galleries: Sequence[SizeGallery], methods: Sequence[str]) -> dict[str, Any]:
    """The cards as the script reads them: `templates/report/cards.js`."""
    sizes = [
        {
            "label": gallery.label,
            "control": gallery.is_control,
            "width": gallery.size.width,
            "height": gallery.size.height,
            "shownWidth": gallery.width,
            "shownHeight": gallery.height,
        }
        for gallery in galleries
    ]
    cards = [{**asdict(card), "size": number} for number, gallery in enumerate(galleries) for card in gallery.cards]
    return {"methods": list(methods), "sizes": sizes, "cards": cards}
