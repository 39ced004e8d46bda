"""The Beam graph: listing -> split and shard of each name -> shards -> manifest."""

import os
from collections.abc import Iterable, Iterator

import apache_beam as beam
import tensorflow as tf
from apache_beam.pvalue import AsList, AsSingleton

from beam import duplicates, finish, hashing, planning, progress, shards, sources, writing
from beam.carry import carried
from beam.items import Item
from beam.options import BuildError, BuildOptions
from pipeline.data import manifest, record

_LONGEST_KEY = 1 << 16  # bytes; tables of hashes cannot be read with fields of 128 KiB


def build(pipeline: beam.Pipeline, options: BuildOptions, source: sources.Source) -> None:
    """Adds the whole build to `pipeline`."""
    given = read_classes(options.classes) if options.classes else source.classes
    items = (
        pipeline
        | "Source" >> beam.Create(source.parts)
        | "Spread" >> beam.Reshuffle()
        | "List" >> beam.FlatMap(carried(list_items), source._replace(parts=[]))
    )
    if given is None:
        labels = items | "Labels" >> beam.FlatMap(carried(labels_of))
        found = labels | "Labels found" >> beam.CombineGlobally(planning.Union())
        classes = found | "Classes" >> beam.Map(carried(sources.sorted_classes), source.kind)
    else:
        classes = pipeline | "Classes" >> beam.Create([given])
    indices = classes | "Indices" >> beam.Map(carried(indices_of))
    total = planning.total(items)
    task = AsSingleton(planning.task(items, total, options, source))
    listed = items | "Name" >> beam.Map(carried(to_name), task, AsSingleton(indices))
    every = pipeline | "One" >> beam.Create([None]) | "Shards" >> beam.FlatMap(carried(every_shard), task)
    names = (listed, every) | "Names" >> beam.Flatten()
    reference = _reference(pipeline, options)
    pairs = _pairs(names, task, options, reference)
    results = (
        {"names": names, "pairs": pairs}
        | "Shuffle names" >> beam.CoGroupByKey()
        | "Write" >> beam.Map(carried(write_shard), task, reference)
    )
    (
        pipeline
        | "End" >> beam.Create([given is not None])
        | "Finish" >> beam.Map(carried(end), task, AsSingleton(classes), AsSingleton(total), AsList(results))
    )


def end(classes_given: bool, task: shards.Task, classes: list[str], total: tuple, results: list) -> dict:
    """Makes a record set of the shards."""
    return finish.finish(task, classes, classes_given, total[0], results)


def read_classes(path: str) -> list[str]:
    """Class names in label order, one a line."""
    try:
        with open(path, encoding="utf-8") as file:
            names = [line.rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"--classes={path}: {error}; expected a text file with a class name a line.") from error
    if not names or "" in names or len(set(names)) != len(names):
        raise BuildError(f"--classes={path}: expected class names, one a line, none empty and none twice.")
    return names


def list_items(part: bytes, source: sources.Source) -> Iterator[tuple]:
    """Lists one part of the source, counting for the progress line."""
    for item in sources.items(part, source):
        progress.count("listed", 1)
        yield item


def labels_of(item: Item) -> Iterable:
    """The class names of an item."""
    return item.labels


def indices_of(classes: list[str]) -> dict:
    """Class name to label."""
    return {name: index for index, name in enumerate(classes)}


def to_name(item: Item, task: shards.Task, indices: dict) -> tuple:
    """((split, shard), name): class names become indices, the key's hashes say where it goes."""
    labels, refusal = (), item.refusal
    if len(item.key) > _LONGEST_KEY:
        refusal = refusal or ("bad_row", f"a key of {len(item.key):,} bytes; at most {_LONGEST_KEY:,}")
    try:
        labels = tuple(indices[label] for label in item.labels)
    except KeyError as error:
        refusal = refusal or ("unknown_label", f"{error.args[0]!r} is not among the {len(indices)} classes")
    if task.label_kind == record.SINGLE_LABEL and len(labels) != 1:
        refusal = refusal or ("bad_row", f"{len(labels)} labels in a source of one label an image")
    return shards.place(item.key, task), tuple(item._replace(labels=labels, refusal=refusal))


