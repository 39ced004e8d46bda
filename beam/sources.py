"""Where labelled images come from: a folder tree or a list, as a stream of items.

Names are bytes in an item, because a file name need not be text; labels are text.
"""

import csv
import json
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

from beam.options import BuildError

WHOLE_FILE = -1


class Item(NamedTuple):
    """One listed image.

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


def is_list(path: str) -> bool:
    """Whether `path` names a list of images rather than a folder."""
    return path.endswith((".csv", ".jsonl"))


def check(path: str) -> None:
    """Looks at the source before any work.

    Raises:
      BuildError: it is missing, empty, or a class folder in it holds no file.
    """
    if not os.path.exists(path):
        raise BuildError(f"--input={path} does not exist: expected a folder of class folders, or a list.")
    if is_list(path):
        next(_rows(path), None)
        return
    if not os.path.isdir(path):
        raise BuildError(f"--input={path} is a file: expected a folder of class folders, or a .csv or .jsonl list.")
    classes = class_folders(path)
    if not classes:
        raise BuildError(f"--input={path} holds no class folders: expected {path}/CLASS/IMAGE.jpg and the like.")
    if empty := [name for name in classes if next(_files(os.path.join(path, name)), None) is None]:
        raise BuildError(
            f"--input={path}: {len(empty)} of {len(classes)} class folders hold no image ({_some(empty)}): "
            "add images, or remove the folder."
        )


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(map(repr, names[:count])) + (", ..." if len(names) > count else "")


def class_folders(root: str) -> list[str]:
    """The names of the class folders below `root`, sorted; hidden ones (`.name`) are no classes."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def label_text(name: str) -> str:
    """A class name as one line of valid UTF-8 (other bytes and control characters as escapes)."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def parts(path: str) -> list[str]:
    """What can be listed on its own: the list file, or each class folder and the root's own files."""
    return [path] if is_list(path) else ["", *class_folders(path)]


def items(path: str, part: str) -> Iterator[Item]:
    """The items of one of the `parts` of the source at `path`."""
    yield from _list_items(path) if is_list(path) else _folder_items(path, part)


def _folder_items(root: str, folder: str) -> Iterator[Item]:
    if folder:
        labels = (label_text(folder),)
        for file, size, refusal in _files(os.path.join(root, folder)):
            key = os.fsencode(os.path.relpath(file, root))
            yield Item(key, os.fsencode(file), size=size, labels=labels, weights=(1.0,), refusal=refusal)
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.is_dir() and not entry.name.startswith("."):
                refusal = ("no_label", "lies beside the class folders, not in one")
                yield Item(os.fsencode(entry.name), os.fsencode(entry.path), refusal=refusal)


def _files(folder: str, above: tuple = ()) -> Iterator[tuple[str, int, tuple[str, str] | None]]:
    """(path, size, refusal) of every file below `folder`, through symbolic links but never in a circle."""
    try:
        identity = (status := os.stat(folder)).st_dev, status.st_ino
        if identity in above:
            yield folder, -1, ("unreadable", "symbolic link to a folder that holds it")
            return
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith(".")]
    except OSError as error:
        yield folder, -1, ("unreadable", error.strerror or str(error))
        return
    for entry in found:
        try:
            if entry.is_dir():
                yield from _files(entry.path, (*above, identity))
            elif entry.is_file():
                yield entry.path, entry.stat().st_size, None
            else:
                yield entry.path, -1, ("unreadable", "neither a file nor a folder")
        except OSError as error:
            yield entry.path, -1, ("unreadable", error.strerror or str(error))


def _list_items(path: str) -> Iterator[Item]:
    folder = os.path.dirname(os.path.abspath(path))
    for number, row in _rows(path):
        try:
            yield _row_item(row, folder)
        except (KeyError, TypeError, ValueError) as error:
            key = str(row.get("key") or row.get("path") or f"line {number}")
            yield Item(key.encode("utf-8", "backslashreplace"), b"", refusal=("bad_row", f"line {number}: {error}"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _row_item(row: dict, folder: str) -> Item:
    name = row.get("path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"path is {name!r:.80}; expected a file's path")
    key, file = _bytes(str(row.get("key") or name)), os.path.join(folder, name)
    labels, weights = _labels(row)
    refusal = None if labels else ("no_label", "the list gives it no label")
    try:
        size = os.stat(file).st_size
    except OSError as error:
        return Item(key, _bytes(file), labels=labels, weights=weights, refusal=_unreadable(error))
    return Item(key, _bytes(file), size=size, labels=labels, weights=weights, refusal=refusal)


def _unreadable(error: OSError) -> tuple[str, str]:
    return "unreadable", error.strerror or str(error)


def _labels(row: dict) -> tuple[tuple[str, ...], tuple[float, ...]]:
    if "labels" in row:
        names, weights = row["labels"], row.get("label_weights")
        if isinstance(names, str):
            names = [n for n in names.split("|") if n]
        if isinstance(weights, str):
            weights = [w for w in weights.split("|") if w]
        weights = [1.0] * len(names) if not weights else [float(w) for w in weights]
        if len(weights) != len(names):
            raise ValueError(f"{len(names)} labels, but {len(weights)} label_weights")
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"label_weights are {weights!r:.80}; expected finite numbers from 0")
    else:
        names = [] if row.get("label") in (None, "") else [row["label"]]
        weights = [1.0] * len(names)
    if not all(isinstance(n, str | int) for n in names):
        raise ValueError(f"labels are {names!r:.80}; expected names")
    return tuple(label_text(str(n)) for n in names), tuple(weights)


def is_multi_label(path: str) -> bool:
    """Whether the source gives `labels` (any number an image) rather than one `label`."""
    if not is_list(path):
        return False
    _, first = next(_rows(path), (0, {}))
    return "labels" in first


def _rows(path: str) -> Iterator[tuple[int, dict]]:
    """(line number, columns) of each row; a row that is not a table row is an empty dict.

    Raises:
      BuildError: the list is empty, or lacks a column.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = _csv_rows(file) if path.endswith(".csv") else _jsonl_rows(file)
        first = next(rows, None)
        if first is None:
            raise BuildError(f"--input={path} lists no image: expected a row with path and label for each.")
        columns = first[1]
        if "path" not in columns or not {"label", "labels"} & set(columns):
            raise BuildError(
                f"--input={path}: found the columns {sorted(map(str, columns))}; "
                "expected 'path' and 'label' (or 'labels')."
            )
        yield first
        yield from rows


def _csv_rows(file) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(line.replace("\0", "\ufffd") for line in file)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            row = {}
        yield reader.line_num, {k: v for k, v in row.items() if k is not None}


def _jsonl_rows(file) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = {}
            yield number, row if isinstance(row, dict) else {}
