"""TensorFlow Serving's JSON: requests to arrays, and arrays to answers.

Row form: `{"instances": [ROW, ...]}` to `{"predictions": [ROW, ...]}`. A row is an object by name, or the value itself
where there is one output; with one input either will do.
Column form: `{"inputs": COLUMNS}` to `{"outputs": COLUMNS}`, where the values have the batch first.
A string is text, or `{"b64": "..."}` where it is bytes.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.serving.servable import DEFAULT

Arrays = dict[str, np.ndarray]
_BYTES = "_bytes"  # the end of the names of outputs that are bytes, not text
_B64 = "b64"
_KINDS = {"u": "ui", "i": "ui", "f": "uif", "b": "b"}  # of tensors, and of the JSON that each takes
_SHOWN = 80


class RequestError(ValueError):
    """A request that has no answer; the message says why."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A body that has been parsed: `fields` has `instances` or `inputs`."""

    signature: str
    fields: Mapping[str, Any]

    @property
    def in_rows(self) -> bool:
        """Whether it is in row form, and its answer too."""
        return "instances" in self.fields


def parse(body: bytes) -> Request:
    """Parses the body of a `:predict` request; raises a RequestError."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise RequestError(f"JSON Parse error: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError(f"JSON Value: {_shown(fields)} Is not object")
    signature = fields.get("signature_name", "")
    if not isinstance(signature, str):
        raise RequestError(f"'signature_name' key must be a string value, not {_shown(signature)}.")
    if ("instances" in fields) == ("inputs" in fields):
        both = "instances" in fields
        raise RequestError("Give 'instances' or 'inputs', not both." if both else "Missing 'inputs' or 'instances' key")
    return Request(signature or DEFAULT, fields)


def arrays(request: Request, specs: Mapping[str, tf.TensorSpec]) -> Arrays:
    """The inputs of a signature, by name, with equally many rows each; raises a RequestError."""
    fields = request.fields
    columns = _columns_of_rows(fields["instances"], specs) if request.in_rows else _columns(fields["inputs"], specs)
    result = {name: _array(name, columns[name], spec) for name, spec in specs.items()}
    rows = {name: len(array) for name, array in result.items()}
    if len(set(rows.values())) > 1:
        raise RequestError(f"The inputs have different numbers of rows: {rows}.")
    return result


def answer(outputs: Arrays, in_rows: bool) -> bytes:
    """The body of an answer: numbers are as short as their types allow, NaN and infinities as Python's `json` has them.

    Text that is not UTF-8 is not changed, so that such an answer is no UTF-8 either.
    """
    values = {name: _values(array, name.endswith(_BYTES)) for name, array in outputs.items()}
    columns = next(iter(values.values())) if len(values) == 1 else values
    if not in_rows:
        result = {"outputs": columns}
    elif len(values) == 1:
        result = {"predictions": columns}
    else:
        result = {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _columns_of_rows(instances: Any, specs: Mapping[str, tf.TensorSpec]) -> Mapping[str, list]:
    if not isinstance(instances, list):
        raise RequestError(f"Expecting 'instances' to be a list, not {_shown(instances)}.")
    if not instances:
        raise RequestError("No values in 'instances' array")
    if not _is_object(instances[0]):
        if len(specs) > 1:
            raise RequestError(f"'instances' is a plain list, expecting a list of objects with keys {sorted(specs)}.")
        for i, value in enumerate(instances):
            if _is_object(value):
                raise RequestError(f"Expecting a value or list but got an object at item {i} of 'instances'.")
        return {next(iter(specs)): instances}
    for i, row in enumerate(instances):
        if not _is_object(row) or set(row) != set(specs):
            raise RequestError(f"Item {i} of 'instances' is {_shown(row)}, expecting an object with {sorted(specs)}.")
    return {name: [row[name] for row in instances] for name in specs}


def _columns(inputs: Any, specs: Mapping[str, tf.TensorSpec]) -> Mapping[str, Any]:
    if not _is_object(inputs):
        if len(specs) > 1:
            raise RequestError(f"'inputs' is a plain value, expecting an object with keys {sorted(specs)}.")
        return {next(iter(specs)): inputs}
    if missing := sorted(set(specs) - set(inputs)):
        raise RequestError(f"Missing named input: {', '.join(missing)} in 'inputs' object.")
    return inputs


def _array(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    items = _bytes_of(value) if spec.dtype == tf.string else value
    try:
        found = np.array(items, object if spec.dtype == tf.string else None)
        rectangular = spec.dtype != tf.string or all(isinstance(item, bytes) for item in found.flat)
    except ValueError:  # rows of different shapes, but for objects
        rectangular = False
    if not rectangular:
        raise RequestError(f"The rows of input {name} have different shapes.")
    if not spec.shape.is_compatible_with(found.shape):
        shape = [-1 if size is None else size for size in spec.shape.as_list()]
        raise RequestError(f"Input {name} has shape {list(found.shape)}, expecting {shape}, where -1 is any size.")
    if spec.dtype == tf.string:
        return found
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    if found.size and found.dtype.kind not in _KINDS.get(dtype.kind, ""):
        raise RequestError(f"Input {name} is {_shown(value)}, which is not of expected type: {spec.dtype.name}.")
    limits = np.iinfo(dtype) if dtype.kind in "ui" else None
    if limits and found.size and not limits.min <= found.min() <= found.max() <= limits.max:
        raise RequestError(f"Input {name} has values outside {limits.min} to {limits.max}, those of {spec.dtype.name}.")
    return found.astype(dtype)


def _bytes_of(value: Any) -> Any:
    """`value` with its strings, in lists or not, as bytes."""
    if isinstance(value, list):
        return [_bytes_of(item) for item in value]
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and not _is_object(value):
            text = "".join(value[_B64].split())
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise RequestError(f"Unable to decode {_shown(value)}: expecting UTF-8 text, or base64.") from None
    raise RequestError(f"JSON Value: {_shown(value)} is not of expected type: string")


def _is_object(value: Any) -> bool:
    """Whether `value` is a JSON object that is no string in base64."""
    return isinstance(value, dict) and not (set(value) == {_B64} and isinstance(value[_B64], str))


def _values(array: np.ndarray, is_bytes: bool) -> list:
    if array.dtype == object:
        return [_values(item, is_bytes) if isinstance(item, np.ndarray) else _text(item, is_bytes) for item in array]
    return (array.astype("U").astype(float) if array.dtype.kind == "f" else array).tolist()


def _text(value: bytes, is_bytes: bool) -> Any:
    return {_B64: base64.b64encode(value).decode()} if is_bytes else value.decode("utf-8", "surrogateescape")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
