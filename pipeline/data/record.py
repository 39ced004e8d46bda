"""The one table of what a record holds; writer, parser and TFDS metadata are made from it.

A record is a serialised `tf.train.Example`. A data set is either single-label (`label`) or multi-label
(`labels` with `label_weights`); its manifest says which.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import tensorflow as tf

SINGLE_LABEL = "single"
MULTI_LABEL = "multiple"
LABEL_KINDS = (SINGLE_LABEL, MULTI_LABEL)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a record: `repeated` fields hold any number of values, the others exactly one."""

    name: str
    dtype: tf.DType
    meaning: str
    repeated: bool = False
    label_kinds: tuple[str, ...] = LABEL_KINDS


FIELDS = (
    Field("image", tf.string, "encoded JPEG or PNG, 8-bit RGB, upright"),
    Field("key", tf.string, "the example's name in its source, unique in the data set"),
    Field("id", tf.int64, "first 8 bytes of BLAKE2b of the key, as a signed integer"),
    Field("label", tf.int64, "class index", label_kinds=(SINGLE_LABEL,)),
    Field("labels", tf.int64, "class indices", repeated=True, label_kinds=(MULTI_LABEL,)),
    Field("label_weights", tf.float32, "one weight a label", repeated=True, label_kinds=(MULTI_LABEL,)),
)


def fields(label_kind: str) -> tuple[Field, ...]:
    """The fields of a record of `label_kind` ('single' or 'multiple')."""
    if label_kind not in LABEL_KINDS:
        raise ValueError(f"Unknown label kind {label_kind!r}; expected one of {', '.join(LABEL_KINDS)}.")
    return tuple(field for field in FIELDS if label_kind in field.label_kinds)


def record_id(key: str) -> int:
    """The stable 64-bit id of a key, in [-2**63, 2**63): the same on every machine and in every run."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def serialize(values: Mapping[str, object], label_kind: str) -> bytes:
    """Returns the record with `values` (field name to value), the same bytes for the same values.

    Raises:
      ValueError: a field is missing, unknown, or of the wrong type; names the field and the record's key.
    """
    table = fields(label_kind)
    key = values.get("key", "?")
    if unknown := set(values) - {field.name for field in table}:
        raise ValueError(
            f"Record {key!r}: unknown field {sorted(unknown)}; fields of {label_kind}-label records: "
            f"{[field.name for field in table]}."
        )
    example = tf.train.Example()
    for field in table:
        if field.name not in values:
            raise ValueError(f"Record {key!r}: field {field.name!r} ({field.meaning}) is missing.")
        value = values[field.name]
        try:
            _fill(example.features.feature[field.name], field, value if field.repeated else [value])
        except TypeError as error:
            raise ValueError(
                f"Record {key!r}: field {field.name!r} must hold {_type_name(field)}, found {value!r:.80}."
            ) from error
    return example.SerializeToString(deterministic=True)


def _fill(feature: tf.train.Feature, field: Field, values: Sequence) -> None:
    if field.dtype == tf.string:
        feature.bytes_list.value.extend(
            v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values
        )
    elif field.dtype == tf.int64:
        feature.int64_list.value.extend(values)
    else:
        feature.float_list.value.extend(values)


def _type_name(field: Field) -> str:
    return f"a list of {field.dtype.name}" if field.repeated else f"one {field.dtype.name}"


def parse(serialized: tf.Tensor, names: tf.Tensor, label_kind: str) -> dict[str, tf.Tensor]:
    """Parses a batch of records.

    Args:
      serialized: string [batch].
      names: string [batch], where each record stands (shard and record number), for error messages.
      label_kind: 'single' or 'multiple'.

    Returns:
      Field name to tensor: [batch], or a ragged [batch, None] for a repeated field.

    Raises:
      tf.errors.InvalidArgumentError: a field is missing or of another type; names the field and the record.
    """
    features = {
        field.name: (
            tf.io.RaggedFeature(field.dtype, row_splits_dtype=tf.int64)
            if field.repeated
            else tf.io.FixedLenFeature([], field.dtype)
        )
        for field in fields(label_kind)
    }
    return tf.io.parse_example(serialized, features, example_names=names)
