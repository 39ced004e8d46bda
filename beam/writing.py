"""One shard: its images read, checked and written, in the order of their keys' hashes."""

import collections
import concurrent.futures
import os
import uuid
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from beam import duplicates, files, images, progress
from beam.items import text
from beam.options import ImageSettings
from beam.shards import FORMAT, Name, Task, commit, fingerprint, in_order, path_of, stats_path, whole
from pipeline.data import manifest, record, shard

_CHUNK = 8  # images a thread takes at once


def build(
    task: Task,
    split: str,
    index: int,
    names: Iterable[Name],
    pairs: Iterable[duplicates.Pair] = (),
    reference: duplicates.Reference | None = None,
) -> dict:
    """Writes one shard, unless it is committed already; returns its statistics.

    Args:
      task, split, index: the build and which of its shards.
      names: what is listed for this shard.
      pairs: those of them that are duplicates of others in the set.
      reference: the evaluation set whose images must not be written.

    Returns:
      file, listed, examples, bytes, sha256, id_checksum, passed (images whose bytes were kept), classes (class
      index to count), sides (see `side_bucket`), rejected (rows of `rejected.jsonl`), pairs (duplicates
      found), and what it was made from: fingerprint, kept (the fingerprint of what was not refused) and settings.
    """
    names, pairs, path = in_order(names), duplicates.best(pairs), path_of(task, split, index)
    made_from = fingerprint(task, names, pairs, reference)
    old = whole(path)
    if old and old["fingerprint"] == made_from and not (task.retry and old["rejected"]):
        progress.count("done", len(names))
        return old
    kept = _kept(task, path, old, names, pairs, reference) if old and task.retry else {}
    stats = _write(task, path, names, pairs, reference, kept)
    if kept:
        stats["passed"] += old["passed"]
    stats["fingerprint"] = made_from
    stats["kept"] = _fingerprint_of_kept(task, stats, names, pairs, reference)
    commit(path, stats)
    return stats


def _fingerprint_of_kept(task, stats: dict, names, pairs, reference) -> str:
    rejected = _rejected(stats)
    return fingerprint(task, [name for name in names if name.key not in rejected], {}, reference, limits=False)


def _rejected(stats: dict) -> set[bytes]:
    rows = (row for row in stats["rejected"] if row["reason"] != _AGAIN.reason)
    return {row["key"].encode("utf-8", "surrogateescape") for row in rows}


def _kept(task, path: str, old: dict, names, pairs, reference) -> dict[bytes, bytes]:
    """The images of the old shard, by key, if they would be written just the same now; else nothing."""
    settings, before = task.images, ImageSettings(**old["settings"])
    looser = (
        settings.min_side <= before.min_side
        and settings.max_pixels >= before.max_pixels
        and settings.max_bytes >= before.max_bytes
        and (settings.animated == before.animated or before.animated == "refuse")
    )
    rejected = _rejected(old)
    if (
        not looser
        or old["kept"] != _fingerprint_of_kept(task, old, names, pairs, reference)
        or any(key not in rejected for key in pairs)
    ):
        return {}
    index = shard.read_index(path, old["examples"])
    found = {}
    for payload in shard.read_records(path, index, 0, old["examples"]):
        features = tf.train.Example.FromString(payload or b"").features.feature
        if payload is None or not features["key"].bytes_list.value:
            return {}  # a damaged record: make the whole shard again
        found[features["key"].bytes_list.value[0]] = features["image"].bytes_list.value[0]
    return found


