"""`--dry_run`: what a build will cost, from rates measured on a sample of its images; nothing is written."""

import heapq
import io
import itertools
import time
from typing import NamedTuple

from apache_beam.coders import FastPrimitivesCoder
from PIL import Image

from beam import duplicates, images, shards, sources, writing
from beam.options import BuildError, BuildOptions, ImageSettings, image_settings
from pipeline.data import record, shard

_LISTED = 20_000  # images to list, of which the sample is drawn by hash of the key
_SAMPLE = 400
_STATS = 600  # bytes of a shard's statistics and of its line in the manifest, about


class Measured(NamedTuple):
    """Rates and sizes of a sample, on one core.

    sample: images looked at. written: the part of them that is not refused. listing, writing, hashing: images a
    second. name_bytes: of a name in the shuffle; row_bytes: of a row of hashes; record_bytes: of a record on disk.
    """

    sample: int
    written: float
    listing: float
    writing: float
    hashing: float
    name_bytes: float
    row_bytes: float
    record_bytes: float


def measure(source: sources.Source, options: BuildOptions) -> Measured:
    """Lists some of the source, and reads, checks, hashes and serialises a sample of that.

    Raises:
      BuildError: the source lists nothing.
    """
    start = time.perf_counter()
    streams = [sources.items(part, source) for part in source.parts[:64]]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*streams))
    listed = list(itertools.islice((item for item in in_turn if item is not None), _LISTED))
    listing = time.perf_counter() - start
    if not listed:
        raise BuildError(f"--input={options.input} lists no image.")
    task = shards.Task("", "", record.SINGLE_LABEL, image_settings(options), {})
    sample = heapq.nsmallest(_SAMPLE, listed, key=lambda item: shards.position(item.key))
    coder, names, rows, records = FastPrimitivesCoder(), 0, 0, []
    seconds = hash_seconds = 0.0
    _warm_up()
    for item in sample:
        name = shards.Name(*item._replace(labels=(0,) * len(item.labels)))
        names += len(coder.encode(((shards.TRAIN, 1), tuple(name))))
        start = time.perf_counter()
        found = writing.checked(name, task, None)
        if isinstance(found, images.Encoded):
            values = {"image": found.data, "key": name.key, "id": 0, "label": 0}
            records.append(sum(map(len, shard.frame(record.serialize(values, record.SINGLE_LABEL)))))
        seconds += time.perf_counter() - start
        if isinstance(found, images.Encoded):
            start = time.perf_counter()
            rows += len(coder.encode(tuple(writing.row_of(name, found.data))))
            hash_seconds += time.perf_counter() - start
    if not records:
        raise BuildError(f"--input={options.input}: all {len(sample)} images of a sample were refused.")
    return Measured(
        sample=len(sample),
        written=len(records) / len(sample),
        listing=len(listed) / listing,
        writing=len(sample) / seconds,
        hashing=len(sample) / (seconds + hash_seconds),
        name_bytes=names / len(sample),
        row_bytes=rows / len(records),
        record_bytes=sum(records) / len(records),
    )


def _warm_up() -> None:
    """Loads what the first image would have to wait for."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    duplicates.hashes(images.normalise(buffer.getvalue(), ImageSettings()).data)


def plan(measured: Measured, count: int, options: BuildOptions) -> dict[str, float]:
    """What a build of `count` images costs: a number for each line of `text`."""
    written = count * measured.written
    size = written * measured.record_bytes
    number = max(1, round(size / (options.shard_mib << 20))) if options.shard_mib else options.shards
    shuffle = count * measured.name_bytes
    hours = count / measured.listing + count / measured.writing
    if options.duplicates != "off":
        bands = options.duplicate_distance + 2
        tables = bands * (bands - 1) // 2 if options.duplicate_distance > 0 else 0
        shuffle += count * measured.name_bytes + written * measured.row_bytes * (1 + tables)
        hours += count / measured.hashing
    elif options.remove_duplicates_of:
        hours += count / measured.hashing - count / measured.writing
    return {
        "images listed": count,
        "images written": written,
        "record bytes": size,
        "shards": number,
        "bytes a shard": size / number,
        "index bytes": 8 * (written + number),
        "manifest and statistics bytes": number * _STATS,
        "shuffle bytes": shuffle,
        "shuffle bytes, were images shuffled": size,
        "core hours": hours / 3600,
        "hours on 1,000 cores": hours / 3600 / 1000,
    }


def text(measured: Measured, planned: dict[str, float]) -> str:
    """The plan for a person to read."""
    lines = [
        f"Measured on {measured.sample} images, one core: {measured.listing:,.0f} listed, {measured.writing:,.0f} "
        f"checked and written, {measured.hashing:,.0f} checked and hashed a second; {measured.record_bytes:,.0f} bytes "
        f"a record, {measured.name_bytes:,.0f} bytes a name; {1 - measured.written:.1%} refused.",
        "",
    ]
    width = max(map(len, planned))
    for name, value in planned.items():
        shown = _bytes(value) if "bytes" in name else f"{value:,.1f}" if "hours" in name else f"{value:,.0f}"
        lines.append(f"{name:<{width}}  {shown:>12}")
    return "\n".join(lines)


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} PiB"