def _reference(pipeline: beam.Pipeline, options: BuildOptions) -> AsSingleton | None:
    """The hashes of the evaluation sets, as a side input; None if there are none."""
    if not options.remove_duplicates_of:
        return None
    parts = [part for path in options.remove_duplicates_of for part in hashing.parts(path)]
    return AsSingleton(
        pipeline
        | "Evaluation sets" >> beam.Create(parts)
        | "Spread them" >> beam.Reshuffle()
        | "Their hashes" >> beam.FlatMap(carried(hashing.of_part))
        | "Together" >> beam.combiners.ToList()
        | "Index" >> beam.Map(carried(duplicates.Reference), options.duplicate_distance)
    )


def _pairs(names, task: AsSingleton, options: BuildOptions, reference) -> beam.PCollection:
    """((split, shard), pair) for every image that is a duplicate of another in the set."""
    if options.duplicates == "off":
        return names.pipeline | "No pairs" >> beam.Create([])
    distance, both = options.duplicate_distance, options.duplicates == "drop"
    rows = (
        names
        | "Shuffle names to hash" >> beam.GroupByKey()
        | "Hash" >> beam.FlatMap(carried(hash_shard), task, reference)
    )
    alike = (
        rows
        | "By hash" >> beam.Map(carried(by_hash))
        | "Same hash" >> beam.GroupByKey()
        | "Pairs of one hash" >> beam.FlatMap(carried(duplicates.same_hash), distance, both)
    )
    pairs = [alike | "Their pairs" >> beam.FlatMap(carried(only), "pair")]
    if distance > 0:
        pairs.append(
            alike
            | "First of a hash" >> beam.FlatMap(carried(only), "first")
            | "Bands" >> beam.FlatMap(carried(duplicates.tables), distance)
            | "Same bands" >> beam.GroupByKey()
            | "Near pairs" >> beam.FlatMap(carried(duplicates.near), distance, both)
        )
    return pairs | "All pairs" >> beam.Flatten() | "Place pairs" >> beam.Map(carried(place_pair), task)


def hash_shard(group: tuple, task: shards.Task, reference) -> Iterator[duplicates.Row]:
    """The hashes of one shard's usable images."""
    (split, index), names = group
    yield from hashing.of_listing(task, split, index, _names(names), reference)


def by_hash(row: duplicates.Row) -> tuple[int, tuple]:
    """Keyed by perceptual hash."""
    return row.perceptual, tuple(row)


def only(tagged: tuple[str, object], tag: str) -> Iterator:
    """The values with a tag."""
    if tagged[0] == tag:
        yield tagged[1]


def place_pair(pair: duplicates.Pair, task: shards.Task) -> tuple:
    """((split, shard), pair): to where the pair's first image is written."""
    return shards.place(pair.image.key, task), pair.plain()


def every_shard(_, task: shards.Task) -> Iterator[tuple]:
    """((split, shard), None) for every shard, so that those without a name are written too."""
    for split, count in task.shards.items():
        for index in range(count):
            yield (split, index), None


def write_shard(group: tuple, task: shards.Task, reference) -> tuple:
    """Builds one shard; returns (split, shard number, what the end of the build needs of it)."""
    (split, index), found = group
    pairs = (duplicates.Pair.of(pair) for pair in found["pairs"])
    stats = writing.build(task, split, index, _names(found["names"]), pairs, reference)
    return split, index, finish.summary(stats)


def _names(group: Iterable) -> Iterator[shards.Name]:
    return (shards.Name(*name) for name in group if name is not None)


def remove_manifest(output_dir: str) -> None:
    """Removes the manifest of an earlier build: from here until the new one, there is no record set."""
    path = os.path.join(output_dir, manifest.FILE)
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
