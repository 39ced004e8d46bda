"""A `tf.train.Example` as bytes, written without a copy of its largest value.

The bytes are those of the protocol buffer library's deterministic serialisation, which copies every value twice.
"""

import array
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

Kind = Literal["bytes", "float", "int64"]
_LIST = {"bytes": b"\x0a", "float": b"\x12", "int64": b"\x1a"}  # fields 1 to 3 of a Feature
_FIRST, _SECOND = b"\x0a", b"\x12"  # the tags of a message's fields 1 and 2, both with a length


def message(entries: Mapping[str, tuple[bytes, bytes]]) -> list[bytes]:
    """The pieces of a serialised Example, from its features' names and what `entry` returns for them."""
    ordered = [piece for name in sorted(entries) for piece in entries[name]]
    return [_FIRST + _varint(sum(map(len, ordered))), *ordered]


def entry(name: str, kind: Kind, values: Sequence) -> tuple[bytes, bytes]:
    """A feature in an Example: all that comes before its values, and these; a value of bytes is not copied.

    Args:
      name: of the feature.
      kind: of its values.
      values: any number of them; of bytes, exactly one.

    Raises:
      TypeError: a value is of another kind.
      ValueError: an integer does not fit 64 bits.
    """
    encoded = name.encode()
    if kind == "bytes":
        (payload,) = values
        if not isinstance(payload, bytes):
            raise TypeError(f"expected bytes, found {type(payload).__name__}")
    else:
        payload = b"".join(map(_signed, values)) if kind == "int64" else _floats(values)
    before = _FIRST + _varint(len(payload)) if payload or kind == "bytes" else b""
    # From the inside out: the list, the feature with it, the entry with the name.
    for tag in (_LIST[kind], _FIRST + _varint(len(encoded)) + encoded + _SECOND, _FIRST):
        before = tag + _varint(len(before) + len(payload)) + before
    return before, payload


def _floats(values: Iterable[float]) -> bytes:
    packed = array.array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _signed(value: int) -> bytes:
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{number} does not fit 64 bits")
    return _varint(number % 2**64)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes(_groups(number))


def _groups(number: int) -> Iterator[int]:
    """Seven bits at a time, the lowest first; the highest bit says that more follow."""
    while number >= 0x80:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
