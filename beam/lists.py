"""Lists of images: CSV, JSON lines and Parquet with a path and labels in each row."""

import csv
import io
import json
import math
from collections.abc import Iterator

from beam import files
from beam.items import Item, label_text
from beam.options import BuildError

SUFFIXES = (".csv", ".jsonl", ".parquet")
_BATCH = 4096  # rows of a Parquet file in memory at once


def items(path: str, root: str) -> Iterator[Item]:
    """The items of the list at `path`; a row that cannot be used becomes an item that is refused.

    Args:
      path: the list.
      root: the folder, with the slash behind it, by which keys name images whose paths are relative.

    Raises:
      BuildError: the list is empty, unreadable, or lacks a column.
    """
    folder, within = files.folder_of(path), path.removeprefix(root).rpartition("/")[0]
    for number, row in rows(path):
        key = str(row.get("key") or files.join(within, str(row.get("path") or f"{path} row {number}")))
        try:
            yield _item(row, key, folder)
        except (TypeError, ValueError) as error:
            yield Item(key.encode("utf-8", "backslashreplace"), b"", refusal=("bad_row", f"row {number}: {error}"))


def is_multi_label(path: str) -> bool:
    """Whether the list has a column `labels` rather than `label`."""
    return "labels" in next(rows(path))[1]


def _item(row: dict, key: str, folder: str) -> Item:
    name = row.get("path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"path is {name!r:.80}; expected a file's path")
    path = files.join(folder, name)
    item = Item(key.encode("utf-8", "surrogateescape"), path.encode("utf-8", "surrogateescape"), labels=(), weights=())
    names, weights = labels(row)
    item = item._replace(labels=names, weights=weights)
    if not names:
        return item._replace(refusal=("no_label", "the list gives it no label"))
    try:
        return item._replace(size=files.size_of(path))
    except OSError as error:
        return item._replace(refusal=("unreadable", error.strerror or str(error)))


def labels(row: dict) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Class names and weights of a row: `label`, or `labels` (a list, or text with `|`) with `label_weights`.

    Raises:
      ValueError, TypeError: they make no sense.
    """
    if "labels" not in row:
        names, weights = ([] if row.get("label") in (None, "") else [row["label"]]), None
    else:
        names, weights = _several(row["labels"]), _several(row.get("label_weights"))
    weights = [float(weight) for weight in weights] if weights else [1.0] * len(names)
    if len(weights) != len(names):
        raise ValueError(f"{len(names)} labels, but {len(weights)} label_weights")
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"label_weights are {weights!r:.80}; expected finite numbers from 0")
    if not all(isinstance(name, str | int) for name in names):
        raise ValueError(f"labels are {names!r:.80}; expected names")
    return tuple(label_text(str(name)) for name in names), tuple(weights)


def _several(value) -> list:
    if value is None:
        return []
    return [part for part in value.split("|") if part] if isinstance(value, str) else list(value)


def rows(path: str) -> Iterator[tuple[int, dict]]:
    """(number, columns) of each row, as a stream; a row that is no table row is an empty dict.

    Raises:
      BuildError: the list is empty, unreadable, or lacks a column.
    """
    try:
        with files.open_to_read(path) as file:
            found = _READERS[path[path.rindex(".") :]](file)
            first = next(found, None)
            if first is None:
                raise BuildError(f"{path} lists no image: expected a row with path and label for each.")
            _check_columns(path, first[1])
            yield first
            yield from found
    except (OSError, csv.Error) as error:
        raise BuildError(f"{path} cannot be read ({error}): expected a list of images.") from error


def _check_columns(path: str, row: dict) -> None:
    if "path" not in row or not {"label", "labels"} & set(row):
        raise BuildError(
            f"{path}: found the columns {sorted(map(str, row))}; expected 'path' and 'label' (or 'labels')."
        )


def _csv_rows(file) -> Iterator[tuple[int, dict]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(line.replace("\0", "\ufffd") for line in text)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            row = {}
        yield reader.line_num, {k: v for k, v in row.items() if k is not None}


def _jsonl_rows(file) -> Iterator[tuple[int, dict]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = {}
            yield number, row if isinstance(row, dict) else {}


def _parquet_rows(file) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa  # here: other sources do without it
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        wanted = ("path", "key", "label", "labels", "label_weights")
        columns = [name for name in table.schema_arrow.names if name in wanted]
        if "path" not in columns:
            columns = table.schema_arrow.names
        for batch in table.iter_batches(_BATCH, columns=columns):
            for row in _rows_of(batch):
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise OSError(error) from error


def _rows_of(batch) -> list[dict]:
    """The rows of a batch; one whose text is not UTF-8 has no value."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [dict.fromkeys(batch.schema.names)]
        return [row for number in range(len(batch)) for row in _rows_of(batch.slice(number, 1))]


_READERS = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
