"""A page of pictures and tables as one HTML file, which needs nothing beside it and no network."""

import base64
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import jinja2

Cell = str | int | float  # NaN is a number that is not defined


@dataclasses.dataclass(frozen=True)
class Picture:
    """An encoded image, of MIME type `kind`, with its caption."""

    data: bytes
    caption: str
    kind: str = "image/png"

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under column names; `links` gives each text of the first column the address of another page."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def is_number(self, column: int) -> bool:
        """Whether the column holds numbers."""
        return bool(self.rows) and all(not isinstance(row[column], str) for row in self.rows)

    @staticmethod
    def text(cell: Cell) -> str:
        """A cell as a person reads it."""
        if isinstance(cell, float):
            return "–" if math.isnan(cell) else f"{cell:,.4f}"
        return f"{cell:,}" if isinstance(cell, int) else cell


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page: lines of text, then pictures, tables, and `code` that is folded under `code_title`."""

    title: str
    lines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    code: str = ""
    code_title: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page: `numbers` are its most important values, by name."""

    title: str
    lines: Sequence[str]
    numbers: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render(page: Page) -> bytes:
    """The page as HTML in UTF-8; every text of it is escaped."""
    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    text = environment.get_template("page.html").render(page=page)
    return text.encode("utf-8", "backslashreplace")
