"""The end of a build: refusals and TFDS metadata, then the manifest, then nothing stale left."""

import collections
import json
import os
import re
from collections.abc import Iterable

import tensorflow as tf

from beam import duplicates, report, shards
from beam.options import BuildError
from pipeline.data import manifest, record

REJECTED = "rejected.jsonl"
DUPLICATES = "duplicates.jsonl"


def finish(
    task: shards.Task, classes: list[str], classes_given: bool, listed: int, results: Iterable[tuple[str, int, dict]]
) -> dict:
    """Writes what makes committed shards a record set, `manifest.json` last.

    Args:
      task: the build.
      classes: class names in label order.
      classes_given: the user named the classes: then some may have no image.
      listed: how many images the source lists.
      results: (split, shard number, summary) of every shard, as `summary` makes it.

    Returns:
      A summary: split name to `listed`, `written` and `rejected`.

    Raises:
      BuildError: images got lost, nothing was written, or a class has no image.
    """
    results = sorted(results, key=lambda result: result[:2])
    found = {"rejected": _write_rows(task, results, REJECTED, "rejected"), "pairs": None}
    if any(stats["pairs"] for _, _, stats in results):
        found["pairs"] = _write_rows(task, results, DUPLICATES, "pairs")
    splits = {name: _split(summaries) for name, summaries in _by_split(results).items()}
    _check(task, classes, classes_given, results, splits, listed)
    report.write(task, classes, results, splits, found)
    _write_tfds(task, classes, splits)
    _remove_stale(task, results)
    manifest.write(manifest.Manifest(task.name, tuple(classes), task.label_kind, splits), task.output_dir)
    return {n: {"listed": s.listed, "written": s.written, "rejected": s.rejected} for n, s in splits.items()}


def summary(stats: dict) -> dict:
    """What the end of the build needs of a shard's statistics: no lists, only counts."""
    reasons = collections.Counter(refusal["reason"] for refusal in stats["rejected"])
    return {**stats, "rejected": dict(sorted(reasons.items())), "pairs": len(stats["pairs"])}


def _by_split(results) -> dict[str, list[dict]]:
    splits = collections.defaultdict(list)
    for split, _, stats in results:
        splits[split].append(stats)
    return dict(splits)


def _split(summaries: list[dict]) -> manifest.Split:
    rejected = collections.Counter()
    for stats in summaries:
        rejected.update(stats["rejected"])
    return manifest.Split(
        listed=sum(stats["listed"] for stats in summaries),
        written=sum(stats["examples"] for stats in summaries),
        rejected=dict(sorted(rejected.items())),
        id_checksum=f"{sum(int(stats['id_checksum'], 16) for stats in summaries) % 2**64:016x}",
        shards=tuple(
            manifest.Shard(stats["file"], stats["examples"], stats["bytes"], stats["sha256"]) for stats in summaries
        ),
    )


def _write_rows(task: shards.Task, results, name: str, field: str) -> str:
    """Writes the rows that all shards have in one field of their statistics, in the order of the shards."""
    path = os.path.join(task.output_dir, name)
    with tf.io.gfile.GFile(f"{path}.partial", "w") as file:
        file.write("")  # makes the file, also when there is no row
        for split, index, stats in results:
            if stats[field]:
                with tf.io.gfile.GFile(shards.stats_path(shards.path_of(task, split, index))) as full:
                    for row in json.load(full)[field]:
                        file.write(json.dumps(row) + "\n")
    tf.io.gfile.rename(f"{path}.partial", path, overwrite=True)
    return path


def _check(task, classes, classes_given, results, splits, listed: int) -> None:
    refused = os.path.join(task.output_dir, REJECTED)
    arrived = sum(split.listed for split in splits.values())
    if arrived != listed:
        raise BuildError(
            f"{listed} images were listed, but {arrived} came to the shards: the source changed while it was "
            "listed. Let it rest, and run the same command again."
        )
    for name, split in splits.items():
        if not split.written:
            raise BuildError(
                f"The {name} split has no image: {split.listed} were listed for it ({listed} in all), and "
                f"none could be used; {refused} says why."
            )
    held = {int(label) for _, _, stats in results for label in stats["classes"]}
    if not classes_given and (without := [n for i, n in enumerate(classes) if i not in held]):
        raise BuildError(
            f"{len(without)} of {len(classes)} classes have no usable image (first: {without[0]!r}); "
            f"{refused} says why. Mend or remove them, or name the classes there are with --classes=FILE."
        )


def _write_tfds(task: shards.Task, classes: list[str], splits: dict[str, manifest.Split]) -> None:
    import tensorflow_datasets as tfds  # here: one worker needs it, once

    features = record.tfds_features(task.label_kind, classes)
    template = tfds.core.ShardedFileTemplate(
        data_dir=task.output_dir,
        dataset_name=task.name,
        filetype_suffix="tfrecord",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=task.output_dir,
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


def _remove_stale(task: shards.Task, results) -> None:
    """Removes what earlier builds under this name left, and what killed attempts left half-written."""
    kept = {"", ".index", ".json"} | ({duplicates.SUFFIX} if task.policy != "off" else set())
    current = {stats["file"] + suffix for _, _, stats in results for suffix in kept} | {REJECTED, report.FILE}
    if any(stats["pairs"] for _, _, stats in results):
        current.add(DUPLICATES)
    shard = (
        rf"{re.escape(task.name)}-(train|validation)\.tfrecord-\d{{5,}}-of-\d{{5,}}"
        rf"(\.index|\.json|{re.escape(duplicates.SUFFIX)})?"
    )
    others = "|".join(map(re.escape, (REJECTED, DUPLICATES, report.FILE)))
    ours = re.compile(rf"({shard}|{others})(\.partial(-[0-9a-f]{{32}}(\.index)?)?)?")
    for file in tf.io.gfile.listdir(task.output_dir):
        if ours.fullmatch(file) and file not in current:
            tf.io.gfile.remove(os.path.join(task.output_dir, file))
