"""`manifest.json`: what a record set holds, written last by the Beam job."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable

import tensorflow as tf

from pipeline import files
from pipeline.data import record
from pipeline.data.shard import index_path

FILE = "manifest.json"
FORMAT = 1
_REQUESTS_AT_ONCE = 32


class ManifestError(ValueError):
    """The data directory is missing, incomplete, or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard: its file name, its records, its size in bytes and the SHA-256 of the TFRecord file."""

    file: str
    examples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """One split; `listed == written + sum(rejected.values())`, `rejected` maps a reason to a count.

    `id_checksum` is the sum of the record ids modulo 2**64, as 16 hexadecimal digits.
    """

    listed: int
    written: int
    rejected: dict[str, int]
    id_checksum: str
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A record set: its name, class names in label order, label kind ('single' or 'multiple') and splits."""

    name: str
    classes: tuple[str, ...]
    label_kind: str
    splits: dict[str, Split]

    def __post_init__(self):
        if self.label_kind not in record.LABEL_KINDS:
            raise ManifestError(f"label_kind is {self.label_kind!r}; expected one of {record.LABEL_KINDS}.")
        for name, split in self.splits.items():
            if split.listed != split.written + sum(split.rejected.values()):
                raise ManifestError(
                    f"Split {name!r}: {split.listed} images listed, but {split.written} written and "
                    f"{sum(split.rejected.values())} rejected do not add up to that."
                )
            if split.written != (held := sum(shard.examples for shard in split.shards)):
                raise ManifestError(f"Split {name!r}: {split.written} examples written, but its shards hold {held}.")

    def split(self, name: str) -> Split:
        """The split `name`; a ManifestError lists the splits there are."""
        if name not in self.splits:
            raise ManifestError(f"No split {name!r} in data set {self.name!r}; it has {sorted(self.splits)}.")
        return self.splits[name]

    @property
    def classes_digest(self) -> str:
        """SHA-256 of the class names in label order: two sets with one digest pose the same task."""
        return hashlib.sha256("\n".join(self.classes).encode()).hexdigest()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over class names and shard digests: two record sets with one digest hold the same bytes."""
        content = {
            "classes": self.classes,
            "label_kind": self.label_kind,
            "splits": {name: [shard.sha256 for shard in split.shards] for name, split in sorted(self.splits.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checksum(ids: Iterable[int]) -> str:
    """The order-independent checksum of record ids: their sum modulo 2**64, as 16 hexadecimal digits."""
    return f"{sum(int(i) for i in ids) % 2**64:016x}"


def write(manifest: Manifest, directory: str) -> str:
    """Writes `manifest.json` into `directory`, whole or not at all; returns its path."""
    path = os.path.join(directory, FILE)
    content = {"format": FORMAT, **dataclasses.asdict(manifest)}
    files.write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return path


def read(directory: str) -> Manifest:
    """Reads the manifest of the record set in `directory`; its shards are not checked (see `check_shards`).

    Raises:
      ManifestError: no such directory, no manifest, or a damaged one.
    """
    path = os.path.join(directory, FILE)
    if not tf.io.gfile.exists(path):
        found = "exists but holds no manifest.json" if tf.io.gfile.exists(directory) else "does not exist"
        raise ManifestError(
            f"No record set at {directory!r}: it {found}. Make one with "
            f"`python beam/build_tfrecords.py --input=IMAGES --output_dir={directory}`."
        )
    try:
        with tf.io.gfile.GFile(path) as file:
            content = json.load(file)
        if (found := content.pop("format")) != FORMAT:
            raise ManifestError(f"{path} has format {found}; this version reads format {FORMAT}.")
        splits = {
            name: Split(**{**split, "shards": tuple(Shard(**shard) for shard in split["shards"])})
            for name, split in content.pop("splits").items()
        }
        manifest = Manifest(splits=splits, **{**content, "classes": tuple(content["classes"])})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path} is damaged ({type(error).__name__}: {error}): build the records again.") from error
    return manifest


def is_local(directory: str) -> bool:
    """Whether the record set is on this machine's disk, where checking every shard takes one listing."""
    return not files.is_remote(directory)


def check_shards(manifest: Manifest, directory: str, split: str) -> None:
    """Checks that the shards of a split are there, with the size that the manifest says.

    On this machine's disk that takes one listing, which shows the sizes of their indexes, too; elsewhere it takes a
    request for each shard, many at a time.

    Raises:
      ManifestError: there is no such split, or one of its files is missing or of another size.
    """
    expected = {}
    for shard in manifest.split(split).shards:
        expected[shard.file] = shard.bytes, f"the manifest says {shard.bytes} bytes"
        if is_local(directory):
            size = 8 * (shard.examples + 1)
            expected[index_path(shard.file)] = size, f"the index of {shard.examples} records has {size}"
    for (name, (size, reason)), found in zip(expected.items(), _sizes(directory, list(expected)), strict=True):
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            path = os.path.join(directory, name)
            raise ManifestError(f"{path} {what}; {reason}: restore it, or build the records again.")


def _sizes(directory: str, names: list[str]) -> list[int | None]:
    """Size in bytes of each file, None where it is missing."""
    if is_local(directory):
        found = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
        return [found.get(name) for name in names]

    def size(name: str) -> int | None:
        try:
            return tf.io.gfile.stat(os.path.join(directory, name)).length
        except tf.errors.NotFoundError:
            return None

    with concurrent.futures.ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(size, names))
