"""The file of class names in an export: one a line, in label order."""

import re
from collections.abc import Iterable

from pipeline.files import opened

FILE = "labels.txt"


def label(class_name: str) -> str:
    """A class name as a line of the file."""
    return re.sub(r"[\r\n]+", " ", class_name)


def content(class_names: Iterable[str]) -> bytes:
    """The content of the file."""
    return "".join(label(name) + "\n" for name in class_names).encode("utf-8", "surrogateescape")


def read(path: str) -> list[str]:
    """The labels in the file at `path`, local or remote."""
    with opened(path, "rb") as file:
        return file.read().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
