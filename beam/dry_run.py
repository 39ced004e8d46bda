"""`--dry_run`: what a build will cost, from rates measured on a sample of its images; nothing is written."""

import heapq
import io
import itertools
import math
import time
from typing import NamedTuple

from apache_beam.coders import FastPrimitivesCoder
from PIL import Image

from beam import checks, duplicates, images, shards, splits
from beam.errors import BuildError
from beam.examples import to_record
from beam.options import BuildOptions, ImageSettings, image_settings
from beam.sources.source import Source
from pipeline.data import record, shard

_LISTED = 20_000  # images to list, of which the sample is drawn by hash of the key
_SAMPLE = 400
_LIST_PAGE = 1000  # objects that a request to an object store lists
_SHARD_REQUESTS = 11  # of a shard: three files written and renamed (a copy and a removal), and what was there looked up
_STATS = 600  # bytes of a shard's statistics and of its line in the manifest, about


class Measurement(NamedTuple):
    """Rates and sizes of a sample, on one core.

    Attributes:
      sample: images that were read.
      written: the part of them that is not refused.
      listing, writing, hashing: images per second.
      name_bytes, hash_bytes: of an example, and of its hashes, in the shuffle.
      record_bytes: of a record on disk.
      content_bytes: of an image in the search for images that are in two splits.
    """

    sample: int
    written: float
    listing: float
    writing: float
    hashing: float
    name_bytes: float
    hash_bytes: float
    record_bytes: float
    content_bytes: float = 0.0


def dry_run(source: Source, options: BuildOptions) -> str:
    """The plan of a build, as text."""
    count = options.dry_run_images or sum(1 for part in source.parts for _ in source.examples(part))
    measurement = measure(source, options)
    return as_text(measurement, plan(measurement, count, options))


def measure(source: Source, options: BuildOptions) -> Measurement:
    """Lists some of the source, and reads, checks, hashes and serialises a sample of that.

    Raises:
      BuildError: the source lists nothing.
    """
    start = time.perf_counter()
    streams = [source.examples(part) for part in source.parts[:64]]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*streams))
    listed = list(itertools.islice((example for example in in_turn if example is not None), _LISTED))
    listing = time.perf_counter() - start
    if not listed:
        raise BuildError(f"--input={source.path} lists no image.")
    sample = heapq.nsmallest(_SAMPLE, listed, key=lambda example: shards.position(example.key))
    settings, label_kind = image_settings(options), record.MULTI_LABEL if source.is_multi_label else record.SINGLE_LABEL
    coder, name_bytes, hash_bytes, records = FastPrimitivesCoder(), 0, 0, []
    seconds = hash_seconds = 0.0
    _warm_up()
    for example in sample:
        example = example._replace(labels=(0,) * len(example.labels))
        name_bytes += len(coder.encode(((splits.TRAIN, 1), tuple(example))))
        start = time.perf_counter()
        result = checks.checked(example, settings)
        if isinstance(result, images.Encoded):
            records.append(sum(map(len, shard.frame(to_record(example, result.data, label_kind)))))
        seconds += time.perf_counter() - start
        if isinstance(result, images.Encoded):
            start = time.perf_counter()
            hash_bytes += len(coder.encode(tuple(duplicates.HashedImage.of(example, result.data))))
            hash_seconds += time.perf_counter() - start
    if not records:
        raise BuildError(f"--input={source.path}: all {len(sample)} images of a sample were refused.")
    has_splits = options.validation_fraction or options.validation_examples or len({e.split for e in listed}) > 1
    return Measurement(
        sample=len(sample),
        written=len(records) / len(sample),
        listing=len(listed) / listing,
        writing=len(sample) / seconds,
        hashing=len(sample) / (seconds + hash_seconds),
        name_bytes=name_bytes / len(sample),
        hash_bytes=hash_bytes / len(records),
        record_bytes=sum(records) / len(records),
        content_bytes=len(coder.encode((bytes(8), splits.TRAIN))) if has_splits else 0,
    )


def _warm_up() -> None:
    """Loads what the first image would otherwise be timed with."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    duplicates.hashes(images.normalise(buffer.getvalue(), ImageSettings()).data)


def plan(measured: Measurement, count: int, options: BuildOptions) -> dict[str, float]:
    """What a build of `count` images costs: a number for each line of `as_text`."""
    written = count * measured.written
    size = written * measured.record_bytes
    number = max(1, round(size / (options.shard_mib << 20))) if options.shard_mib else options.shards
    shuffle = count * measured.name_bytes + written * measured.content_bytes
    hours = count / measured.listing + count / measured.writing
    readings = 1
    if options.duplicates != "off":
        readings = 2
        bands = options.duplicate_distance + 2
        tables = bands * (bands - 1) // 2 if options.duplicate_distance > 0 else 0
        shuffle += count * measured.name_bytes + written * measured.hash_bytes * (1 + tables)
        hours += count / measured.hashing
    if options.remove_duplicates_of:  # writing hashes, too
        hours += count / measured.hashing - count / measured.writing
    requests = count * readings + math.ceil(count / _LIST_PAGE) + number * _SHARD_REQUESTS
    planned = {
        "images listed": count,
        "images written": written,
        "record bytes": size,
        "shards": number,
        "bytes per shard": size / number,
        "index bytes": 8 * (written + number),
        "manifest and statistics bytes": number * _STATS,
        "files": number * (3 if options.duplicates == "off" else 4),
        "requests, in an object store": requests,
        "shuffle bytes": shuffle,
        "shuffle bytes, were images shuffled": size,
        "core hours": hours / 3600,
        "hours on 1,000 cores": hours / 3600 / 1000,
    }
    prices = options.core_hour_price, options.shuffle_gib_price, options.request_price
    if any(prices):
        amounts = hours / 3600, shuffle / 2**30, requests / 1e6
        planned["price"] = sum(price * amount for price, amount in zip(prices, amounts, strict=True))
    return planned


def as_text(measured: Measurement, planned: dict[str, float]) -> str:
    """The plan for a person to read."""
    lines = [
        f"Measured on {measured.sample} images, one core: {measured.listing:,.0f} listed, {measured.writing:,.0f} "
        f"checked and written, {measured.hashing:,.0f} checked and hashed per second; {measured.record_bytes:,.0f} "
        f"bytes per record, {measured.name_bytes:,.0f} bytes per name; {1 - measured.written:.1%} refused.",
        "",
    ]
    width = max(map(len, planned))
    for name, value in planned.items():
        shown = _bytes(value) if "bytes" in name else f"{value:,.{'hours' in name:d}f}"
        lines.append(f"{name:<{width}}  {shown:>12}")
    return "\n".join(lines)


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} PiB"
