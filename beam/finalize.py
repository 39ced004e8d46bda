"""The end of a build: refusals, report and TFDS metadata, then the manifest, then nothing stale left."""

import base64
import collections
import itertools
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator

import tensorflow as tf

from beam import build_report, duplicates, planning, shards, summary
from beam.errors import BuildError
from pipeline import files
from pipeline.data import manifest, record, shard, statistics

REJECTED = "rejected.jsonl"
DUPLICATES = "duplicates.jsonl"


def finalize(
    totals: planning.Totals,
    spec: shards.BuildSpec,
    indices: dict[str, int],
    classes_given: bool,
    results: Iterable[shards.ShardResult],
    shared: dict[tuple[str, str], int],
) -> None:
    """Writes what makes committed shards a record set, `manifest.json` last.

    Args:
      totals: of the listing.
      spec, results: the build and its shards, with statistics as `shortened` shortens them.
      indices: class name to label, in label order.
      classes_given: whether the user named the classes, of which some may then have no image.
      shared: pair of splits to the number of images that are in both.

    Raises:
      BuildError: images got lost, nothing was written, or a class has no image.
    """
    results, classes = sorted(results, key=lambda result: result[:2]), list(indices)
    rejected = _write_rows(spec, results, REJECTED, "rejected")
    has_pairs = any(stats["pairs"] for _, _, stats in results)
    pairs = _write_rows(spec, results, DUPLICATES, "pairs") if has_pairs else None
    by_split = itertools.groupby(results, key=operator.itemgetter(0))
    splits = {name: _split([stats for _, _, stats in group]) for name, group in by_split}
    _check(spec, classes, classes_given, results, splits, sum(count for count, _, _ in totals.sizes.values()))
    record_set = manifest.Manifest(spec.name, tuple(classes), spec.label_kind, splits)
    counts = summary.statistics_of(len(classes), results, shared)
    statistics.write(spec.output_dir, counts)
    facts = summary.lines(record_set, counts, held_out=spec.held_out > 0, duplicates=spec.duplicate_policy)
    build_report.write(spec, classes, results, splits, counts, facts, rejected, pairs)
    _write_tfds(spec, classes, splits)
    _remove_stale(spec, results)
    manifest.write(record_set, spec.output_dir)


def shortened(stats: dict) -> dict:
    """What the end of the build needs of a shard's statistics: no lists, only counts, and the contents of images."""
    reasons = collections.Counter(refusal["reason"] for refusal in stats["rejected"])
    return {**stats, "rejected": dict(sorted(reasons.items())), "pairs": len(stats["pairs"])}


def contents(result: shards.ShardResult) -> Iterator[tuple[bytes, str]]:
    """(8 bytes that stand for its content, split) of every image of a shard, in a set of several splits."""
    split, _, stats = result
    data = base64.b64decode(stats.get("contents", ""))
    for start in range(0, len(data), 8):
        yield data[start : start + 8], split


def without_contents(result: shards.ShardResult) -> shards.ShardResult:
    """The result of a shard without the contents of its images."""
    split, index, stats = result
    return split, index, {name: value for name, value in stats.items() if name != "contents"}


def _split(summaries: list[dict]) -> manifest.Split:
    rejected = sum((collections.Counter(stats["rejected"]) for stats in summaries), collections.Counter())
    return manifest.Split(
        listed=sum(stats["listed"] for stats in summaries),
        written=sum(stats["examples"] for stats in summaries),
        rejected=dict(sorted(rejected.items())),
        id_checksum=f"{sum(int(stats['id_checksum'], 16) for stats in summaries) % 2**64:016x}",
        shards=tuple(
            manifest.Shard(stats["file"], stats["examples"], stats["bytes"], stats["sha256"]) for stats in summaries
        ),
    )


def _write_rows(spec: shards.BuildSpec, results: list[shards.ShardResult], name: str, field: str) -> str:
    """Writes the rows that all shards have in one field of their statistics, in the order of the shards."""

    def rows() -> Iterator[str]:
        for split, index, stats in results:
            if stats[field]:
                with files.opened(shards.stats_path(shards.path_of(spec, split, index)), "r") as file:
                    for row in json.load(file)[field]:
                        yield json.dumps(row) + "\n"

    path = os.path.join(spec.output_dir, name)
    files.write_atomically(path, rows(), several_writers=True)
    return path


def _check(
    spec: shards.BuildSpec,
    classes: list[str],
    classes_given: bool,
    results: list[shards.ShardResult],
    splits: dict[str, manifest.Split],
    listed: int,
) -> None:
    refused = os.path.join(spec.output_dir, REJECTED)
    arrived = sum(split.listed for split in splits.values())
    if arrived != listed:
        raise BuildError(
            f"{listed} images were listed, but {arrived} came to the shards: the source changed while it was "
            "listed. Run the same command again when nothing writes to it."
        )
    for name, split in splits.items():
        if not split.written:
            raise BuildError(
                f"The {name} split has no image: {split.listed} were listed for it ({listed} in all), and "
                f"none could be used; {refused} says why."
            )
    written = {int(label) for _, _, stats in results for label in stats["classes"]}
    if not classes_given and (without := [n for i, n in enumerate(classes) if i not in written]):
        raise BuildError(
            f"{len(without)} of {len(classes)} classes have no usable image (first: {without[0]!r}); "
            f"{refused} says why. Repair or remove them, or name the classes with --classes=FILE."
        )


def _write_tfds(spec: shards.BuildSpec, classes: list[str], splits: dict[str, manifest.Split]) -> None:
    import tensorflow_datasets as tfds  # here: one worker needs it, once

    features = record.tfds_features(spec.label_kind, classes)
    template = tfds.core.ShardedFileTemplate(
        data_dir=spec.output_dir,
        dataset_name=spec.name,
        filetype_suffix="tfrecord",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=spec.output_dir,
        features=features,
        filename_template=template,
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[shard.examples for shard in split.shards],
                num_bytes=sum(shard.bytes for shard in split.shards),
                filename_template=template.replace(split=name),
            )
            for name, split in splits.items()
        ],
        supervised_keys=("image", "label") if "label" in features else None,
        check_data=False,
    )


def _remove_stale(spec: shards.BuildSpec, results: list[shards.ShardResult]) -> None:
    """Removes what earlier builds under this name left, and what killed attempts left half-written."""
    kept = {"", shard.index_path(""), shards.stats_path("")} | (
        {duplicates.SUFFIX} if spec.duplicate_policy != "off" else set()
    )
    current = {stats["file"] + suffix for _, _, stats in results for suffix in kept} | {
        REJECTED,
        build_report.FILE,
        statistics.FILE,
    }
    if any(stats["pairs"] for _, _, stats in results):
        current.add(DUPLICATES)
    others = "|".join(map(re.escape, (REJECTED, DUPLICATES, build_report.FILE, statistics.FILE)))
    written = rf"({shards.file_pattern([spec.name])}|{others})({files.PARTIAL})?"
    ours = re.compile(rf"{written}|{build_report.PICTURES}{files.PARTIAL}")
    for file in tf.io.gfile.listdir(spec.output_dir):
        if ours.fullmatch(file) and file not in current:
            tf.io.gfile.remove(os.path.join(spec.output_dir, file))
