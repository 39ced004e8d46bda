"""Duplicate images: exact ones by their bytes, near ones by perceptual hash; within a set and against others.

The perceptual hash is ImageHash's `phash`, 64 bits; two images are near duplicates when their hashes differ in
at most `distance` bits. Pairs that close are found without comparing all: cut the 64 bits into `distance + m`
bands, and at least m bands are equal (a pair differs in at most `distance` of them), so only images that share
m bands are compared (Manku, Jain and Sarma, *Detecting near-duplicates for web crawling*, 2007).
"""

import codecs
import csv
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from beam.items import name_bytes, text

EXACT_ONLY = -1  # a distance below every distance
SUFFIX = ".hashes"
_SHARED_BANDS = 2
_COLUMNS = ("key", "path", "offset", "size", "content", "perceptual")


class Row(NamedTuple):
    """An image's hashes: where its bytes lie (see `items.Item`), 16 bytes of its content's hash, 64 bits of looks."""

    key: bytes
    path: bytes
    offset: int
    size: int
    content: bytes
    perceptual: int


class Pair(NamedTuple):
    """`image` is a duplicate of `other`: `reason` is `duplicate` or `near_duplicate`, `distance` in bits."""

    image: Row
    other: Row
    reason: str
    distance: int

    @classmethod
    def of(cls, values: tuple) -> "Pair":
        """The pair that `plain` gave."""
        image, other, reason, distance = values
        return cls(Row(*image), Row(*other), reason, distance)

    def plain(self) -> tuple:
        """The pair as plain tuples, for Beam: a worker may decode them before it has this module."""
        return tuple(self.image), tuple(self.other), self.reason, self.distance

    def as_json(self) -> dict:
        """The pair as a row of `duplicates.jsonl`, with where the bytes of both lie."""
        places = {
            f"{which}{column}": text(value) if isinstance(value, bytes) else value
            for which, row in (("", self.image), ("other_", self.other))
            for column, value in zip(_COLUMNS[:4], row[:4], strict=True)
        }
        return {**places, "reason": self.reason, "distance": self.distance}

    def detail(self) -> str:
        """The pair in words, for the list of refusals."""
        other = text(self.other.key)
        if "near" in self.reason:
            return f"looks like {other} ({self.distance} of 64 bits differ)"
        return f"has the bytes of {other}"


def hashes(data: bytes) -> tuple[bytes, int]:
    """(content hash, perceptual hash) of an encoded image that a record holds."""
    import imagehash  # here: it brings SciPy, and most builds do not look for duplicates

    image = Image.open(io.BytesIO(data))
    image.draft("L", (128, 128))  # a JPEG is decoded at a fraction of its size; the hash looks at 32 x 32
    bits = imagehash.phash(image).hash
    content = hashlib.blake2b(data, digest_size=16).digest()
    return content, int.from_bytes(np.packbits(bits).tobytes(), "big")


def _bands(perceptual: np.ndarray, bands: int) -> list[np.ndarray]:
    """The hashes, uint64 [n], cut into `bands` runs of bits: uint64 [n] each."""
    edges = [64 * band // bands for band in range(bands + 1)]
    return [
        (perceptual >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)
    ]


def same_hash(group: tuple[int, Iterable[Row]], distance: int, both: bool) -> Iterator[tuple[str, object]]:
    """Pairs among the images of one perceptual hash: each but the first, by key, with an earlier one.

    With `both`, the earlier one of a pair is also paired, so that every image with a duplicate is named. Yields
    ("pair", Pair) and one ("first", Row), which stands for all of them in `near`.
    """
    rows = sorted((Row(*row) for row in group[1]), key=lambda row: row.key)
    yield "first", rows[0]
    first = {}
    for row in rows:
        earlier = first.setdefault(row.content, row)
        if earlier is not row:
            yield "pair", Pair(row, earlier, "duplicate", 0)
            if both:
                yield "pair", Pair(earlier, row, "duplicate", 0)
        elif distance >= 0 and row is not rows[0]:
            yield "pair", Pair(row, rows[0], "near_duplicate", 0)
            if both:
                yield "pair", Pair(rows[0], row, "near_duplicate", 0)


def tables(row: Row, distance: int) -> Iterator[tuple[tuple[int, int, int, int], tuple]]:
    """The buckets in which `row` meets every image within `distance`, and the row as a plain tuple."""
    bands = [int(b[0]) for b in _bands(np.array([row.perceptual], np.uint64), distance + _SHARED_BANDS)]
    for i, j in itertools.combinations(range(len(bands)), _SHARED_BANDS):
        yield (i, j, bands[i], bands[j]), tuple(row)


def near(bucket: tuple[tuple, Iterable[Row]], distance: int, both: bool) -> Iterator[Pair]:
    """Pairs within `distance` in one bucket: for each image the closest of those before it, by key.

    With `both`, the closest of all the others.
    """
    rows = sorted((Row(*row) for row in bucket[1]), key=lambda row: row.key)
    perceptual = np.array([row.perceptual for row in rows], np.uint64)
    for i in range(len(rows)):
        differences = np.bitwise_count(perceptual ^ perceptual[i])
        differences[i if both else slice(i, None)] = 65
        if differences[closest := int(differences.argmin())] <= distance:
            yield Pair(rows[i], rows[closest], "near_duplicate", int(differences[closest]))


def best(pairs: Iterable[Pair]) -> dict[bytes, Pair]:
    """Of the pairs of each image the one to report: the closest, then the first by the other's key."""
    found: dict[bytes, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.reason, pair.distance, pair.other.key)):
        found.setdefault(pair.image.key, pair)
    return found


