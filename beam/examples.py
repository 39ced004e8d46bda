"""A listed image: its key, where its bytes are stored, and its labels."""

import unicodedata
from typing import Generic, TypeVar

from typing_extensions import NamedTuple  # of Python 3.10, the one in typing cannot be generic

from beam.splits import TRAIN

WHOLE_FILE = -1
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: control, surrogate, line and paragraph separator
Label = TypeVar("Label", str, int)


class SourceExample(NamedTuple, Generic[Label]):
    """One listed image. Names are bytes, because a file name need not be text.

    Between workers it is a plain tuple (`tuple(example)`, `SourceExample._make(values)`), which takes 35 bytes less.

    Attributes:
      key: its name in the source, unique there.
      path, offset, size: where its bytes are stored. With offset `WHOLE_FILE` they are the whole file, and `size` is
        what the listing says of it; -1: not known.
      labels: class names from a source, `SourceExample[str]`; class indices after `ingest.to_shard`,
        `SourceExample[int]`.
      weights: one for each label.
      refusal: (reason, detail) where the listing itself cannot accept it.
      split: where it belongs; images of the train split may be held out for validation. Shards have it in their name.
    """

    key: bytes
    path: bytes
    offset: int = WHOLE_FILE
    size: int = -1
    labels: tuple[Label, ...] = ()
    weights: tuple[float, ...] = ()
    refusal: tuple[str, str] | None = None
    split: str = TRAIN

    @property
    def location(self) -> tuple[bytes, bytes, int, int]:
        """Key, path, offset and size."""
        return self[:4]


def to_record(example: SourceExample[int], image: bytes, label_kind: str) -> bytes:
    """The serialised record of an example whose labels are class indices, with the encoded `image`."""
    from pipeline.data import record  # here: flags are checked without TensorFlow, which takes seconds to import

    values = {
        "image": image,
        "key": example.key,
        "id": record.record_id(text(example.key)),
        "label": example.labels[0],
        "labels": example.labels,
        "label_weights": example.weights,
    }
    return record.serialize({field.name: values[field.name] for field in record.fields(label_kind)}, label_kind)


def label_text(name: str) -> str:
    """A class name as one line of valid UTF-8 (other bytes, control characters and ends of lines as escapes)."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED else c for c in text)


def text(name: bytes) -> str:
    """A key or path as text; bytes that are not UTF-8 become surrogates, as in Python's file names."""
    return name.decode("utf-8", "surrogateescape")


def name_bytes(name: str) -> bytes:
    """A key or path as bytes: the inverse of `text`.

    Raises:
      ValueError: it holds a surrogate that stands for no byte.
    """
    return name.encode("utf-8", "surrogateescape")
