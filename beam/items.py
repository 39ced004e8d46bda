"""What every source makes of an image: its name, where its bytes lie, and its labels."""

import os
from typing import NamedTuple

WHOLE_FILE = -1


class Item(NamedTuple):
    """One listed image. Names are bytes, because a file name need not be text; labels are text.

    key: its name in the source, unique there. path, offset, size: where its bytes lie; offset `WHOLE_FILE`
    means the whole file, with `size` what the listing saw of it (-1: not known). labels, weights: its class
    names, and one weight for each. refusal: (reason, detail) when the listing itself cannot accept it.
    """

    key: bytes
    path: bytes
    offset: int = WHOLE_FILE
    size: int = -1
    labels: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    refusal: tuple[str, str] | None = None


def label_text(name: str) -> str:
    """A class name as one line of valid UTF-8 (other bytes and control characters as escapes)."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text(name: bytes) -> str:
    """A key or path as text; bytes that are not UTF-8 become surrogates, as Python spells file names."""
    return name.decode("utf-8", "surrogateescape")


def name_bytes(name: str) -> bytes:
    """A key or path of this machine as bytes."""
    return os.fsencode(name)