class Reference:
    """Hashes of an evaluation set, indexed: a side input of some hundred bytes an image.

    `digest`: SHA-256 over hashes and distance, which decide what is refused, and why.
    """

    def __init__(self, rows: Iterable[tuple], distance: int):
        self.rows = sorted(map(tuple, rows))
        self.distance = distance
        self.digest = hashlib.sha256(repr((distance, self.rows)).encode()).hexdigest()
        self.contents = {row[4]: index for index, row in reversed(list(enumerate(self.rows)))}
        self.perceptual = np.array([row[5] for row in self.rows], np.uint64)
        self.tables = []
        for band in _bands(self.perceptual, distance + 1) if distance >= 0 else []:
            order = np.argsort(band, kind="stable")
            self.tables.append((order.astype(np.int32), band[order]))

    def find(self, row: Row) -> Pair | None:
        """The reference image that `row` is a duplicate of: an exact one, or the closest within the distance."""
        if (index := self.contents.get(row.content)) is not None:
            return Pair(row, Row(*self.rows[index]), "evaluation_duplicate", 0)
        bits = np.array([row.perceptual], np.uint64)
        found = []
        for (order, sorted_band), band in zip(self.tables, _bands(bits, len(self.tables) or 1), strict=False):
            low, high = np.searchsorted(sorted_band, band[0]), np.searchsorted(sorted_band, band[0], "right")
            candidates = order[low:high]
            differences = np.bitwise_count(self.perceptual[candidates] ^ bits[0])
            found += [(int(d), int(c)) for d, c in zip(differences, candidates, strict=True) if d <= self.distance]
        if not found:
            return None
        distance, index = min(found)
        return Pair(row, Row(*self.rows[index]), "evaluation_near_duplicate", distance)


def write_rows(file, rows: Iterable[Row]) -> None:
    """Writes hashes to a binary file as CSV, a row an image; names as the bytes they are."""
    writer = csv.writer(codecs.getwriter("utf-8")(file, "surrogateescape"))  # quotes names with either line end
    writer.writerow(_COLUMNS)
    for row in rows:
        names = [text(name) for name in (row.key, row.path)]
        writer.writerow([*names, row.offset, row.size, row.content.hex(), f"{row.perceptual:016x}"])


def read_rows(file) -> Iterator[Row]:
    """Reads what `write_rows` wrote; `path`, `offset` and `size` may be missing in a file from elsewhere.

    Raises:
      ValueError: it is not such a file, or one of its lines is no such row.
    """
    content = io.BytesIO(file.read())  # at once: TensorFlow's lines lose every "\r"
    reader = csv.DictReader(io.TextIOWrapper(content, "utf-8", "surrogateescape", newline=""))
    if missing := {"key", "content", "perceptual"} - set(reader.fieldnames or ()):
        raise ValueError(f"no column {sorted(missing)}; expected {', '.join(_COLUMNS)}")
    try:
        for row in reader:
            yield _row(row)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _row(columns: dict) -> Row:
    for name, digits in (("content", 32), ("perceptual", 16)):
        if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", columns[name] or ""):
            raise ValueError(f"{name} is {columns[name]!r:.80}; expected {digits} hexadecimal digits")
    place = int(columns.get("offset") or -1), int(columns.get("size") or -1)
    names = name_bytes(columns["key"]), name_bytes(columns.get("path") or "")
    return Row(*names, *place, bytes.fromhex(columns["content"]), int(columns["perceptual"], 16))
