"""The one table of what a record holds: writer, parser, placeholder and TFDS metadata are made from it.

A record is a serialised `tf.train.Example`. A data set is either single-label (`label`) or multi-label
(`labels` with `label_weights`); its manifest says which.
"""

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from PIL import Image

SINGLE_LABEL = "single"
MULTI_LABEL = "multiple"
LABEL_KINDS = (SINGLE_LABEL, MULTI_LABEL)


def _black_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a record: `repeated` fields hold any number of values, the others exactly one.

    Attributes:
      name: in the record.
      dtype: of a value.
      tfds: what TFDS takes a value for: 'image', 'text', 'class' or 'number'.
      placeholder: the value in an empty slot of a batch, which is decoded like any other.
      meaning: for error messages.
      repeated: whether the field holds any number of values.
      label_kinds: of the data sets whose records have the field.
    """

    name: str
    dtype: tf.DType
    tfds: str
    placeholder: object
    meaning: str
    repeated: bool = False
    label_kinds: tuple[str, ...] = LABEL_KINDS


FIELDS = (
    Field("image", tf.string, "image", _black_png(), "encoded JPEG or PNG, 8-bit RGB, upright"),
    Field("key", tf.string, "text", "", "the example's name in its source, unique in the data set"),
    Field("id", tf.int64, "number", 0, "first 8 bytes of BLAKE2b of the key, as a signed integer"),
    Field("label", tf.int64, "class", 0, "class index", label_kinds=(SINGLE_LABEL,)),
    Field("labels", tf.int64, "class", [0], "class indices", repeated=True, label_kinds=(MULTI_LABEL,)),
    Field(
        "label_weights", tf.float32, "number", [0.0], "one weight a label", repeated=True, label_kinds=(MULTI_LABEL,)
    ),
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


def serialize(values: Mapping[str, Any], label_kind: str) -> bytes:
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


def decode(serialized: bytes) -> dict[str, Any]:
    """Field name to value of one record, as `serialize` takes them; strings as bytes.

    Raises:
      ValueError: it is no `tf.train.Example`, or has no image and key.
    """
    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except Exception as error:  # the protocol buffer library raises a type of its own
        raise ValueError(f"not a record: {error}") from error
    values = {}
    for field in FIELDS:
        if field.name in features:
            found = list(_values(features[field.name], field))
            values[field.name] = found if field.repeated or not found else found[0]
    if not values.get("image") or "key" not in values:
        raise ValueError(f"not a record: it holds {sorted(features)}")
    return values


def placeholder(label_kind: str) -> bytes:
    """The record that stands in an empty slot of a batch: it is decoded like any other, and weighs nothing."""
    return serialize({field.name: field.placeholder for field in fields(label_kind)}, label_kind)


def tfds_features(label_kind: str, classes: Sequence[str]) -> Any:
    """The features of a record as a `tfds.features.FeaturesDict`."""
    from tensorflow_datasets import features  # here: who reads or writes records does without it

    def feature(field: Field) -> features.FeatureConnector:
        one = {
            "image": lambda: features.Image(shape=(None, None, 3)),
            "text": features.Text,
            "class": lambda: features.ClassLabel(names=list(classes)),
            "number": lambda: features.Scalar(field.dtype),
        }[field.tfds]()
        return features.Sequence(one) if field.repeated else one

    return features.FeaturesDict({field.name: feature(field) for field in fields(label_kind)})


def _values(feature: tf.train.Feature, field: Field) -> Any:
    """The list of the protocol buffer that holds the field's values."""
    if field.dtype == tf.string:
        return feature.bytes_list.value
    return feature.int64_list.value if field.dtype == tf.int64 else feature.float_list.value


def _fill(feature: tf.train.Feature, field: Field, values: Sequence) -> None:
    if field.dtype == tf.string:
        values = [v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values]
    _values(feature, field).extend(values)


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


def image(serialized: tf.Tensor) -> tf.Tensor:
    """The encoded image of one record, string [], whatever its other fields; raises as `parse` does."""
    return tf.io.parse_single_example(serialized, {"image": tf.io.FixedLenFeature([], tf.string)})["image"]
