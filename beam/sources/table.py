"""Tables of images: CSV, JSON lines and Parquet with a path and labels in each row."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from beam import files, splits
from beam.errors import BuildError
from beam.examples import SourceExample, label_text, name_bytes
from beam.sources.source import Source

_BATCH = 4096  # rows of a Parquet file in memory at once


class TableSource(Source):
    """Tables, each of which is a part."""

    name = "a table"
    help = "tables (.csv, .jsonl, .parquet)"

    @classmethod
    def recognizes(cls, path: str) -> bool:
        return path.endswith(tuple(_READERS))

    @classmethod
    def open(cls, path: str, flags: Mapping[str, str]) -> "TableSource":
        tables = files.match(path)
        first_rows = [next(_rows(table))[1] for table in tables]
        return cls(path, tables, "labels" in first_rows[0], root=files.common_folder(tables))

    def examples(self, part: str) -> Iterator[SourceExample]:
        """The rows of a table; a row that cannot be used becomes an example with a refusal.

        Raises:
          BuildError: the table is empty, unreadable, or lacks a column.
        """
        folder, within = files.folder_of(part), part.removeprefix(self.root).rpartition("/")[0]
        for number, row in _rows(part):
            key = str(row.get("key") or files.join(within, str(row.get("path") or f"{part} row {number}")))
            try:
                yield _example(row, key, folder, self.is_split)
            except (TypeError, ValueError) as error:
                refusal = "bad_row", f"row {number}: {error}"
                yield SourceExample(key.encode("utf-8", "backslashreplace"), b"", refusal=refusal)


def _example(row: dict, key: str, folder: str, is_split: bool) -> SourceExample:
    name = row.get("path")
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"path is {name!r:.80}; expected a file's path")
    path = files.join(folder, name)
    labels, weights = labels_and_weights(row)
    split = _split(row) if is_split else splits.TRAIN
    example = SourceExample(name_bytes(key), name_bytes(path), labels=labels, weights=weights, split=split)
    if not labels:
        return example._replace(refusal=("no_label", "the table gives it no label"))
    try:
        return example._replace(size=files.size_of(path))
    except OSError as error:
        return example._replace(refusal=("unreadable", error.strerror or str(error)))


def _split(row: dict) -> str:
    """The split that a row names; train without a name.

    Raises:
      ValueError: it names none.
    """
    name = row.get("split")
    if name in (None, ""):
        return splits.TRAIN
    if (split := splits.named(str(name))) is None:
        raise ValueError(
            f"split is {name!r:.80}; expected train, validation or test (--splits=none ignores the column)"
        )
    return split


def labels_and_weights(row: dict) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Class names and weights of a row: `label`, or `labels` (a list, or text with `|`) with `label_weights`.

    A name that is given twice counts once.

    Raises:
      ValueError, TypeError: they are of the wrong type, do not match, or are not finite.
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
    merged: dict[str, float] = {}
    for name, weight in zip(map(label_text, map(str, names)), weights, strict=True):
        if merged.setdefault(name, weight) != weight:
            raise ValueError(f"label {name!r:.80} has the weights {merged[name]} and {weight}; expected one")
    return tuple(merged), tuple(merged.values())


def _several(value: Any) -> list:
    if value is None:
        return []
    return [part for part in value.split("|") if part] if isinstance(value, str) else list(value)


def _rows(path: str) -> Iterator[tuple[int, dict]]:
    """(number, columns) of each row, as a stream; a row that is not valid is an empty dict.

    Raises:
      BuildError: the table is empty, unreadable, or lacks a column.
    """
    try:
        with files.open_to_read(path) as file:
            rows = _READERS[path[path.rindex(".") :]](file)
            first = next(rows, None)
            if first is None:
                raise BuildError(f"{path} lists no image: expected a row with path and label for each.")
            if "path" not in first[1] or not {"label", "labels"} & set(first[1]):
                columns = sorted(map(str, first[1]))
                raise BuildError(f"{path}: found the columns {columns}; expected 'path' and 'label' (or 'labels').")
            yield first
            yield from rows
    except (OSError, csv.Error) as error:
        raise BuildError(f"{path} cannot be read ({error}): expected a table of images.") from error


def _csv_rows(file: BinaryIO) -> Iterator[tuple[int, dict]]:
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


def _jsonl_rows(file: BinaryIO) -> Iterator[tuple[int, dict]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = {}
            yield number, row if isinstance(row, dict) else {}


def _parquet_rows(file: BinaryIO) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa  # here: other sources do not need it
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        wanted = ("path", "key", "label", "labels", "label_weights", "split")
        columns = [name for name in table.schema_arrow.names if name in wanted]
        if "path" not in columns:
            columns = table.schema_arrow.names
        for batch in table.iter_batches(_BATCH, columns=columns):
            for row in _batch_rows(batch):
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise OSError(error) from error


def _batch_rows(batch: Any) -> list[dict]:
    """The rows of a `pyarrow.RecordBatch`; one whose text is not UTF-8 has no value."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [dict.fromkeys(batch.schema.names)]
        return [row for number in range(len(batch)) for row in _batch_rows(batch.slice(number, 1))]


_READERS = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
