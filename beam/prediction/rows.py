"""The rows of a file of predictions, in Parquet or as JSON lines: the same columns and values in both."""

import collections
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from pipeline.files import opened

PARQUET, JSON_LINES = "parquet", "jsonl"
FORMATS = (PARQUET, JSON_LINES)
Columns = dict[str, list]
_FLOATS, _INTEGERS = pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.int32())
# Of an image, or of a record.
_NAMES = ({"image": pyarrow.string()}, {"key": pyarrow.string(), "id": pyarrow.int64()})
_ANSWER = {
    "top_classes": pyarrow.list_(pyarrow.string()),
    "top_probabilities": _FLOATS,
    "valid": pyarrow.bool_(),  # null where the model has not answered
    "error": pyarrow.string(),  # null where there is none
}
# Of `Collector.fields`, but for `likely`: the classes that count as predicted where an example has several.
EVALUATION = {
    "labels": _INTEGERS,
    "label_weights": _FLOATS,
    "label_probabilities": _FLOATS,
    "predicted": pyarrow.int32(),
    "confidence": pyarrow.float32(),
    "top1": pyarrow.bool_(),
    "top5": pyarrow.bool_(),
    "loss": pyarrow.float32(),
    "likely": _INTEGERS,
}


class Counts(NamedTuple):
    """How many examples there are of each kind.

    Attributes:
      predicted: the model has classified them.
      invalid: the model has answered that it cannot use them.
      dead: they could not be read, or failed in the model, also alone.
    """

    predicted: int = 0
    invalid: int = 0
    dead: int = 0

    def __add__(self, other: tuple) -> "Counts":
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def count(valid: Sequence[bool | None]) -> Counts:
    """The counts of examples by their column `valid`."""
    number = collections.Counter(valid)
    return Counts(number[True], number[False], number[None])


def schema(of_records: bool, more: Sequence[str] = (), evaluation: bool = False) -> pyarrow.Schema:
    """Name and type of each column; `more` are those of further outputs, float32 lists."""
    columns = {**_NAMES[of_records], **_ANSWER, **dict.fromkeys(more, _FLOATS)}
    return pyarrow.schema({**columns, **(EVALUATION if evaluation else {})})


def encode(columns: Columns, schema: pyarrow.Schema, form: str) -> bytes:
    """The content of a file; the same bytes for the same values."""
    if form == PARQUET:
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns, schema), buffer)
        return buffer.getvalue().to_pybytes()
    values = zip(*(map(_plain, columns[name]) for name in schema.names), strict=True)
    lines = (json.dumps(dict(zip(schema.names, row, strict=True)), ensure_ascii=False) for row in values)
    return "".join(line + "\n" for line in lines).encode()


def _plain(value: Any) -> Any:
    """A value as JSON has it: float32 with as many digits as tell it apart."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value] if value.dtype == np.float32 else value.tolist()
    if isinstance(value, np.float32):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def read(path: str, names: Sequence[str]) -> Columns:
    """Columns of a file of predictions.

    Raises:
      OSError, tf.errors.OpError: there is no file.
      ValueError: it is not one of predictions.
    """
    with opened(path, "rb") as file:
        if path.endswith(PARQUET):
            buffer = pyarrow.BufferReader(file.read())
            return pyarrow.parquet.read_table(buffer, columns=list(names)).to_pydict()
        columns: Columns = {name: [] for name in names}
        for row in map(json.loads, file):
            for name in names:
                columns[name].append(row[name])
    return columns


def counts_of(path: str) -> Counts | None:
    """The counts of a file of predictions; None where there is no such file, or a damaged one."""
    import tensorflow as tf  # here: flags are checked without it, which takes seconds to import

    try:
        return count(read(path, ["valid"])["valid"])
    except (FileNotFoundError, tf.errors.NotFoundError, ValueError):
        return None