def _write(task: Task, path: str, names: list[Name], pairs: dict, reference, kept: dict[bytes, bytes]) -> dict:
    ids, passed = [], 0
    classes, sides, rejected = collections.Counter(), collections.Counter(), []
    found = list(pairs.values()) if task.policy == "report" else []

    def outcome(name: Name) -> images.Encoded | images.Refused:
        if name.key in kept:
            return images.as_written(kept[name.key])
        pair = pairs.get(name.key) if task.policy != "report" else None
        return duplicate(pair) if pair else checked(name, task, reference)

    def records() -> Iterator[bytes]:
        nonlocal passed
        for name, result in outcomes(names, outcome):
            progress.count("done", 1)
            if isinstance(result, images.Refused):
                rejected.append(_refusal(name, result))
                if result.pair:
                    found.append(result.pair)
                continue
            ids.append(record.record_id(text(name.key)))
            classes.update(name.labels)
            sides[side_bucket(min(result.width, result.height))] += 1
            passed += result.passed
            yield _record(name, result, task.label_kind)

    partial = f"{path}.partial-{uuid.uuid4().hex}"
    index, sha256 = shard.write_shard(partial, records())
    if tf.io.gfile.exists(stats_path(path)):
        tf.io.gfile.remove(stats_path(path))  # before the shard: old statistics must not vouch for a new one
    tf.io.gfile.rename(shard.index_path(partial), shard.index_path(path), overwrite=True)
    tf.io.gfile.rename(partial, path, overwrite=True)
    return {
        "format": FORMAT,
        "file": os.path.basename(path),
        "listed": len(names),
        "examples": len(ids),
        "bytes": int(index[-1]),
        "sha256": sha256,
        "id_checksum": manifest.checksum(ids),
        "passed": passed,
        "classes": {str(label): count for label, count in sorted(classes.items())},
        "sides": {str(bucket): count for bucket, count in sorted(sides.items())},
        "rejected": rejected,
        "pairs": [pair.as_json() for pair in found],
        "settings": dict(vars(task.images)),
    }


def _record(name: Name, encoded: images.Encoded, label_kind: str) -> bytes:
    values = {"image": encoded.data, "key": name.key, "id": record.record_id(text(name.key))}
    if label_kind == record.SINGLE_LABEL:
        values["label"] = name.labels[0]
    else:
        values |= {"labels": name.labels, "label_weights": name.weights}
    return record.serialize(values, label_kind)


def _refusal(name: Name, refused: images.Refused) -> dict:
    row = {"key": text(name.key), "reason": refused.reason, "detail": refused.detail}
    return {**row, "path": text(name.path), "offset": name.offset, "size": name.size}


def side_bucket(side: int) -> int:
    """The bucket of a shorter side in pixels: b for sides from 2**(b/2) up to 2**((b+1)/2)."""
    return (side * side).bit_length() - 1


def outcomes(names: list[Name], function: Callable) -> Iterator[tuple[Name, object]]:
    """Each name of a shard, in order, with what `function` makes of it, a few ahead in threads.

    A key that is listed again is refused without a look.
    """

    def chunk(first: int) -> list:
        part = range(first, min(first + _CHUNK, len(names)))
        return [_AGAIN if i > 0 and names[i - 1].key == names[i].key else function(names[i]) for i in part]

    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for first, found in _ahead(pool, chunk, range(0, len(names), _CHUNK), 2 * threads):
            yield from zip(names[first : first + _CHUNK], found, strict=True)


_AGAIN = images.Refused("duplicate_key", "listed more than once; one entry is looked at, if possible one without fault")


def _ahead(pool, function: Callable, arguments: Iterable, depth: int) -> Iterator[tuple]:
    """(argument, function(argument)) in order, at most `depth` of them under way: bounded memory."""
    waiting = collections.deque()
    for argument in arguments:
        waiting.append((argument, pool.submit(function, argument)))
        if len(waiting) > depth:
            argument, future = waiting.popleft()
            yield argument, future.result()
    for argument, future in waiting:
        yield argument, future.result()


def checked(name: Name, task: Task, reference) -> images.Encoded | images.Refused:
    """Reads and checks one image, also against the evaluation set."""
    try:
        if name.refusal:
            raise images.Refused(*name.refusal)
        encoded = images.normalise(_read(name, task.images.max_bytes), task.images)
    except images.Refused as refused:
        return refused
    if reference and (pair := reference.find(row_of(name, encoded.data))):
        return duplicate(pair)
    return encoded


def row_of(name: Name, data: bytes) -> duplicates.Row:
    """The hashes of an image that was checked."""
    return duplicates.Row(name.key, name.path, name.offset, name.size, *duplicates.hashes(data))


def duplicate(pair: duplicates.Pair) -> images.Refused:
    """The refusal of the first image of a pair."""
    refused = images.Refused(pair.reason, pair.detail())
    refused.pair = pair
    return refused


def _read(name: Name, limit: int) -> bytes:
    try:
        return files.read(text(name.path), name.offset, name.size, limit)
    except files.TooLarge as error:
        raise images.Refused("too_many_bytes", str(error)) from error
    except (OSError, ValueError) as error:
        raise images.Refused("unreadable", getattr(error, "strerror", None) or str(error)) from error
