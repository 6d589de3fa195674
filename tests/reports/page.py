"""Reads a report as a browser would, so that tests look at the page and not at its template."""

import json
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements, texts, tables, references and data of a page. Unclosed elements are an error."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.data: dict = {}
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self._script: dict[str, str | None] = {}
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def row(self, *start: str) -> list[str]:
        """The only row of all tables that begins with these cells."""
        (found,) = [row for table in self.tables for row in table if row[: len(start)] == list(start)]
        return found

    @property
    def pictures(self) -> list[dict]:
        """Of each card those that were drawn, with the caption and seed of the card."""
        return [picture for picture in self.all_pictures if picture["state"] == "drawn"]

    @property
    def all_pictures(self) -> list[dict]:
        """Of each card all, drawn or not."""
        cards = self.data["cards"]
        return [
            {**picture, **{key: card[key] for key in ("prompt", "seed")}}
            for card in cards
            for picture in card["pictures"]
        ]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)
        values = dict(attrs)
        self.references += [
            values[name] for name in ("src", "href", "xlink:href", "srcset", "action") if values.get(name)
        ]
        if tag == "script":
            self._script = values
        if values.get("aria-label"):
            self.labels.append(values["aria-label"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join("".join(self._cell or []).split()))
            self._cell = None

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            return
        if self._open and self._open[-1] == "script":
            if self._script.get("type") == "application/json":
                self.data = json.loads(data)
            else:
                self.scripts.append(data)
            return
        self.text += data
        if self._cell is not None:
            self._cell.append(data)
